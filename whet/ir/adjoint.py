"""Backward records, derived: the gradient of any operand of any operator.

    adjoint(instance, operand)      an instance over the forward operands and the cotangents d<out>
    TABLE: "<op>~<operand>"         the same as an operator, found by name: conv2d~w, softmax~x

Reverse mode through a record's assignments. From the last to the first, each passes the cotangent
of what it defines on to what it reads, by the rule of the expression that stands in between:

    a + b              dy to both                     sum[r](a)    dy, inside the loop r
    a * b              dy*b to a, dy*a to b           max[r](a)    dy, where a first is maximal
    fn(a)              dy*fn'(a), see `functions`     prod[r](a)   dy * product of all others
    a if test else b   dy to the branch taken         u[E, …]      a contribution to u at E, …

Contributions are then turned around (`inversion`): summed over the loops that are not fixed by
the element they go to. So a matrix product's adjoint is one, a convolution's is a convolution, a
gather's a scatter, a broadcast's a sum. At a kink the derivative is torch's: half to each side of a
tie of two tensors, none where a constant bound is met, the first of several maxima (torch's amax
shares it among them). An adjoint is an ordinary instance and has adjoints itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.errors import RecordError
from whet.ir.expr import (
    COMPARISON,
    LOGIC,
    ONE,
    ZERO,
    Call,
    Expr,
    Index,
    Load,
    Num,
    Reduce,
    Select,
    call,
    free,
    loads,
    rebuild,
    select,
    substitute,
    walk,
)  # fmt: skip
from whet.ir.functions import FUNCTIONS
from whet.ir.inversion import Term, invert
from whet.ir.ops import Operator, operator
from whet.ir.record import Instance, Let, Record, Shape, Slots
from whet.ir.types import Size, product


def adjoint(instance: Instance, operand: str, present: Collection[str] | None = None) -> Instance:
    """The gradient of one operand, as an instance.

    Args:
        instance: the forward operator at known ranks.
        operand: which operand's gradient; one that the result does not depend on smoothly has
            gradient zero.
        present: results whose cotangent is given (all by default); the others' count as zero.

    Returns:
        An instance whose operands are the forward ones, then a cotangent `d<out>` for each result
        in `present`, and whose only result is `d<operand>`, of the operand's shape.

    Raises:
        RecordError: the instance has no such operand.
    """
    if operand not in instance.operands:
        raise RecordError(
            f"operator {instance.name} has no operand {operand} here",
            expected=", ".join(instance.operands), got=operand,
        )  # fmt: skip
    outs = instance.outs if present is None else [o for o in instance.outs if o in present]
    return _Reverse(instance, operand, outs).instance()


@dataclass(frozen=True, slots=True)
class Backward(Operator):
    """The gradient of one operand of an operator, as an operator.

    It takes the forward operands, then a cotangent for each result (None where it is zero), and
    the forward attributes.
    """

    forward: Operator | None = None
    operand: str = ""

    def bind(self, shapes: Sequence[Shape | None], attrs: Mapping[str, object]) -> Instance:
        assert self.forward is not None
        count = _result_count(self.forward)
        if len(shapes) <= count:
            raise RecordError(
                f"operator {self.name} takes its forward operands, then {count} cotangents",
                got=f"{len(shapes)} operands",
            )
        forward = self.forward.bind(shapes[:-count], attrs)
        present = dict(zip(forward.outs, shapes[-count:], strict=True))
        for out, shape in present.items():
            if shape is not None and shape != forward.shape(out):
                raise RecordError(
                    f"operator {self.name}: cotangent d{out} has another shape than {out}",
                    expected=list(forward.shape(out)), got=list(shape),
                )  # fmt: skip
        return adjoint(forward, self.operand, [o for o, s in present.items() if s is not None])


def backward(name: str) -> Backward:
    """The operator called `<op>~<operand>`. Raises `RecordError` where there is no `<op>`."""
    forward, _, operand = name.rpartition("~")
    return Backward(name, forward=operator(forward), operand=operand)


def _result_count(op: Operator) -> int:
    return 1 if op.record is None else len(op.record.outs)


class _Reverse:
    """The state of one derivation; `instance()` is the result."""

    def __init__(self, forward: Instance, operand: str, outs: Collection[str]) -> None:
        self.forward = forward
        self.operand = operand
        self.extents: dict[str, Size] = dict(forward.extents)
        self.names = {*forward.operands, *(x.name for x in forward.lets)}
        self.cotangents = {o: self._name(f"d{o}") for o in outs}
        self.extra: list[Let] = []  # forward values that the backward pass wants by name
        self.known: dict[Expr, Load] = {
            x.body: Load(x.name, _indices(x.axes)) for x in forward.lets if _composed(x.body)
        }
        self.active = {operand}
        for x in forward.lets:
            if self._touches(x.body):
                self.active.add(x.name)
        self.terms: dict[str, list[Term]] = {}
        self.lets: list[Let] = []

    def instance(self) -> Instance:
        forward = self.forward
        for x in reversed(forward.lets):
            if x.name in self.active:
                self._reverse(x)
        slots = self._apart(forward.operands[self.operand])
        result = self._name(f"d{self.operand}")
        total = self._total(self.operand, slots.flat)
        self.lets.append(Let(result, slots.flat, Num(0.0) if total is None else total))
        lets = _needed([*forward.lets, *self.extra, *self.lets], result)
        cotangents = {d: forward.results[o] for o, d in self.cotangents.items()}
        operands = {**forward.operands, **cotangents}
        used = {a for x in lets for a in (*x.axes, *_bound(x.body))}
        used |= {a for s in (*operands.values(), slots) for a in s.flat}
        return Instance(
            f"{forward.name}~{self.operand}", (result,),
            {a: n for a, n in self.extents.items() if a in used},
            operands, lets, {result: slots}, forward.guards,
        )  # fmt: skip

    def _apart(self, slots: Slots) -> Slots:
        """The operand's dims as the result's: an axis that they share (a diagonal) is two there."""
        seen: set[str] = set()
        axes = []
        for group in slots.axes:
            axes.append(tuple(self._axis(a) if a in seen else a for a in group))
            seen.update(group)
        return Slots(tuple(axes), slots.dims)

    def _reverse(self, let: Let) -> None:
        """Pass the cotangent of what `let` defines on to what it reads."""
        total = self._total(let.name, let.axes)
        given = self.cotangents.get(let.name)
        if given is not None:
            load = Load(given, _indices(let.axes))
            total = load if total is None else call("+", load, total)
        if total is None:
            return
        if not isinstance(total, Load):
            name = self._name(f"d{let.name}")
            self.lets.append(Let(name, let.axes, total))
            total = Load(name, _indices(let.axes))
        for term in self._pull(let.body, total, (), let.axes):
            self.terms.setdefault(term.tensor, []).append(term)

    def _total(self, tensor: str, axes: tuple[str, ...]) -> Expr | None:
        """The sum of all contributions to element `axes` of a tensor."""
        total: Expr | None = None
        for term in self.terms.get(tensor, ()):
            turned = invert(term, axes, self.extents)
            value = turned.value
            if turned.guards:
                value = select(functools.reduce(_both, turned.guards), value, ZERO)
            if turned.axes:
                value = Reduce("sum", turned.axes, value)
            total = value if total is None else call("+", total, value)
        return total

    # -- the chain rule --------------------------------------------------------------------------
    def _pull(
        self, e: Expr, cot: Expr, guards: tuple[Expr, ...], axes: tuple[str, ...]
    ) -> Iterator[Term]:
        """Contributions of `e` to the tensors that it reads, given the cotangent of `e`."""
        if not self._touches(e):
            return
        match e:
            case Load(tensor, index, outside):
                if tensor in self.active:
                    at = tuple(map(self._value, index))
                    yield Term(tensor, at, cot, guards, axes)
                if outside is not None:
                    beyond = call("not", self._inside(e))
                    yield from self._pull(outside, cot, (*guards, beyond), axes)
            case Select(test, then, other):
                test = self._value(test)
                yield from self._pull(then, cot, (*guards, test), axes)
                yield from self._pull(other, cot, (*guards, call("not", test)), axes)
            case Reduce(kind, bound, body):
                inner = (*axes, *bound)
                if kind == "sum":
                    yield from self._pull(body, cot, guards, inner)
                elif kind == "prod":
                    rest = call("*", cot, self._others(e))
                    yield from self._pull(body, rest, guards, inner)
                else:
                    first = call("==", self._number(bound), self._first(e))
                    yield from self._pull(body, cot, (*guards, first), inner)
            case Call(fn, args):
                for a, share in zip(args, self._chain(fn, args, e, cot), strict=True):
                    for tests, value in _branches(share):
                        if value != ZERO:
                            yield from self._pull(a, value, (*guards, *tests), axes)

    def _chain(self, fn: str, args: tuple[Expr, ...], e: Expr, cot: Expr) -> tuple[Expr, ...]:
        """Cotangents of a call's arguments; see `functions` for all but the arithmetic."""
        values = tuple(map(self._value, args))
        y = self._value(e)
        match fn, values:
            case "+", _:
                return cot, cot
            case "-", _:
                return cot, call("*", cot, Num(-1))
            case "*", (a, b):
                return _times(cot, b), _times(cot, a)
            case "/", (_, b):
                share = call("/", cot, b)
                return share, call("*", call("*", share, y), Num(-1))
            case "**", (a, Num(int(n))):
                power = a if n == 2 else call("**", a, Num(n - 1))
                return call("*", call("*", cot, Num(n)), power), ZERO
            case "**", _:
                fn = "pow"
            case "%", (a, b):
                return cot, call("*", call("*", cot, call("//", a, b)), Num(-1))
            case "maximum" | "minimum", (a, b) if isinstance(a, Num) or isinstance(b, Num):
                below, above = (a, b) if fn == "minimum" else (b, a)
                first = select(call("<", below, above), cot, ZERO)
                return (first, ZERO) if isinstance(b, Num) else (ZERO, first)
        if fn in COMPARISON or fn in LOGIC or fn == "//":
            return (ZERO,) * len(args)
        partials = _derivative(fn)
        if partials is None:
            return (ZERO,) * len(args)
        where = dict(zip("xz", values, strict=False)) | {"y": y}
        return tuple(_times(cot, _filled(p, where)) for p in partials)

    def _touches(self, e: Expr) -> bool:
        """Does the value of `e` depend smoothly on an active tensor?"""
        match e:
            case Load(tensor, _, outside):
                return tensor in self.active or (outside is not None and self._touches(outside))
            case Select(_, then, other):
                return self._touches(then) or self._touches(other)
            case Reduce(_, _, body):
                return self._touches(body)
            case Call(fn, args):
                function = FUNCTIONS.get(fn)
                flat = fn in COMPARISON or fn in LOGIC or fn == "//"
                if flat or (function is not None and function.derivative is None):
                    return False
                return any(map(self._touches, args))
        return False

    # -- forward values --------------------------------------------------------------------------
    def _value(self, e: Expr) -> Expr:
        """`e` without reductions: each gets a name, and what has a name is loaded."""
        if e in self.known:
            return self.known[e]
        if isinstance(e, Reduce):
            return self._named(e, "f")
        return rebuild(e, self._value)

    def _named(self, e: Expr, stem: str) -> Load:
        if e not in self.known:
            axes = tuple(a for a in self.extents if a in free(e))
            let = Let(self._name(stem), axes, e)
            self.extra.append(let)
            self.known[e] = Load(let.name, _indices(axes))
        return self.known[e]

    def _first(self, e: Reduce) -> Expr:
        """Row-major number of the first element of a reduction that attains its extremum."""
        best, body = self._value(e), self._value(e.body)
        count = Num(product(self.extents[a] for a in e.axes))
        hit = select(call("==", body, best), self._number(e.axes), count)
        return self._named(Reduce("min", e.axes, hit), "p")

    def _others(self, e: Reduce) -> Expr:
        """The product of all elements of a reduction but one; no division, so zeros are no harm."""
        fresh = {a: self._axis(a) for a in e.axes}
        same = [call("==", Index(b), Index(a)) for a, b in fresh.items()]
        body = substitute(self._value(e.body), {a: Index(b) for a, b in fresh.items()})
        rest = select(functools.reduce(_both, same), ONE, body)
        return self._named(Reduce("prod", tuple(fresh.values()), rest), "o")

    def _number(self, axes: tuple[str, ...]) -> Expr:
        total: Expr = ZERO
        for a in axes:
            total = call("+", call("*", total, Num(self.extents[a])), Index(a))
        return total

    def _inside(self, load: Load) -> Expr:
        tests = [
            _both(call("<=", ZERO, e), call("<", e, Num(n)))
            for e, n in zip(load.index, self.forward.sizes(load.tensor), strict=True)
        ]
        return functools.reduce(_both, tests)

    def _axis(self, like: str) -> str:
        name = like + "_"
        while name in self.extents:
            name += "_"
        self.extents[name] = self.extents[like]
        return name

    def _name(self, stem: str) -> str:
        while stem in self.names:
            stem += "_"
        self.names.add(stem)
        return stem


