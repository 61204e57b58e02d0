"""Records written out in ONNX: index notation through operators that every runtime has.

    written(writer, instance, out, dtype, operands) → name

Every value carries the record's axes, so that values align by name. What depends on indices alone
is computed while writing and stands in the file as data: where a window reads, what a guard hides.
A load at plain indices is the tensor itself; at others it is gathered along its dims. A sum of
products of two tensors is one Einsum.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.backend.aten import torch_dtype
from whet.capture.onnx.pointwise import BINARY, UNARY
from whet.capture.onnx.writer import Writer
from whet.errors import UnsupportedError
from whet.ir import expr as ex
from whet.ir.expr import ARITHMETIC, COMPARISON, LOGIC, Call, Expr, Index, Load, Reduce, Select
from whet.ir.functions import FUNCTIONS
from whet.ir.interp import NATIVE
from whet.ir.interp.body import Body
from whet.ir.kind import kind_of
from whet.ir.record import Instance, Slots
from whet.ir.types import DType, promote

_DTYPES: Mapping[torch.dtype, DType] = {torch_dtype(d): d for d in DType}
_NAMED = {ours: theirs for theirs, ours in (UNARY | BINARY).items()}
_REDUCED = {"sum": "ReduceSum", "prod": "ReduceProd", "max": "ReduceMax", "min": "ReduceMin"}
_COMPARED = {"<": "Less", "<=": "LessOrEqual", "==": "Equal"}
_PLAIN = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div", "**": "Pow"}
_BOTH = {"and": "And", "or": "Or"}
_OF_FLAGS = {"bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor", "bitwise_not": "Not"}


@dataclass(frozen=True, slots=True)
class Term:
    """A value with a dim for each of its axes.

    Attributes:
        name: in the file; empty where it is known.
        known: what depends on indices and numbers alone. Numbers without dims take the type of
            what they meet.
    """

    axes: tuple[str, ...]
    dtype: DType
    name: str = ""
    known: Tensor | None = None

    @property
    def weak(self) -> bool:
        return self.known is not None and not self.axes


def written(
    writer: Writer, instance: Instance, out: str, dtype: DType,
    operands: Mapping[str, tuple[str, DType]],
) -> str:  # fmt: skip
    """One result of an operator, or of a part of one.

    Args:
        instance: of concrete sizes.
        out: which result.
        dtype: its element type.
        operands: name in the file and element type of each.

    Raises:
        UnsupportedError: a function that ONNX has no way to say.
    """
    at = _Notation(writer, instance, operands)
    need = {out}
    lets = []
    for let in reversed(instance.lets):
        if let.name in need:
            need.update(x.tensor for x in ex.loads(let.body))
            lets.append(let)
    kinds: dict[str, DType] = {name: d for name, (_, d) in operands.items()}
    for let in lets[::-1]:
        kind = dtype if let.name == out else kind_of(instance, let.name, kinds)
        if kind.is_float and let.name not in instance.results:
            kind = at.float  # positions made of indices alone are as fine as the data
        term = at.typed(at.value(let.body), kind)
        at.terms[let.name] = Term(let.axes, kind, at.spread(term, let.axes))
    slots = instance.results[out]
    return at.closed(at.terms[out].name, slots)


class _Notation:
    """One record on its way."""

    def __init__(
        self, writer: Writer, instance: Instance, operands: Mapping[str, tuple[str, DType]]
    ) -> None:
        self.w = writer
        self.extents = {a: int(str(n)) for a, n in instance.extents.items()}
        self.terms: dict[str, Term] = {}
        floats = [d for _, d in operands.values() if d.is_float]
        self.float = promote(tuple(floats)) if floats else DType.f32
        span = {a: (0, n) for a, n in self.extents.items()}
        self.body = Body(NATIVE, {}, span, (), torch_dtype(self.float))
        for name, slots in instance.operands.items():
            given, dtype = operands[name]
            self.terms[name] = Term(slots.flat, dtype, self.opened(given, slots))

    # -- shapes ----------------------------------------------------------------------------------
    def size(self, axes: Sequence[str]) -> list[int]:
        return [self.extents[a] for a in axes]

    def opened(self, name: str, slots: Slots) -> str:
        """An operand with a dim for each atomic axis."""
        if slots.dims != tuple(range(len(slots.dims))):
            name = self.w.op("Transpose", name, perm=slots.dims)
        if all(len(group) == 1 for group in slots.axes):
            return name
        return self.w.reshape(name, self.size(slots.flat))

    def closed(self, name: str, slots: Slots) -> str:
        """The opposite, of a result."""
        if any(len(group) != 1 for group in slots.axes):
            name = self.w.reshape(name, [math.prod(self.size(g)) for g in slots.axes])
        inverse = tuple(slots.dims.index(d) for d in range(len(slots.dims)))
        if inverse == tuple(range(len(inverse))):
            return name
        return self.w.op("Transpose", name, perm=inverse)

    def along(self, v: Term, axes: Sequence[str]) -> str:
        """A value with these dims, 1 where it does not vary; dims of 1 in front are left out."""
        order = [v.axes.index(a) for a in axes if a in v.axes]
        if v.known is not None:
            t = v.known.to(torch_dtype(v.dtype)).permute(order)
            return self.w.constant(t.reshape([self._dim(v, a) for a in axes]) if v.axes else t)
        name = v.name
        if order != list(range(len(order))):
            name = self.w.op("Transpose", name, perm=tuple(order))
        missing = [k for k, a in enumerate(axes) if a not in v.axes]
        if missing and v.axes and missing != list(range(len(missing))):
            name = self.w.op("Unsqueeze", name, self.w.ints(*missing))
        return name

    def _dim(self, v: Term, axis: str) -> int:
        return self.extents[axis] if axis in v.axes else 1

    def spread(self, v: Term, axes: Sequence[str]) -> str:
        """A value that really has these dims."""
        if set(axes) == set(v.axes):
            return self.along(v, axes)
        return self.w.op("Expand", self.along(v, axes), self.w.ints(*self.size(axes)))

    # -- types -----------------------------------------------------------------------------------
    def typed(self, v: Term, dtype: DType) -> Term:
        if v.dtype is dtype:
            return v
        if v.known is not None:
            return Term(v.axes, dtype, known=v.known.to(torch_dtype(dtype)))
        return Term(v.axes, dtype, self.w.cast(v.name, v.dtype, dtype))

    def lifted(self, v: Term) -> Term:
        """As a number of the computation's float type."""
        return self.typed(v, self.float)

    def alike(self, *values: Term) -> tuple[Term, ...]:
        """All floats, or all int64, or all bool."""
        if any(v.dtype.is_float for v in values):
            return tuple(map(self.lifted, values))
        if all(v.dtype is DType.bool for v in values):
            return values
        return tuple(self.typed(v, DType.i64) for v in values)

    def apply(self, op: str, dtype: DType, *values: Term, **attributes: object) -> Term:
        """An element-wise operator of ONNX."""
        ranked = sorted(values, key=lambda v: -len(v.axes))
        axes = tuple(dict.fromkeys(a for v in ranked for a in v.axes))
        return Term(
            axes, dtype, self.w.op(op, *(self.along(v, axes) for v in values), **attributes)
        )

    # -- expressions -----------------------------------------------------------------------------
    def value(self, e: Expr) -> Term:
        if not any(True for _ in ex.loads(e)):
            with self.body.hiding():
                found = self.body.value(e)
            return Term(found.axes, _DTYPES[found.t.dtype], known=found.t)
        match e:
            case Load():
                return self.load(e)
            case Reduce():
                return self.reduce(e)
            case Select(test, then, other):
                truth = self.truth(self.value(test))
                if then == ex.ONE and other == ex.ZERO:
                    return truth
                a, b = self.alike(self.value(then), self.value(other))
                return self.where(truth, a, b)
            case Call(fn, args):
                return self.call(fn, [self.value(x) for x in args], args)
        raise TypeError(f"not an expression: {e!r}")

    def truth(self, v: Term) -> Term:
        if v.dtype is DType.bool:
            return v
        if v.known is not None:
            return Term(v.axes, DType.bool, known=v.known != 0)
        zero = Term((), v.dtype, known=torch.zeros((), dtype=torch_dtype(v.dtype)))
        return self.apply("Not", DType.bool, self.apply("Equal", DType.bool, v, zero))

    def where(self, test: Term, then: Term, other: Term) -> Term:
        if test.known is not None and bool(test.known.all()):
            return then
        return self.apply("Where", then.dtype, test, then, other)

    # -- loads -----------------------------------------------------------------------------------
    def load(self, e: Load) -> Term:
        t = self.terms[e.tensor]
        shape = self.size(t.axes)
        names = [i.name if isinstance(i, Index) else "" for i in e.index]
        plain = len(set(names)) == len(names) and all(
            n and self.extents[n] == s for n, s in zip(names, shape, strict=True)
        )
        if plain:
            return Term(tuple(names), t.dtype, t.name)
        index, inside = [], []
        for i, n in zip(e.index, shape, strict=True):
            v = self.typed(self.value(i), DType.i64)
            at, ok = self.bounded(v, n)
            index.append(at)
            if ok is not None:
                inside.append(ok)
        found = self.gathered(t, shape, index)
        if e.outside is None or not inside:
            return found
        found, outside = self.alike(found, self.value(e.outside))
        for ok in inside:
            found = self.where(ok, found, outside)
        return found

    def bounded(self, v: Term, size: int) -> tuple[Term, Term | None]:
        """An index that stays in the tensor, and where it did by itself; None: everywhere."""
        if v.known is not None:
            ok = (v.known >= 0) & (v.known < size)
            if bool(ok.all()):
                return v, None
            clamped = v.known.clamp(0, max(size - 1, 0))
            return Term(v.axes, DType.i64, known=clamped), Term(v.axes, DType.bool, known=ok)
        zero, last = (Term((), DType.i64, known=torch.tensor(k)) for k in (0, max(size - 1, 0)))
        low = self.apply("LessOrEqual", DType.bool, zero, v)
        high = self.apply("LessOrEqual", DType.bool, v, last)
        at = self.apply("Min", DType.i64, self.apply("Max", DType.i64, v, zero), last)
        return at, self.apply("And", DType.bool, low, high)

    def gathered(self, t: Term, shape: Sequence[int], index: Sequence[Term]) -> Term:
        """A tensor at an index for each dim: one by one, jointly where they share axes."""
        shared = [
            k for k, i in enumerate(index)
            if any(set(i.axes) & set(o.axes) for n, o in enumerate(index) if n != k)
        ]  # fmt: skip
        alone = [k for k in range(len(index)) if k not in shared]
        name = t.name
        if shared and shared != list(range(len(shape) - len(shared), len(shape))):
            name = self.w.op("Transpose", name, perm=(*alone, *shared))
        axes: list[str] = []
        at = 0
        for k in alone:
            i = index[k]
            line = torch.arange(shape[k])
            if not (i.known is not None and len(i.axes) == 1 and torch.equal(i.known, line)):
                name = self.w.op("Gather", name, self.along(i, i.axes), axis=at)
            at += len(i.axes)
            axes += i.axes
        if not shared:
            return Term(tuple(axes), t.dtype, name)
        flat = Term((), DType.i64, known=torch.tensor(0))
        for k in shared:
            scale = Term((), DType.i64, known=torch.tensor(shape[k]))
            flat = self.sum_of(self.times(flat, scale), index[k])
        name = self.w.reshape(name, (*self.size(axes), math.prod(shape[k] for k in shared)))
        name = self.w.op("Gather", name, self.along(flat, flat.axes), axis=at)
        return Term((*axes, *flat.axes), t.dtype, name)

    def times(self, a: Term, b: Term) -> Term:
        if a.known is not None and b.known is not None and not b.axes:
            return Term(a.axes, a.dtype, known=a.known * b.known)
        return self.apply("Mul", a.dtype, a, b)

    def sum_of(self, a: Term, b: Term) -> Term:
        if a.known is not None and b.known is not None:
            axes = tuple(dict.fromkeys((*a.axes, *b.axes)))
            x, y = (self._spread(v, axes) for v in (a, b))
            return Term(axes, a.dtype, known=x + y)
        return self.apply("Add", a.dtype, a, b)

    def _spread(self, v: Term, axes: Sequence[str]) -> Tensor:
        assert v.known is not None
        t = v.known.permute([v.axes.index(a) for a in axes if a in v.axes])
        return t.reshape([self._dim(v, a) for a in axes])

    # -- reductions ------------------------------------------------------------------------------
    def reduce(self, e: Reduce) -> Term:
        if e.kind == "sum" and isinstance(e.body, Call) and e.body.fn == "*":
            a, b = self.alike(*(self.value(x) for x in e.body.args))
            if not a.weak and not b.weak and a.dtype.is_float:
                return self.einsum(a, b, e.axes)
            v = self.arithmetic("*", a, b)
        else:
            v = self.value(e.body)
        if v.dtype is DType.bool or (e.kind in ("sum", "prod") and not v.dtype.is_float):
            v = self.typed(v, DType.i64)
        axes = (*(a for a in v.axes if a not in e.axes), *e.axes)
        name = self.spread(v, axes)
        left = axes[: len(axes) - len(e.axes)]
        where = self.w.ints(*range(len(left), len(axes)))
        return Term(left, v.dtype, self.w.op(_REDUCED[e.kind], name, where, keepdims=0))

    def einsum(self, a: Term, b: Term, axes: Sequence[str]) -> Term:
        """A sum of products; axes that neither has count as often as they are long."""
        every = tuple(dict.fromkeys((*a.axes, *b.axes)))
        letter = dict(zip(every, string.ascii_letters, strict=False))
        left = tuple(x for x in every if x not in axes)
        row = ["".join(letter[x] for x in v.axes) for v in (a, b)]
        equation = f"{row[0]},{row[1]}->{''.join(letter[x] for x in left)}"
        name = self.w.op("Einsum", self.along(a, a.axes), self.along(b, b.axes), equation=equation)
        found = Term(left, a.dtype, name)
        times = math.prod(self.size([x for x in axes if x not in every]))
        if times == 1:
            return found
        return self.apply("Mul", a.dtype, found, self.typed(_integer(times), a.dtype))

    # -- calls -----------------------------------------------------------------------------------
    def call(self, fn: str, values: Sequence[Term], args: Sequence[Expr]) -> Term:
        if fn in ARITHMETIC:
            return self.arithmetic(fn, *values)
        if fn in COMPARISON:
            a, b = self.alike(*values)
            if a.dtype is DType.bool:
                a, b = self.typed(a, DType.i64), self.typed(b, DType.i64)
            return self.apply(_COMPARED[fn], DType.bool, a, b)
        if fn in LOGIC:
            tests = [self.truth(v) for v in values]
            return self.apply("Not" if fn == "not" else _BOTH[fn], DType.bool, *tests)
        kind = FUNCTIONS[fn].kind
        if kind == "float":
            values = [self.lifted(v) for v in values]
        else:
            values = self.alike(*values)
        made = self.function(fn, values)
        return Term(made.axes, DType.bool if kind == "bool" else values[0].dtype, made.name)

    def function(self, fn: str, values: Sequence[Term]) -> Term:
        """A scalar function: under its name, or by others."""
        dtype = values[0].dtype
        if dtype is DType.bool and fn in _OF_FLAGS:
            return self.apply(_OF_FLAGS[fn], dtype, *values)
        if fn in _NAMED:
            return self.apply(_NAMED[fn], dtype, *values)
        if fn in _OTHERS:
            return _OTHERS[fn](self, *values)
        raise UnsupportedError(f"ONNX has no function {fn}", expected="; ".join(sorted(_OTHERS)))

    def number(self, value: float) -> Term:
        return Term((), self.float, known=torch.tensor(value, dtype=torch_dtype(self.float)))

    def arithmetic(self, fn: str, a: Term, b: Term) -> Term:
        if fn == "/":
            a, b = self.lifted(a), self.lifted(b)
        a, b = self.alike(a, b)
        if a.dtype is DType.bool:
            a, b = self.typed(a, DType.i64), self.typed(b, DType.i64)
        dtype = a.dtype
        if fn in _PLAIN:
            return self.apply(_PLAIN[fn], dtype, a, b)
        if not dtype.is_float:
            rest = self.apply("Mod", dtype, a, b)
            if fn == "%":
                return rest
            return self.apply("Div", dtype, self.apply("Sub", dtype, a, rest), b)
        whole = self.apply("Floor", dtype, self.apply("Div", dtype, a, b))
        if fn == "//":
            return whole
        return self.apply("Sub", dtype, a, self.apply("Mul", dtype, whole, b))


