"""Proofs that a record reads only what its operands hold, for all sizes at once.

    before:  y[b0, k] = x[b0, s + k*t]        0 <= k < (e - s + t - 1)//t
    asked:   0 <= s + k*t  and  s + k*t < I, from the loops, the guards around the load and the
             size guards of the instance

Every load of every assignment is asked about, also those inside indices and tests. What is around a
load counts: loops bound their axes, a selection's test holds in its branch and fails in the other,
a conjunction's first part holds where the second is looked at. A load with a value outside may be
anywhere. An index that is itself loaded depends on data: it is not proven but listed as assumed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from whet.errors import RecordError
from whet.ir.expr import Call, Expr, Index, Load, Num, Reduce, Select, loads, show
from whet.ir.graph import Node
from whet.ir.ops import Attrs, exists, instance
from whet.ir.record import Instance, Let, Shape
from whet.ir.types import Poly, Quotient, Size, floordiv
from whet.rewrite.integers import Facts, Integers, negation

Alternatives = list[Facts]  # one of them holds
_EVERYWHERE: Alternatives = [frozenset()]


@dataclass(frozen=True, slots=True)
class Read:
    """One index of one load: dim `dim` of `load` in assignment `let`."""

    let: Let
    load: Load
    dim: int

    @property
    def index(self) -> Expr:
        return self.load.index[self.dim]

    def marked(self) -> str:
        """The assignment, with the index marked below."""
        line, text = repr(self.let), show(self.load)
        before = [show(e) for e in self.load.index[: self.dim]]
        start = line.find(text) + len(f"{self.load.tensor}[") + sum(len(t) + 2 for t in before)
        return f"{line}\n{' ' * start}{'^' * len(show(self.index))}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The answer for one instance.

    Attributes:
        proven: reads that stay inside for all sizes.
        anywhere: reads that may leave their tensor, and have a value outside.
        assumed: reads whose index is data.
        unproven: reads that may leave their tensor, or about which nothing could be shown.
        queries: questions that reached the solver.
    """

    proven: tuple[Read, ...]
    anywhere: tuple[Read, ...]
    assumed: tuple[Read, ...]
    unproven: tuple[Read, ...]
    queries: int


def bounds(bound: Instance, assumed: Iterable[Size] = ()) -> Bounds:
    """What can be shown of an instance's reads.

    Args:
        bound: its sizes may be symbolic; a symbol is any positive number.
        assumed: sizes that are known to be at least 0, of attributes for example.
    """
    return _Prover(bound, tuple(assumed)).answer()


def in_bounds(bound: Instance, assumed: Iterable[Size] = ()) -> Bounds:
    """`bounds`, where all that does not depend on data must be proven.

    Raises:
        RecordError: a read may leave its tensor; the message marks the index.
    """
    found = bounds(bound, assumed)
    for read in found.unproven:
        size = bound.sizes(read.load.tensor)[read.dim]
        raise RecordError(
            f"record {bound.name}: a read of {read.load.tensor} may leave it",
            expected=f"0 <= {show(read.index)} < {size}",
            got=f"no proof for all sizes of {', '.join(map(str, bound.extents)) or 'none'}",
            where=read.marked(),
            hint="guard the load, give it a value outside (x[…] or 0), or correct its index",
        )
    return found


def reads_outside(node: Node) -> bool:
    """Whether a node may read beyond its operands. Leaves and library calls do not."""
    if not exists(node.op):
        return False
    return _unproven(node.op, tuple(None if a is None else a.shape for a in node.args), node.attrs)


@functools.lru_cache(maxsize=8192)
def _unproven(op: str, shapes: tuple[Shape | None, ...], attrs: Attrs) -> bool:
    return bool(bounds(instance(op, shapes, attrs)).unproven)