def _indices(axes: tuple[str, ...]) -> tuple[Expr, ...]:
    return tuple(map(Index, axes))


def _composed(e: Expr) -> bool:
    return isinstance(e, (Call, Reduce))


def _both(a: Expr, b: Expr) -> Expr:
    return call("and", a, b)


def _times(cot: Expr, factor: Expr) -> Expr:
    """`cot * factor`, kept out of selections: a guard selects, it never multiplies."""
    if isinstance(factor, Select):
        return select(factor.test, _times(cot, factor.then), _times(cot, factor.other))
    if factor in (ZERO, ONE):
        return ZERO if factor == ZERO else cot
    return call("*", cot, factor)


def _branches(e: Expr) -> Iterator[tuple[tuple[Expr, ...], Expr]]:
    """A selection as (tests, value) pairs."""
    if isinstance(e, Select):
        for tests, value in _branches(e.then):
            yield (e.test, *tests), value
        for tests, value in _branches(e.other):
            yield (call("not", e.test), *tests), value
    else:
        yield (), e


@functools.cache
def _derivative(fn: str) -> tuple[Expr, ...] | None:
    """Partial derivatives of a scalar function, as expressions over loads of x, z and y."""
    texts = FUNCTIONS[fn].derivative
    if texts is None:
        return None
    found = []
    for text in texts:
        body = re.sub(r"\b([xzy])\b", r"\1[()]", text)
        record = Record(f"d = derivative(x[()], z[()], y[()])\nd[()] = {body}")
        found.append(record.bind(((), (), ()), {}).let("d").body)
    return tuple(found)


def _filled(e: Expr, where: Mapping[str, Expr]) -> Expr:
    if isinstance(e, Load):
        return where[e.tensor]
    return rebuild(e, lambda x: _filled(x, where))


def _bound(e: Expr) -> Iterator[str]:
    return (a for x in walk(e) if isinstance(x, Reduce) for a in x.axes)


def _needed(lets: list[Let], result: str) -> tuple[Let, ...]:
    """The assignments that `result` depends on, in order."""
    wanted, kept = {result}, []
    for x in reversed(lets):
        if x.name in wanted:
            kept.append(x)
            wanted |= {load.tensor for load in loads(x.body)}
    return tuple(reversed(kept))