def _integer(value: int) -> Term:
    return Term((), DType.i64, known=torch.tensor(value))


# -- functions that ONNX has no name for -----------------------------------------------------------
def _expm1(at: _Notation, x: Term) -> Term:
    """tanh(x/2) * (exp(x) + 1), which does not cancel."""
    half = at.apply("Tanh", x.dtype, at.apply("Mul", x.dtype, x, at.number(0.5)))
    grown = at.apply("Add", x.dtype, at.apply("Exp", x.dtype, x), at.number(1))
    return at.apply("Mul", x.dtype, half, grown)


def _log1p(at: _Notation, x: Term) -> Term:
    """log(1 + x); where 1 + x was rounded, times x over what was really added."""
    u = at.apply("Add", x.dtype, x, at.number(1))
    log, added = at.apply("Log", x.dtype, u), at.apply("Sub", x.dtype, u, at.number(1))
    scaled = at.apply("Div", x.dtype, at.apply("Mul", x.dtype, log, x), added)
    lost = at.apply("Equal", DType.bool, u, at.number(1))
    exact = at.apply("Equal", DType.bool, added, x)
    return at.where(lost, x, at.where(exact, log, scaled))


def _scaled_log(base: float) -> Callable[[_Notation, Term], Term]:
    return lambda at, x: at.apply(
        "Div", x.dtype, at.apply("Log", x.dtype, x), at.number(math.log(base))
    )


