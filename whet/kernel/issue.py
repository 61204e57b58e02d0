"""What a processor issues for a scheduled nest, in cycles of the thread that works longest.

    Issue = arithmetic, loads, stores, waiting, turns, joins            cycles, by what takes them

A statement and the loops written out around it (unrolled ones, and the few vectors of a vector
loop) are a *body*: straight code, in which an address counts once. The loops around it repeat the
body; what their innermost ones do not move is fetched before them, as long as registers hold it. A
sum that goes on from turn to turn waits for its last addition. A vector loop whose lanes do not lie
evenly, or that has loops within, is a loop of scalars, as `backend.cpp` prints it.

The numbers are those of processors of the last ten years, rounded (Fog, Instruction tables, 2024):
they only have to be right against each other, for a model that has learnt from measurements has the
last word.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Load
from whet.ir.functions import FUNCTIONS
from whet.kernel.affine import is_index
from whet.kernel.lanes import held, scalar_loops
from whet.kernel.loops import Kernel, Store, Update
from whet.kernel.traffic import Nest, Touch, value

PER_CYCLE = 2.0  # vector operations, loads, stores
LATENCY = 4.0  # of an addition
FORWARD = 5.0  # more, where the sum goes through memory
FOLD = 12.0  # adding up the lanes of a vector
APART = 1.5  # loads that an element takes which lies apart from its neighbours; a store takes one
STALL = 14.0  # reading what a store under a mask has covered and not written
COSTLY, COSTLY_SCALAR = 10.0, 18.0  # of a transcendental function, a vector and a scalar
DIVISION, DIVISION_SCALAR = 8.0, 4.0
TURN, ENTRY, RAGGED = 1.0, 5.0, 8.0  # a turn, a loop, one whose extent is not known
WHOLE = 3.0  # a division of whole numbers in an address
JOIN, REGION = 1500.0, 3000.0  # threads waiting for each other; waking them
SHORT = 8  # turns of a loop that the compiler writes out
MOST = 64  # statements that it makes of it
SPREAD = 4  # vectors that a long sum is spread over
HELD = 12  # addresses that are fetched before a loop rather than in each turn
# Calls in a scalar function's C that are one instruction or few; any other is a series of them.
_SHORT = frozenset({"fabs", "fmax", "fmin", "floor", "ceil", "trunc", "rint", "round"})
_LONG = frozenset({"sqrt"})
_CALLED = re.compile(r"([a-z]\w*)\(")


@dataclass
class Issue:
    """Cycles; see the module's docstring. `plain` are those of statements without lanes; `code`
    counts statements, written out."""

    arithmetic: float = 0.0
    loads: float = 0.0
    stores: float = 0.0
    waiting: float = 0.0
    turns: float = 0.0
    joins: float = 0.0
    addresses: float = 0.0
    spills: float = 0.0
    apart: float = 0.0
    plain: float = 0.0
    total: float = 0.0
    code: float = 0.0

    def __add__(self, other: Issue) -> Issue:
        return Issue(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class _Turn:
    """A loop around a statement: its variable, how often it turns, and how often its code does."""

    var: str
    kind: str
    trips: float
    code: float


def issued(whole: Nest, kernel: Kernel, lanes: int, registers: int, threads: int) -> Issue:
    """Cycles of a kernel.

    Args:
        whole: its loops (`traffic.nests`).
        kernel: whose they are.
        lanes: float32 elements of a vector.
        registers: vectors that the processor holds.
        threads: that share a parallel loop.
    """
    return _Reader(kernel, lanes, registers, threads).read(whole)


class _Reader:
    def __init__(self, kernel: Kernel, lanes: int, registers: int, threads: int) -> None:
        self.kernel, self.lanes, self.registers = kernel, lanes, registers
        self.threads = threads
        self.plain = scalar_loops(kernel, lanes)
        self.kept = held(kernel, lanes, self.plain)
        self.means: dict[str, float] = {}

    def read(self, whole: Nest) -> Issue:
        total = self.nest(whole, (), 1.0, 1.0)
        if any(s.kind == "parallel" for s in self.kernel.loops.values()) and self.threads > 1:
            total.joins += REGION
            total.total += REGION
        return total

    def nest(self, n: Nest, path: tuple[Nest, ...], times: float, share: float) -> Issue:
        """A nest's cycles: `times` runs of it, of which one thread does `share`."""
        if n.leaf is not None:
            return self.statement(n, path, times * share)
        found = Issue()
        inner, turns = path, 1.0
        if n.loop is not None:
            inner, turns = (*path, n), self.mean(n, path)
            if n.loop.kind == "parallel" and share == 1.0 and self.threads > 1:
                share = math.ceil(n.trips / self.threads) / n.trips
                found.joins = times * JOIN
            elif n.loop.kind in ("serial", "parallel", "block") and n.trips > 1:
                ragged = 0.0 if isinstance(n.loop.extent, int) else RAGGED
                found.turns = times * share * (ENTRY + ragged + TURN * turns)
            found.total = found.joins + found.turns
        for m in n.inner:
            found += self.nest(m, inner, times * turns, share)
        return found

    def mean(self, n: Nest, path: Sequence[Nest]) -> float:
        """Turns of a loop, on average over those around it."""
        assert n.loop is not None
        var, extent = n.loop.var, n.loop.extent
        if isinstance(extent, int):
            return float(n.trips)
        if var not in self.means:
            free = ex.free(extent)
            around = [(m.loop.var, m.trips) for m in path if m.loop and m.loop.var in free]
            names = [v for v, _ in around]
            ranges = [range(0, t, max(1, t // 64)) for _, t in around]
            some = itertools.islice(itertools.product(*ranges), 512)
            sizes = [max(value(extent, dict(zip(names, at, strict=True))), 0) for at in some]
            self.means[var] = sum(sizes) / len(sizes)
        return max(self.means[var], 1e-3)

    # -- one statement -----------------------------------------------------------------------------
    def statement(self, n: Nest, path: Sequence[Nest], runs: float) -> Issue:
        leaf = n.leaf
        assert leaf is not None
        loops = [m for m in path if m.loop is not None]
        along = self.along(n, loops)
        turns, vectored = [], along is not None
        if along is not None:  # turned round: what it runs along stands innermost
            behind = loops[loops.index(along) + 1 :]
            if any(m.loop and m.loop.kind != "unroll" and m.trips > 1 for m in behind):
                loops = [*loops[: loops.index(along)], *behind, along]
        for k, m in enumerate(loops):
            assert m.loop is not None
            mean = self.mean(m, loops[:k])
            code = mean
            if m is along:
                code = math.ceil(mean / self.lanes)
            turns.append(_Turn(m.loop.var, m.loop.kind, mean, code))
        var = along.loop.var if along is not None and along.loop is not None else None
        target = n.touches[-1]
        body: list[_Turn] = []
        size = 1.0
        while turns and self.written(turns[-1], var, target, size):
            body.append(turns.pop())
            size *= body[-1].code
        for t in body:
            runs /= max(t.trips, 1e-9)
        if var is not None and any(t.var == var for t in turns):
            t = next(t for t in turns if t.var == var)
            runs *= t.code / t.trips
        found = self.arithmetic(leaf, vectored, size)
        live = 0.0
        for touch in n.touches[:-1]:
            live += self.fetch(found, touch, body, turns, var, runs)
        live += self.put(found, n, leaf, body, turns, var, runs)
        over = max(0.0, live - self.registers)
        cycles = Issue(
            arithmetic=runs * found.arithmetic / PER_CYCLE,
            loads=found.loads / PER_CYCLE,
            stores=found.stores / PER_CYCLE,
            addresses=runs * self.addresses(n, turns),
            apart=found.apart / PER_CYCLE,
            spills=runs * min(over, live) * 1.0 if math.isfinite(over) else 0.0,
        )
        issue = max(
            cycles.arithmetic + cycles.spills + cycles.addresses,
            cycles.loads + cycles.spills, cycles.stores,
        )  # fmt: skip
        waits = found.waiting
        cycles.waiting = max(0.0, waits - issue)
        if var is not None and any(t.var == var for t in turns):
            entries = runs / max(next(t.code for t in turns if t.var == var), 1.0)
            cycles.turns = TURN * runs + ENTRY * entries
        cycles.total = max(issue, waits) + cycles.turns
        cycles.code = size
        if not vectored:
            cycles.plain = cycles.total
        return cycles

    def along(self, n: Nest, loops: Sequence[Nest]) -> Nest | None:
        """The loop that the statement's lanes are iterations of, if it has any."""
        for m in reversed(loops):
            assert m.loop is not None
            if m.loop.kind == "vector" and m.loop.var not in self.plain:
                return m
        # The compiler makes lanes of its own where that changes no order of sums, and may turn
        # loops with nothing between them round for it.
        for k in range(len(loops) - 1, -1, -1):
            m = loops[k]
            assert m.loop is not None
            if m.loop.kind not in ("serial", "vector") or not isinstance(m.loop.extent, int):
                break
            var = m.loop.var
            steps = [t.strides.get(var, 0) for t in n.touches]
            even = all(var not in t.straight and t.buffer.dtype.bits == 32 for t in n.touches)
            if m.trips >= 4 and even and steps[-1] == 1 and all(s in (0, 1) for s in steps):
                return m if self.kept.isdisjoint({n.touches[-1].buffer.name}) else None
            if len(m.inner) != 1:
                break
        return None

    def written(self, t: _Turn, var: str | None, target: Touch, size: float) -> bool:
        """Is a loop written out, by us or by the compiler?"""
        if t.var == var:
            held = target.buffer.name in self.kept and bool(target.strides.get(t.var))
            return t.code <= SHORT or held
        return t.kind == "unroll" or t.trips <= 1 or (t.code <= SHORT and size * t.code <= MOST)

    def arithmetic(self, leaf: Store | Update, vectored: bool, size: float) -> Issue:
        plain, costly, divisions = operations(leaf)
        if isinstance(leaf, Update) and isinstance(leaf.value, Call) and leaf.value.fn == "*":
            plain -= 1  # a product that is added up is one with the addition
        long = COSTLY if vectored else COSTLY_SCALAR
        over = DIVISION if vectored else DIVISION_SCALAR
        return Issue(arithmetic=size * (plain + PER_CYCLE * (long * costly + over * divisions)))

    def fetch(
        self, found: Issue, t: Touch, body: Sequence[_Turn], turns: Sequence[_Turn],
        var: str | None, runs: float,
    ) -> float:  # fmt: skip
        """Adds an access's loads; the registers it takes."""
        distinct = math.prod(x.code for x in body if t.strides.get(x.var))
        if t.buffer.name in self.kept:
            return 0.0
        times = runs / self.before(t, turns, distinct)
        cost = self.cost(t, turns, var, body)
        found.loads += times * distinct * cost
        if cost > 2:
            found.apart += times * distinct * cost
        return 1.0 if distinct > 1 else 0.0

    def before(self, t: Touch, turns: Sequence[_Turn], distinct: float) -> float:
        """Turns of the innermost loops for which an access is done once."""
        if distinct > HELD:
            return 1.0
        held = 1.0
        for x in reversed(turns):
            if t.strides.get(x.var):
                break
            held *= max(x.code, 1e-9)
        return held

    def cost(
        self, t: Touch, turns: Sequence[_Turn], var: str | None, body: Sequence[_Turn]
    ) -> float:
        """Loads of one vector, or of one element."""
        if var is None or not t.strides.get(var):
            return 1.0
        if abs(t.strides[var]) != 1:
            trips = next((x.trips for x in (*turns, *body) if x.var == var), self.lanes)
            return APART * min(self.lanes, max(trips, 1.0))
        across = [s for v, s in t.strides.items() if v != var]
        return 1.0 if all(s % self.lanes == 0 for s in across) else 1.6

    def put(
        self, found: Issue, n: Nest, leaf: Store | Update, body: Sequence[_Turn],
        turns: Sequence[_Turn], var: str | None, runs: float,
    ) -> float:  # fmt: skip
        """Adds what is written, and what a sum waits for; the registers it takes."""
        t = n.touches[-1]
        distinct = math.prod(x.code for x in body if t.strides.get(x.var))
        again = math.prod(x.code for x in body if not t.strides.get(x.var))
        kept = t.buffer.name in self.kept
        cost = self.cost(t, turns, var, body)
        cost = cost / APART if cost > 2 else cost
        folds = var is not None and not t.strides.get(var)
        moved = bool(turns) and bool(t.strides.get(turns[-1].var))
        held = kept or (not moved and distinct <= 2 * HELD and t.buffer.role != "memory")
        if isinstance(leaf, Store):
            if not kept:
                found.stores += runs * distinct * cost
            return 0.0
        if folds:
            entries = runs
            inner = turns[-1] if turns and turns[-1].var == var else None
            if inner is not None:
                entries /= max(inner.code, 1.0)
                spread = SPREAD if inner.code >= SPREAD else 1.0
                found.waiting += runs * LATENCY * again / spread
            else:
                found.waiting += runs * LATENCY * again
            found.arithmetic += 0.0
            found.loads += entries * distinct * (FOLD + (0 if kept else 1))
            found.stores += 0.0 if kept else entries * distinct
            return distinct
        chain = LATENCY if held else LATENCY + FORWARD
        if not moved:
            found.waiting += runs * again * chain
        elif not kept:
            found.waiting += runs * (again - 1) * chain
        if not held or (not kept and moved):
            found.loads += runs * distinct * cost
            found.stores += runs * distinct * cost
            if self.covers(t, turns, body, var):
                found.waiting += runs * distinct * STALL
        return distinct if held else 0.0

    def covers(
        self, t: Touch, turns: Sequence[_Turn], body: Sequence[_Turn], var: str | None
    ) -> bool:
        """Does the next vector begin where this one, under a mask, ends?"""
        along = next((x for x in (*body, *turns) if x.var == var), None)
        if along is None or along.trips >= self.lanes or abs(t.strides.get(along.var, 0)) != 1:
            return False
        others = [x for x in (*body, *reversed(turns)) if x is not along and t.strides.get(x.var)]
        return bool(others) and 0 < abs(t.strides[others[0].var]) < self.lanes

    def addresses(self, n: Nest, turns: Sequence[_Turn]) -> float:
        """Cycles of divisions of whole numbers, in each turn of the innermost loop."""
        if not turns:
            return 0.0
        var = turns[-1].var
        assert n.leaf is not None
        return WHOLE * sum(
            1
            for e in _addresses(n.leaf)
            for x in ex.walk(e)
            if isinstance(x, Call) and x.fn in ("//", "%") and var in ex.free(x)
        )


def _addresses(leaf: Store | Update) -> Iterator[Expr]:
    yield from leaf.index
    for load in ex.loads(leaf.value):
        yield from load.index


def operations(leaf: Store | Update) -> tuple[float, float, float]:
    """(plain, transcendental, division) operations of a statement; index arithmetic is none."""
    plain, costly, divisions = float(isinstance(leaf, Update)), 0.0, 0.0
    for e in _values(leaf.value):
        called = set(_CALLED.findall(FUNCTIONS[e.fn].c)) if e.fn in FUNCTIONS else set()
        if called - _SHORT - _LONG:
            costly += 1
        elif called & _LONG or e.fn in ("/", "//", "%"):
            divisions += 1
        else:
            plain += 1
    return plain, costly, divisions


def _values(e: Expr) -> Iterator[Call]:
    if is_index(e):
        return
    if isinstance(e, Call):
        yield e
    if not isinstance(e, Load):
        for child in ex.children(e):
            yield from _values(child)