class _Prover:
    """One walk over an instance's assignments."""

    def __init__(self, bound: Instance, assumed: tuple[Size, ...]) -> None:
        self.bound = bound
        sizes = [*bound.extents.values(), *assumed]
        sizes += [s for g in bound.guards for s in (g.left, g.right)]
        symbols = {name for s in sizes for name in Poly.of(s).symbols()}
        equal = [s for g in bound.guards for s in (g.left - g.right, g.right - g.left)]
        self.integers = Integers(symbols, [*assumed, *equal])
        self.proven: list[Read] = []
        self.anywhere: list[Read] = []
        self.assumed: list[Read] = []
        self.unproven: list[Read] = []

    def answer(self) -> Bounds:
        for let in self.bound.lets:
            self._visit(let, let.body, [frozenset(self._loops(let.axes))])
        return Bounds(
            tuple(self.proven), tuple(self.anywhere), tuple(self.assumed), tuple(self.unproven),
            self.integers.queries,
        )  # fmt: skip

    def _visit(self, let: Let, e: Expr, around: Alternatives) -> None:
        """Ask about every load in `e`; one of the alternatives holds around it."""
        match e:
            case Load(tensor, index, outside):
                for i in index:
                    self._visit(let, i, around)
                if outside is not None:
                    self._visit(let, outside, around)
                    self.anywhere += [Read(let, e, dim) for dim in range(len(index))]
                    return
                for dim, size in enumerate(self.bound.sizes(tensor)):
                    self._ask(Read(let, e, dim), size, around)
            case Select(test, then, other):
                self._visit(let, test, around)
                self._visit(let, then, _both(around, _where(test, holds=True)))
                self._visit(let, other, _both(around, _where(test, holds=False)))
            case Reduce(_, axes, body):
                self._visit(let, body, _both(around, [frozenset(self._loops(axes))]))
            case Call("and" | "or" as fn, (first, second)):
                self._visit(let, first, around)
                self._visit(let, second, _both(around, _where(first, holds=fn == "and")))
            case Call(_, args):
                for a in args:
                    self._visit(let, a, around)

    def _ask(self, read: Read, size: Size, around: Alternatives) -> None:
        if any(loads(read.index)):
            self.assumed.append(read)
            return
        at = number(read.index)
        if at is None:
            self.unproven.append(read)
            return
        claims = (at, size - 1 - at)
        holds = all(self._implied(facts, claim) for facts in around for claim in claims)
        (self.proven if holds else self.unproven).append(read)

    def _implied(self, facts: Facts, claim: Size) -> bool:
        return self.integers.implied(facts | frozenset(_divisions((*facts, claim))), claim)

    def _loops(self, axes: tuple[str, ...]) -> Iterator[Size]:
        for a in axes:
            yield symbol(a)
            yield self.bound.extents[a] - 1 - symbol(a)


def symbol(axis: str) -> Poly:
    """The position along an axis, as an unknown; apart from sizes of the same name."""
    return Poly.symbol(f"{axis}@")


def number(e: Expr) -> Size | None:
    """An integer expression over axes as a polynomial, or None where it is not one."""
    match e:
        case Num(value) if not isinstance(value, float):
            return value
        case Index(name):
            return symbol(name)
        case Call("+" | "-" | "*" | "//" | "%" as fn, (left, right)):
            a, b = number(left), number(right)
            if a is None or b is None:
                return None
            match fn:
                case "+":
                    return a + b
                case "-":
                    return a - b
                case "*":
                    return a * b
                case "//":
                    return floordiv(a, b)
            return a - b * floordiv(a, b)
    return None


def _where(test: Expr, *, holds: bool) -> Alternatives:
    """Facts that follow where a test holds, or fails; nothing from a test of data."""
    match test:
        case Num(value):
            return _EVERYWHERE if bool(value) == holds else []
        case Call("not", (inner,)):
            return _where(inner, holds=not holds)
        case Call("and" | "or" as fn, (first, second)):
            settled = _where(first, holds=holds)
            if (fn == "and") == holds:
                return _both(settled, _where(second, holds=holds))
            rest = _both(_where(first, holds=not holds), _where(second, holds=holds))
            return [*settled, *rest]
        case Call("<" | "<=" | "==" as fn, (left, right)):
            a, b = number(left), number(right)
            if a is None or b is None:
                return _EVERYWHERE
            if fn != "==":
                fact = b - a - 1 if fn == "<" else b - a
                return [frozenset((fact if holds else negation(fact),))]
            if holds:
                return [frozenset((a - b, b - a))]
            return [frozenset((a - b - 1,)), frozenset((b - a - 1,))]
    return _EVERYWHERE


def _both(a: Alternatives, b: Alternatives) -> Alternatives:
    return [x | y for x in a for y in b]


def _divisions(sizes: Iterable[Size]) -> Iterator[Size]:
    """What defines each quotient by a symbolic size: 0 <= top - q*bottom < bottom.

    Quotients by numbers are the solver's own business.
    """
    stack, seen = list(sizes), set[Quotient]()
    while stack:
        for monomial, _ in Poly.of(stack.pop()).terms:
            for atom in monomial:
                if isinstance(atom, Quotient) and atom not in seen:
                    seen.add(atom)
                    stack += [atom.top, atom.bottom]
                    if not isinstance(atom.bottom, int):
                        rest = atom.top - Poly({(atom,): 1}) * atom.bottom
                        yield rest
                        yield atom.bottom - 1 - rest
