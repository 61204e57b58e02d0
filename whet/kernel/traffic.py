"""How much a kernel moves, level by level: footprints of its loops, and what a cache must reload.

    Touch      = buffer, stride of each loop variable        one access, as its addresses move
    footprint  distinct bytes that a loop touches in all its turns
    traffic    bytes that come from beyond a cache of a given size

The model is that of tiled loop nests (Wolf and Lam, PLDI 1991, section 3; Low et al., TOMS 2016,
section 2): the outermost loop whose footprint fits a cache loads it once, and what is around it
does so again in each turn. Strides are read off addresses numerically, so that blocked layouts need
nothing of their own. Extents that vary (tails) count with their largest value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Num, Select
from whet.kernel.affine import Domain, bounds
from whet.kernel.loops import Buffer, If, Kernel, Loop, Stmt, Store, Update, accesses, bound

_FAR = (3, 7, 15, 31, 63, 127)  # steps at which a stride is looked at again
LINE = 64  # bytes of a cache line on every processor that is of interest


@dataclass(frozen=True, slots=True)
class Touch:
    """An access: where its address goes when a loop variable goes one up.

    Attributes:
        buffer: what is read or written.
        strides: elements a step of each variable, of those that move it.
        write: whether it is written.
        straight: steps for which the stride stays what it is, of variables for which it does not.
    """

    buffer: Buffer
    strides: Mapping[str, int]
    write: bool
    straight: Mapping[str, int] = field(default_factory=dict)

    def footprint(self, trips: Mapping[str, int]) -> float:
        """Distinct bytes, in whole lines where they lie apart, over so many turns of loops.

        Variables that step within what others span (a window's taps) widen it, others multiply it.
        """
        width = self.buffer.dtype.bits // 8
        steps = sorted((abs(s), trips[v]) for v, s in self.strides.items() if trips.get(v, 1) > 1)
        count, span = 1.0, 0
        for stride, turns in steps:
            if stride <= span:
                span += stride * (turns - 1)
                count = min(count * turns, span + 1)
            else:
                count *= turns
                span += stride * (turns - 1)
        apart = min(max(steps[0][0] * width, width), LINE) if steps else width
        return min(count * apart, max(self.buffer.bytes, width))


@dataclass(frozen=True, eq=False)
class Nest:
    """A loop, or a statement that is none, with what lies in it.

    Attributes:
        loop: None for stores, updates, and for the whole kernel.
        trips: turns of the loop; 1 where it is none.
        inner: what stands in it, in order.
        touches: accesses of the statement itself.
        leaf: the statement, where it is one.
    """

    loop: Loop | None
    trips: int
    inner: tuple[Nest, ...]
    touches: tuple[Touch, ...] = ()
    leaf: Store | Update | None = None

    @cached_property
    def all_touches(self) -> tuple[Touch, ...]:
        """Of everything below, equal ones once."""
        found = dict.fromkeys(
            (t.buffer.name, tuple(sorted(t.strides.items()))) for t in self._below
        )
        known = {(t.buffer.name, tuple(sorted(t.strides.items()))): t for t in self._below}
        return tuple(known[k] for k in found)

    @cached_property
    def _below(self) -> tuple[Touch, ...]:
        return (*self.touches, *(t for n in self.inner for t in n.all_touches))

    @cached_property
    def trips_below(self) -> Mapping[str, int]:
        """Turns of this loop and of all below."""
        found = {} if self.loop is None else {self.loop.var: self.trips}
        for n in self.inner:
            found |= n.trips_below
        return found

    @cached_property
    def footprint(self) -> float:
        """Distinct bytes of one run of it; registers take none."""
        most: dict[str, float] = {}
        for t in self.all_touches:
            if t.buffer.role != "register":
                name = t.buffer.name
                most[name] = max(most.get(name, 0.0), t.footprint(self.trips_below))
        return sum(most.values())

    def traffic(self, capacity: float, threads: int = 1) -> float:
        """Bytes that one run of it loads from beyond a cache.

        Args:
            capacity: of the cache in bytes, one thread's share.
            threads: among which a parallel loop splits what it touches.
        """
        shared = threads if self.loop is not None and self.loop.kind == "parallel" else 1
        if self.footprint <= capacity * shared:
            return self.footprint
        if self.leaf is not None:
            return 0.0  # its loop counts it
        if self.loop is None:
            return sum(n.traffic(capacity, threads) for n in self.inner)
        streamed = sum(
            _stream(t, self.loop.var, self.trips) for n in self.inner if n.leaf for t in n.touches
        )
        inner = [n for n in self.inner if not n.leaf]
        return streamed + self.trips * sum(n.traffic(capacity, threads) for n in inner)

    def walk(self, times: float = 1.0) -> Iterable[tuple[Nest, float]]:
        """Everything in it, with how often it runs, parents first."""
        yield self, times
        for n in self.inner:
            yield from n.walk(times * self.trips)


def _stream(t: Touch, var: str, turns: int) -> float:
    """Bytes that an access streams through in the turns of its innermost loop."""
    return 0.0 if t.buffer.role == "register" else t.footprint({var: turns})


def nests(kernel: Kernel) -> Nest:
    """The loops of a kernel, with touches."""
    return Nest(None, 1, _nests(kernel, kernel.body, {}))


def _nests(kernel: Kernel, body: Sequence[Stmt], domain: Domain) -> tuple[Nest, ...]:
    found: list[Nest] = []
    for s in body:
        match s:
            case Loop(var, extent, inner):
                high = bounds(bound(extent), domain)[1]
                turns = max(int(high), 1) if math.isfinite(high) else 1
                found.append(Nest(s, turns, _nests(kernel, inner, {**domain, var: extent})))
            case If(_, inner):
                found += _nests(kernel, inner, domain)
            case _:
                touches = tuple(
                    _touch(kernel.buffer(a.buffer), a.index, domain, a.kind != "read")
                    for a in accesses((s,))
                )
                found.append(Nest(None, 1, (), touches, s))
    return tuple(found)


def _touch(buffer: Buffer, index: Sequence[Expr], domain: Domain, write: bool) -> Touch:
    address = buffer.layout.address(tuple(index))
    free = ex.free(address)
    zero = dict.fromkeys(domain, 0)
    start = value(address, zero)
    strides: dict[str, int] = {}
    straight: dict[str, int] = {}
    for var in domain:
        if var in free:
            step = value(address, {**zero, var: 1}) - start
            high = bounds(bound(domain[var]), domain)[1]
            last = int(high) - 1 if math.isfinite(high) else 1
            for far in (*(n for n in _FAR if n < last), last):
                if last > 1 and value(address, {**zero, var: far}) - start != step * far:
                    straight[var] = 1 + max((n for n in _FAR if n < far), default=1)
                    break
            # A block of a blocked layout is left only every so many steps.
            if step == 0 and last > 1:
                step = -(-(value(address, {**zero, var: last}) - start) // last)
            if step:
                strides[var] = step
    return Touch(buffer, strides, write, straight)


def value(e: Expr, at: Mapping[str, int]) -> int:
    """An index expression as a number; elements of integer buffers count as 0."""
    match e:
        case Num(n):
            return int(n) if isinstance(n, (int, float)) and math.isfinite(n) else 0
        case Index(name):
            return at.get(name, 0)
        case Select(test, then, other):
            return value(then if value(test, at) else other, at)
        case Call(fn, args):
            return _call(fn, [value(a, at) for a in args])
    return 0


def _call(fn: str, args: Sequence[int]) -> int:
    a, b = args[0], args[-1]
    match fn:
        case "+":
            return a + b
        case "-":
            return a - b if len(args) == 2 else -a
        case "*":
            return a * b
        case "//":
            return a // b if b else 0
        case "%":
            return a % b if b else 0
        case "minimum":
            return min(a, b)
        case "maximum":
            return max(a, b)
        case "<":
            return int(a < b)
        case "<=":
            return int(a <= b)
        case "==":
            return int(a == b)
        case "and":
            return int(bool(a) and bool(b))
        case "or":
            return int(bool(a) or bool(b))
        case "not":
            return int(not a)
    return 0
