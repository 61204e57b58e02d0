"""Expressions of one instance, evaluated for all points of their axes at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from whet.ir import expr as ex
from whet.ir.expr import (
    ARITHMETIC,
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
)
from whet.ir.functions import FUNCTIONS
from whet.ir.interp.gathering import Form, gathered, strided
from whet.ir.interp.ring import Ring, exact_arithmetic, torch_function
from whet.ir.interp.summing import reduced
from whet.ir.interp.value import Value, union, where


class Body:
    """What expressions mean, given tensors for names and a range for each axis.

    Attributes:
        ring: where numbers live.
        tensors: each tensor with one dim for each atomic axis.
        span: first value and number of values of each axis.
        layout: axes of the assignment at hand; results are laid out in that order if it is free.
    """

    def __init__(
        self,
        ring: Ring,
        tensors: Mapping[str, Tensor],
        span: Mapping[str, tuple[int, int]],
        layout: Sequence[str],
        dtype: torch.dtype,
    ) -> None:
        self.ring, self.tensors, self.span, self.dtype = ring, tensors, dict(span), dtype
        self.layout = {a: k for k, a in enumerate(layout)}
        self._hidden = False

    def value(self, e: Expr) -> Value:
        """`e` at every point of the axes that it depends on."""
        match e:
            case Num(value):
                return self._number(value)
            case Index(name):
                start, size = self.span[name]
                return Value(torch.arange(start, start + size), (name,))
            case Load():
                return self._load(e)
            case Reduce():
                return reduced(self, e)
            case Select():
                return self._select(e)
            case Call(fn, args):
                return self._call(fn, args)
        raise TypeError(f"not an expression: {e!r}")

    # -- leaves ----------------------------------------------------------------------------------
    def _number(self, value: object) -> Value:
        if isinstance(value, float):
            return Value(self.ring.number(value, self.dtype), ())
        return Value(torch.tensor(int(str(value))), ())

    def _load(self, e: Load) -> Value:
        t = self.tensors[e.tensor]
        outside = None if e.outside is None else self.value(e.outside)
        if outside is not None and not outside.exact:
            t = self.ring.lift(t, self.dtype)
        forms = [_concrete(i) for i in e.index]
        if outside is None or not outside.axes:
            affine = [f for f in forms if f is not None]
            if len(affine) == len(forms):
                fill = None if outside is None else outside.t.item()
                return strided(t, affine, self.span, fill)
        index = [self.value(i) for i in e.index]
        if outside is not None:
            outside = self.lifted(outside) if t.is_floating_point() else outside
        return gathered(t, index, outside, hidden=self._hidden)

    @contextmanager
    def hiding(self, on: bool = True) -> Iterator[None]:
        """Within, loads may leave their tensor: a guard hides what they find there."""
        before, self._hidden = self._hidden, self._hidden or on
        try:
            yield
        finally:
            self._hidden = before

    # -- selection -------------------------------------------------------------------------------
    def _select(self, e: Select) -> Value:
        if e.then == ONE and e.other == ZERO:
            return self.value(e.test)
        axis = _split_axis(e.test)
        if axis is not None and axis in self.span and any(ex.loads(e)):
            return self._joined(axis, self._pieces(e, axis))
        test = self.value(e.test)
        with self.hiding():
            then, other = self._alike(self.value(e.then), self.value(e.other))
        return where(test, then, other)

    def _pieces(self, e: Expr, axis: str) -> list[tuple[Value, int]]:
        """Values of `e` over consecutive parts of `axis`, each where no test splits it."""
        start, size = self.span[axis]
        if not (isinstance(e, Select) and _split_axis(e.test) == axis):
            return [(self.value(e), size)] if size else []
        low, high = _interval(e.test)
        stop = start + size
        low, high = max(start, min(low, stop)), max(start, min(high, stop))
        high = max(low, high)
        pieces: list[tuple[Value, int]] = []
        parts = ((start, low, e.other), (low, high, e.then), (high, stop, e.other))
        for first, last, branch in parts:
            if first < last:
                self.span[axis] = (first, last - first)
                pieces += self._pieces(branch, axis)
        self.span[axis] = (start, size)
        return pieces

    def _joined(self, axis: str, pieces: Sequence[tuple[Value, int]]) -> Value:
        values = self._alike(*(v for v, _ in pieces))
        if not values:  # the axis is empty
            return Value(torch.zeros(0, dtype=self.dtype), (axis,))
        axes = union(values)
        axes = axes if axis in axes else (*axes, axis)
        parts = []
        for v, (_, n) in zip(values, pieces, strict=True):
            sizes = [n if a == axis else self.span[a][1] for a in axes]
            parts.append(v.along(axes).expand(sizes))
        return Value(torch.cat(parts, axes.index(axis)) if len(parts) > 1 else parts[0], axes)

    # -- calls -----------------------------------------------------------------------------------
    def _call(self, fn: str, args: Sequence[Expr]) -> Value:
        if fn == "**" and isinstance(args[1], Num) and isinstance(args[1].value, int):
            return self.power(self.value(args[0]), args[1].value)
        values: list[Value] = []
        for x in args:
            with self.hiding(bool(values) and fn in ("and", "or")):  # the first decides
                values.append(self.value(x))
        if fn in ARITHMETIC:
            return self.arithmetic(fn, *values)
        if fn in COMPARISON:
            a, b = self._alike(*values)
            axes = union((a, b))
            test = {"<": torch.lt, "<=": torch.le, "==": torch.eq}[fn]
            return Value(test(a.along(axes), b.along(axes)), axes)
        if fn in LOGIC:
            tests = [_truth(v) for v in values]
            if fn == "not":
                return Value(~tests[0].t, tests[0].axes)
            return self.both(*tests) if fn == "and" else self.either(*tests)
        if FUNCTIONS[fn].kind == "float":
            values = [self.lifted(v) for v in values]
        values = list(self._alike(*values))
        axes = union(values)
        given = [v.along(axes) for v in values]
        if values[0].exact:
            return Value(torch_function(fn)(*given), axes)
        return Value(self.ring.function(fn, given), axes)

    def arithmetic(self, fn: str, a: Value, b: Value) -> Value:
        """`a fn b`, in the integers where both are exact."""
        if fn == "/":
            a, b = self.lifted(a), self.lifted(b)
        a, b = self._alike(a, b)
        if a.t.dtype == torch.bool:
            a, b = (Value(v.t.to(torch.int64), v.axes) for v in (a, b))
        axes = union((a, b))
        do = exact_arithmetic if a.exact else self.ring.arithmetic
        return Value(do(fn, a.along(axes), b.along(axes)), axes)

    def integral(self, e: Expr) -> bool:
        """Whether `e` is certain to be an integer: made of indices and exact tensors alone."""
        return all(
            not isinstance(x.value, float) if isinstance(x, Num)
            else not self.tensors[x.tensor].is_floating_point() if isinstance(x, Load)
            else x.fn != "/" and x.fn not in FUNCTIONS if isinstance(x, Call)
            else True
            for x in ex.walk(e)
        )  # fmt: skip

    def truth(self, e: Expr) -> Value:
        """`e` as a truth value."""
        return _truth(self.value(e))

    def both(self, a: Value, b: Value) -> Value:
        """`a and b` of truth values."""
        axes = union((a, b))
        return Value(a.along(axes) & b.along(axes), axes)

    def either(self, a: Value, b: Value) -> Value:
        """`a or b` of truth values."""
        axes = union((a, b))
        return Value(a.along(axes) | b.along(axes), axes)

    def power(self, v: Value, exponent: int) -> Value:
        """`v ** exponent`."""
        if v.exact:
            return Value(torch.pow(v.t.to(torch.int64), exponent), v.axes)
        return Value(self.ring.power(self.lifted(v).t, exponent), v.axes)

    def lifted(self, v: Value) -> Value:
        """`v` as numbers of the ring, in the element type of the computation."""
        return Value(self.ring.lift(v.t, self.dtype), v.axes)

    def _alike(self, *values: Value) -> tuple[Value, ...]:
        """All numbers, or all int64, or all bool."""
        if any(not v.exact for v in values):
            return tuple(self.lifted(v) for v in values)
        if any(v.t.dtype != torch.bool for v in values):
            return tuple(Value(v.t.to(torch.int64), v.axes) for v in values)
        return values

    # -- what reductions ask ---------------------------------------------------------------------
    def neutral(self, kind: str, like: Tensor) -> float:
        """The neutral element of a reduction, as an element of `like`."""
        value = ex.REDUCTIONS[kind]
        if like.is_floating_point():
            return float(self.ring.number(value, like.dtype).item())
        if math.isinf(value):
            if like.dtype == torch.bool:
                return float(value > 0)
            limits = torch.iinfo(like.dtype)
            return limits.max if value > 0 else limits.min
        return value

    def order(self, axis: str) -> int:
        """Position of an axis in the result, outermost first."""
        return self.layout.get(axis, len(self.layout))

    def innermost(self, axes: Sequence[str]) -> str:
        """Of some axes, the one that lies innermost in the result."""
        known = [a for a in axes if a in self.layout]
        return max(known, key=self.order, default="")


def _truth(v: Value) -> Value:
    return v if v.t.dtype == torch.bool else Value(v.t != 0, v.axes)


def _concrete(e: Expr) -> Form | None:
    form = ex.affine(e)
    if form is None:
        return None
    return {a: int(str(c)) for a, c in form[0].items()}, int(str(form[1]))


def _split_axis(test: Expr) -> str | None:
    """The axis that a test compares with a number, if that is all it does."""
    match test:
        case Call("<" | "<=" | "==", (Index(name), Num(value))) if not isinstance(value, float):
            return name
        case Call("<" | "<=" | "==", (Num(value), Index(name))) if not isinstance(value, float):
            return name
    return None


def _interval(test: Expr) -> tuple[int, int]:
    """Values of the axis for which such a test is true: low <= axis < high."""
    far = 1 << 62
    match test:
        case Call("<", (Index(), Num(c))):
            return -far, int(str(c))
        case Call("<=", (Index(), Num(c))):
            return -far, int(str(c)) + 1
        case Call("<", (Num(c), Index())):
            return int(str(c)) + 1, far
        case Call("<=", (Num(c), Index())):
            return int(str(c)), far
        case Call("==", (Num(c), Index()) | (Index(), Num(c))):
            return int(str(c)), int(str(c)) + 1
    raise TypeError(f"not a test of one axis: {ex.show(test)}")