def _exp2(at: _Notation, x: Term) -> Term:
    return at.apply("Pow", x.dtype, at.number(2), x)


def _rsqrt(at: _Notation, x: Term) -> Term:
    return at.apply("Reciprocal", x.dtype, at.apply("Sqrt", x.dtype, x))


def _trunc(at: _Notation, x: Term) -> Term:
    if not x.dtype.is_float:
        return x
    size = at.apply("Floor", x.dtype, at.apply("Abs", x.dtype, x))
    return at.apply("Mul", x.dtype, at.apply("Sign", x.dtype, x), size)


def _either(op: str) -> Callable[[_Notation, Term, Term], Term]:
    return lambda at, a, b: at.apply(op, a.dtype, a, b)


def _fmod(at: _Notation, a: Term, b: Term) -> Term:
    return at.apply("Mod", a.dtype, a, b, fmod=1)


def _isinf(at: _Notation, x: Term) -> Term:
    return at.apply("IsInf", DType.bool, at.lifted(x))


_OTHERS: Mapping[str, Callable[..., Term]] = {
    "expm1": _expm1, "log1p": _log1p, "exp2": _exp2, "log2": _scaled_log(2),
    "log10": _scaled_log(10), "rsqrt": _rsqrt, "trunc": _trunc, "fmod": _fmod, "isinf": _isinf,
    "maximum": _either("Max"), "minimum": _either("Min"), "pow": _either("Pow"),
}  # fmt: skip
