"""Reading a graph: the element of a node at an index, as a guarded sum of products.

Operators are read off their records, loads off the operands: everything is inlined down to the
inputs of the graph. Where a record takes a dim apart into a composite (g, c), the index is divided
by the extent of c: its terms that are multiples of the extent make the quotient, the rest must be
proven to lie between 0 and the extent. If that fails because one axis runs over the whole dim, the
axis itself is refined into two (`Refine`), and the reading starts again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Load, Num, Reduce, Select
from whet.ir.graph import Node
from whet.ir.ops import record_of
from whet.ir.record import Instance, Slots
from whet.ir.types import Poly, Size, divide
from whet.rewrite import terms as tm
from whet.rewrite.integers import Facts, Integers, negation
from whet.rewrite.terms import Applied, Case, Element, Fold, Scalar, Sum

Env = Mapping[str, Size]
_LIMIT = 4000
_FEW, _WRITTEN = 6, 36  # positions along one axis, and along several


class Unreadable(Exception):
    """Something that the normal form has no words for; the text says what."""


class Refine(Exception):
    """Axes of `extent` must be taken apart, the inner part being `inner` long."""

    def __init__(self, extent: Size, inner: Size) -> None:
        self.extent, self.inner = extent, inner
        super().__init__(f"axes of {extent} are refined by {inner}")


@dataclass
class Reader:
    """Reads graphs under fixed assumptions.

    Attributes:
        integers: answers questions about indices.
        refined: inner extent by extent: how axes are taken apart from the start.
        extents: extent of each axis that was made.
        written_out: sums over a few numbers are read number by number.
    """

    integers: Integers
    refined: dict[Size, Size] = field(default_factory=dict)
    extents: dict[str, Size] = field(default_factory=dict)
    written_out: bool = False

    # -- axes ------------------------------------------------------------------------------------
    def axis(self, extent: Size) -> tuple[Size, tuple[tuple[str, Size], ...]]:
        """A position that runs over `extent`, and the axes (name, extent) that it is made of."""
        if extent == 1:
            return 0, ()
        inner = self.refined.get(extent)
        if inner is not None:
            outer = divide(extent, inner)
            assert outer is not None
            high, axes = self.axis(outer)
            low, more = self.axis(inner)
            return high * inner + low, axes + more
        name = tm.fresh()
        self.extents[name] = extent
        return Poly.symbol(name), ((name, extent),)

    def split(self, position: Size, inner: Size, known: Facts) -> tuple[Size, Size]:
        """(position // inner, position % inner), proven.

        Raises:
            Refine: an axis has to be taken apart first.
            Unreadable: it cannot be done.
        """
        if isinstance(position, int) and isinstance(inner, int):
            return divmod(position, inner)
        high: Size = 0
        rest: Size = 0
        for monomial, coefficient in Poly.of(position).terms:
            part = Poly({monomial: coefficient}).collapse()
            quotient = divide(part, inner)
            if quotient is None:
                rest = rest + part
            else:
                high = high + quotient
        if self.integers.implied(known, rest) and self.integers.implied(known, inner - 1 - rest):
            return high, rest
        for monomial, coefficient in Poly.of(rest).terms:
            if len(monomial) == 1 and coefficient == 1:
                extent = self.extents.get(str(monomial[0]))
                if extent is not None and extent not in self.refined and extent != inner:
                    outer = divide(extent, inner)
                    if outer is not None and outer != 1:
                        raise Refine(extent, inner)
        raise Unreadable(f"{position} cannot be divided by {inner}")

    # -- nodes -----------------------------------------------------------------------------------
    def at(self, node: Node, index: Sequence[Size], known: Facts) -> Sum:
        """The element of `node` at `index`, one position for each dim."""
        if node.is_leaf:
            return tm.of(Element(node.name, tuple(index)))
        if node.op in ("opaque", "item"):
            raise Unreadable(f"{node.op} has no record")
        instance = node.instance
        out = str(node.attr("out", instance.outs[0]))
        names = _operand_names(node)
        sources = {n: a for n, a in zip(names, node.args, strict=True) if a is not None}
        place = _Place(self, instance, sources)
        slots = instance.results[out]
        env: dict[str, Size] = {}
        for axes, dim in zip(slots.axes, slots.dims, strict=True):
            rest = index[dim]
            for k, axis in reversed(list(enumerate(axes))):
                if k == 0:
                    env[axis] = rest
                elif all(instance.extents[a] == 1 for a in axes[:k]):
                    rest, env[axis] = 0, rest  # all of the dim
                else:
                    rest, env[axis] = self.split(rest, instance.extents[axis], known)
        found = place.let(out, env, known)
        if tm.count(found) > _LIMIT:
            raise Unreadable(f"more than {_LIMIT} terms")
        dtype = node.attr("dtype")
        if dtype is not None and node.operands:  # a cast may round: nothing is known of it
            return tm.of(Applied(f"as {dtype}", (found,)))
        return found


def _operand_names(node: Node) -> list[str]:
    shapes = tuple(None if a is None else a.shape for a in node.args)
    return [n for n, _, _ in record_of(node.op, shapes, dict(node.attrs)).operands]


@dataclass(frozen=True)
class _Place:
    """One operator instance over its operands."""

    reader: Reader
    instance: Instance
    sources: Mapping[str, Node]

    def let(self, name: str, env: Env, known: Facts) -> Sum:
        let = self.instance.let(name)
        return self.read(let.body, {a: env[a] for a in let.axes}, known)

    # -- values ----------------------------------------------------------------------------------
    def read(self, e: Expr, env: Env, known: Facts) -> Sum:
        match e:
            case Num(value):
                return tm.number(value)
            case Index():
                return self.value(position(e, env))
            case Load():
                return self.load(e, env, known)
            case Reduce("sum", axes, body):
                if self.reader.written_out and (few := self.few(axes)) is not None:
                    return tuple(
                        t for values in few
                        for t in self.read(body, {**env, **dict(zip(axes, values, strict=True))},
                                           known)
                    )  # fmt: skip
                inner, made = self.bind(axes, env)
                facts = known.union(*(tm.within(a, n) for a, n in made))
                total = self.read(body, inner, facts)
                for a, n in made:
                    total = tm.summed(total, a, n)
                return total
            case Reduce(kind, axes, body):
                inner, made = self.bind(axes, env)
                inside = frozenset[Size]().union(*(tm.within(a, n) for a, n in made))
                case = Case(
                    tuple(a for a, _ in made), inside, self.read(body, inner, known | inside)
                )
                return tm.of(Fold(kind, (case,)))
            case Select(test, then, other):
                return self.select(test, then, other, env, known)
            case Call(fn, args):
                return self.call(fn, args, env, known)

    def value(self, position: Size) -> Sum:
        return tm.number(position) if isinstance(position, int) else tm.of(Scalar(position))

    def bind(self, axes: Sequence[str], env: Env) -> tuple[dict[str, Size], list[tuple[str, Size]]]:
        inner: dict[str, Size] = dict(env)
        made: list[tuple[str, Size]] = []
        for a in axes:
            inner[a], more = self.reader.axis(self.instance.extents[a])
            made += more
        return inner, made

    def few(self, axes: Sequence[str]) -> list[tuple[int, ...]] | None:
        """All positions along axes that have few, whatever the sizes."""
        return few_positions([self.instance.extents[a] for a in axes])

    def call(self, fn: str, args: Sequence[Expr], env: Env, known: Facts) -> Sum:
        if fn == "**" and isinstance(args[1], Num) and isinstance(args[1].value, int):
            base, total = self.read(args[0], env, known), tm.ONE
            for _ in range(args[1].value):
                total = tm.times(total, base)
            return total
        if fn in ex.COMPARISON or fn in ex.LOGIC:
            return self.truth(Call(fn, tuple(args)), env, known)
        values = [self.read(a, env, known) for a in args]
        match fn:
            case "+":
                return values[0] + values[1]
            case "-":
                return values[0] + tm.scaled(values[1], -1)
            case "*":
                return tm.times(values[0], values[1])
            case "/":
                return tm.times(values[0], tm.of(Applied("recip", (values[1],))))
        return tm.of(Applied(fn, tuple(values)))

    def load(self, e: Load, env: Env, known: Facts) -> Sum:
        slots: Slots | None = self.instance.operands.get(e.tensor)
        axes = slots.flat if slots is not None else self.instance.let(e.tensor).axes
        extents = [self.instance.extents[a] for a in axes]
        positions = [position(i, env) for i in e.index]
        inside: list[Size] = []
        if e.outside is not None:
            for i, p, n in zip(e.index, positions, extents, strict=True):
                if not (isinstance(i, Index) and self.instance.extents.get(i.name) == n):
                    inside += [g for g in (p, n - 1 - p)
                               if not self.reader.integers.implied(known, g)]  # fmt: skip
        found = self.element(e.tensor, positions, known.union(inside))
        if e.outside is None:
            return found
        total = tm.guarded(found, inside)
        for before, g in enumerate(inside):  # the outside, in disjoint pieces
            piece = frozenset({*inside[:before], negation(g)})
            outer = self.read(e.outside, env, known | piece)
            total += tm.guarded(outer, piece)
        return total

    def element(self, tensor: str, positions: Sequence[Size], known: Facts) -> Sum:
        if tensor not in self.sources:
            return self.let(
                tensor, dict(zip(self.instance.let(tensor).axes, positions, strict=True)), known
            )
        source, slots = self.sources[tensor], self.instance.operands[tensor]
        index: list[Size] = [0] * len(source.shape)
        flat = iter(positions)
        for axes, dim in zip(slots.axes, slots.dims, strict=True):
            place: Size = 0
            for a in axes:
                place = place * self.instance.extents[a] + next(flat)
            index[dim] = place
        return self.reader.at(source, index, known)

    # -- tests ----------------------------------------------------------------------------------
    def select(self, test: Expr, then: Expr, other: Expr, env: Env, known: Facts) -> Sum:
        if about_positions(test):
            total: Sum = ()
            for branch, side in ((then, True), (other, False)):
                for guards in cases(test, env, side):
                    facts = known | guards
                    if self.reader.integers.feasible(facts):
                        total += tm.guarded(self.read(branch, env, facts), guards)
            return total
        yes = self.truth(test, env, known)
        no = tm.ONE + tm.scaled(yes, -1)
        a, b = self.read(then, env, known), self.read(other, env, known)
        return tm.times(yes, a) + tm.times(no, b)

    def truth(self, test: Expr, env: Env, known: Facts) -> Sum:
        """A test of values as a number, 0 or 1."""
        if about_positions(test):
            return tuple(t for g in cases(test, env, True) for t in tm.guarded(tm.ONE, g))
        match test:
            case Call("not", (x,)):
                return tm.ONE + tm.scaled(self.truth(x, env, known), -1)
            case Call("and" | "or" as fn, (a, b)):
                p, q = self.truth(a, env, known), self.truth(b, env, known)
                both = tm.times(p, q)
                return both if fn == "and" else p + q + tm.scaled(both, -1)
            case Call("<" | "<=" | "==" as fn, (a, b)):
                u, v = self.read(a, env, known), self.read(b, env, known)
                if fn == "<=":  # not (v < u)
                    below = tm.of(Applied("<0", (v + tm.scaled(u, -1),)))
                    return tm.ONE + tm.scaled(below, -1)
                name = "<0" if fn == "<" else "==0"
                return tm.of(Applied(name, (u + tm.scaled(v, -1),)))
        raise Unreadable(f"{ex.show(test)} is no test")


def few_positions(extents: Sequence[Size]) -> list[tuple[int, ...]] | None:
    """Every position in extents that are few numbers; None where they are not."""
    if not all(isinstance(n, int) and n <= _FEW for n in extents):
        return None
    if math.prod(int(str(n)) for n in extents) > _WRITTEN:
        return None
    return list(itertools.product(*(range(int(str(n))) for n in extents)))


def position(e: Expr, env: Env) -> Size:
    """An index expression as a polynomial. Raises `Unreadable` where it is none."""
    match e:
        case Num(value) if not isinstance(value, float):
            return value
        case Index(name):
            return env[name]
        case Call(fn, (a, b)) if fn in ("+", "-", "*", "//", "%"):
            x, y = position(a, env), position(b, env)
            match fn:
                case "+":
                    return x + y
                case "-":
                    return x - y
                case "*":
                    return x * y
                case "//":
                    return x // y
            return x - (x // y) * y
    raise Unreadable(f"{ex.show(e)} is no affine index")


def cases(test: Expr, env: Env, side: bool) -> list[frozenset[Size]]:
    """Disjoint sets of guards that together say that `test` is `side`."""
    match test:
        case Num(value):
            return [frozenset()] if bool(value) == side else []
        case Call("not", (x,)):
            return cases(x, env, not side)
        case Call("and" | "or" as fn, (a, b)):
            both = side == (fn == "and")
            yes, rest = cases(a, env, side), cases(b, env, side)
            if both:
                return [p | q for p in yes for q in rest]
            return yes + [p | q for p in cases(a, env, not side) for q in rest]
        case Call("<" | "<=" | "==" as fn, (a, b)):
            gap = position(b, env) - position(a, env)
            if fn == "==" and side:
                return [frozenset({gap, -gap})]
            if fn == "==":
                return [frozenset({gap - 1}), frozenset({-gap - 1})]
            g = gap - 1 if fn == "<" else gap
            return [frozenset({g if side else negation(g)})]
    raise Unreadable(f"{ex.show(test)} is no test of positions")


def about_positions(test: Expr) -> bool:
    """Whether a test is about indices and sizes alone."""
    match test:
        case Num() | Index():
            return True
        case Call(fn, args):
            return (
                fn in ex.COMPARISON or fn in ex.LOGIC or fn in ("+", "-", "*", "//", "%")
            ) and all(map(about_positions, args))
    return False
