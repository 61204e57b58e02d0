"""The naive loop nest of an operator, as data and as C.

    Nest      = name, (Buffer, ...), (Stmt, ...)
    Buffer    = name, sizes, C type, role            role: "in", "out" or "temporary"
    Stmt      = For(axis, extent, (Stmt, ...))
              | If(test, (Stmt, ...))                only where a guard hides a reduction
              | Declare(local, C type, Expr)
              | Combine(local, kind, Expr)           local = local kind Expr
              | Store(buffer, index, Expr)
    Expr      = whet.ir.expr without Reduce: a reduction is a local, read as a load with no index

One assignment of the record after the other, loops over its axes in order, a reduction as loops
around an accumulator in front of its use. Nothing is moved, fused or skipped: this is the program
that every schedule must equal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.errors import RecordError
from whet.ir import expr as ex
from whet.ir.expr import COMPARISON, LOGIC, Call, Expr, Index, Load, Num, Reduce, Select
from whet.ir.functions import FUNCTIONS
from whet.ir.kind import kind_of
from whet.ir.record import Instance
from whet.ir.types import DType, Size, product

CTYPES: Mapping[DType, str] = {
    DType.f64: "double", DType.f32: "float", DType.i64: "int64_t", DType.i32: "int32_t",
    DType.i16: "int16_t", DType.i8: "int8_t", DType.u8: "uint8_t", DType.bool: "uint8_t",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Buffer:
    """An array, row-major over the atomic axes of its tensor."""

    name: str
    sizes: tuple[Size, ...]
    dtype: DType
    role: str


@dataclass(frozen=True, slots=True)
class For:
    axis: str
    extent: Size
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class If:
    test: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Declare:
    local: str
    ctype: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Combine:
    local: str
    kind: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Store:
    buffer: str
    index: tuple[Expr, ...]
    value: Expr


Stmt = For | If | Declare | Combine | Store


@dataclass(frozen=True, slots=True)
class Nest:
    """A function over arrays: operands first, then results, both in the record's order."""

    name: str
    buffers: tuple[Buffer, ...]
    body: tuple[Stmt, ...]

    def buffer(self, name: str) -> Buffer:
        """The buffer called `name`."""
        return next(b for b in self.buffers if b.name == name)

    @property
    def parameters(self) -> tuple[Buffer, ...]:
        """What a caller passes: everything but temporaries."""
        return tuple(b for b in self.buffers if b.role != "temporary")


def nest(
    instance: Instance,
    dtypes: Mapping[str, DType] | None = None,
    results: Mapping[str, DType] | None = None,
) -> Nest:
    """The loop nest of an instance.

    Args:
        instance: sizes may be symbolic; only concrete ones can be printed as C.
        dtypes: element type of each operand; float64 where it is not said.
        results: element type of results where an attribute decides it (cast, full, arange).
    """
    given = dtypes or {}
    operands = {n: given.get(n, DType.f64) for n in instance.operands}
    buffers = [Buffer(n, instance.sizes(n), d, "in") for n, d in operands.items()]
    known = dict(operands)
    body: list[Stmt] = []
    names = itertools.count()
    for let in instance.lets:
        dtype = (results or {}).get(let.name) or kind_of(instance, let.name, operands)
        out = let.name in instance.results
        if not out and dtype.is_float and DType.f64 in operands.values():
            dtype = DType.f64  # positions made of indices alone are as fine as the data
        known[let.name] = dtype
        role = "out" if out else "temporary"
        buffers.append(Buffer(let.name, instance.sizes(let.name), dtype, role))
        before, value = _hoist(let.body, instance, known, names)
        inner: tuple[Stmt, ...] = (*before, Store(let.name, tuple(map(Index, let.axes)), value))
        for axis in reversed(let.axes):
            inner = (For(axis, instance.extents[axis], inner),)
        body += inner
    order = {"in": 0, "out": 1, "temporary": 2}
    ranked = sorted(buffers, key=lambda b: order[b.role])
    outs = [b for o in instance.outs for b in ranked if b.name == o]
    rest = [b for b in ranked if b.role != "out"]
    middle = sum(b.role == "in" for b in rest)
    return Nest(instance.name, (*rest[:middle], *outs, *rest[middle:]), tuple(body))


def _hoist(
    e: Expr, instance: Instance, known: Mapping[str, DType], names: Iterator[int]
) -> tuple[tuple[Stmt, ...], Expr]:
    """Statements that compute the reductions in `e`, and `e` reading their locals."""
    if isinstance(e, Reduce):
        local = f"acc{next(names)}"
        before, value = _hoist(e.body, instance, known, names)
        inner: tuple[Stmt, ...] = (*before, Combine(local, e.kind, value))
        for axis in reversed(e.axes):
            inner = (For(axis, instance.extents[axis], inner),)
        whole = integral(e, known)
        start = Declare(local, "int64_t" if whole else "double", _neutral(e.kind, whole))
        return (start, *inner), Load(local, ())
    statements: list[Stmt] = []
    if isinstance(e, Select):
        before, test = _hoist(e.test, instance, known, names)
        statements += before
        branches = []
        for branch, taken in ((e.then, test), (e.other, Call("not", (test,)))):
            before, value = _hoist(branch, instance, known, names)
            declared = [s for s in before if isinstance(s, Declare)]
            work = tuple(s for s in before if not isinstance(s, Declare))
            statements += declared
            if work:
                statements.append(If(taken, work))
            branches.append(value)
        return tuple(statements), Select(test, *branches)

    def visit(child: Expr) -> Expr:
        before, value = _hoist(child, instance, known, names)
        statements.extend(before)
        return value

    value = ex.rebuild(e, visit)
    return tuple(statements), value


def _neutral(kind: str, whole: bool) -> Expr:
    value = ex.REDUCTIONS[kind]
    if math.isinf(value) and whole:
        return Num(2**63 - 1 if value > 0 else -(2**63 - 1))
    return Num(value)


def integral(e: Expr, known: Mapping[str, DType]) -> bool:
    """Whether an expression's value is an integer or a truth value, given tensors' types."""
    match e:
        case Num(value):
            return not isinstance(value, float)
        case Index():
            return True
        case Load(tensor, _, outside):
            whole = not known[tensor].is_float if tensor in known else True
            return whole and (outside is None or integral(outside, known))
        case Reduce(_, _, body):
            return integral(body, known)
        case Select(_, then, other):
            return integral(then, known) and integral(other, known)
        case Call(fn, args):
            if fn in COMPARISON or fn in LOGIC:
                return True
            if fn == "/" or (fn in FUNCTIONS and FUNCTIONS[fn].kind == "float"):
                return False
            return all(integral(a, known) for a in args)


# -- C ---------------------------------------------------------------------------------------------
PRELUDE = """\
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

/* Division and remainder towards minus infinity; extrema that pass NaN on. */
static inline int64_t div_i(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
static inline int64_t mod_i(int64_t a, int64_t b) { return a - div_i(a, b) * b; }
static inline double div_d(double a, double b) { return floor(a / b); }
static inline double mod_d(double a, double b) { return a - floor(a / b) * b; }
static inline double max_d(double a, double b) { return a != a || a > b ? a : b; }
static inline double min_d(double a, double b) { return a != a || a < b ? a : b; }
static inline int64_t max_i(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
"""  # noqa: E501
_INFIX = {"+": "+", "-": "-", "*": "*", "<": "<", "<=": "<=", "==": "==", "and": "&&", "or": "||"}


def c_text(n: Nest, name: str | None = None) -> str:
    """C99 of a nest: `void name(const T *operand, …, T *result, …)`, arrays row-major, dense.

    Raises:
        RecordError: a size is symbolic, or an element type has no plain C type.
    """
    return Printer(n).function(name or n.name)


class Printer:
    """Prints a nest; `whet.backend.naive` prints it over strided arrays."""

    def __init__(self, n: Nest) -> None:
        self.nest = n
        self.known: dict[str, DType] = {b.name: b.dtype for b in n.buffers}
        self.whole = {
            s.local: s.ctype == "int64_t" for s in statements(n.body) if isinstance(s, Declare)
        }
        for local, whole in self.whole.items():
            self.known[local] = DType.i64 if whole else DType.f64

    def function(self, name: str) -> str:
        arguments = ", ".join(
            f"{'const ' if b.role == 'in' else ''}{self._ctype(b.dtype)} *restrict {b.name}"
            for b in self.nest.parameters
        )
        temporaries = [b for b in self.nest.buffers if b.role == "temporary"]
        lines = [PRELUDE, f"void {name}({arguments}) {{"]
        for b in temporaries:
            count = _concrete(product(b.sizes))
            kind = self._ctype(b.dtype)
            lines.append(f"  {kind} *{b.name} = malloc({max(count, 1)} * sizeof({kind}));")
        for s in self.nest.body:
            lines += self._statement(s, "  ")
        lines += [f"  free({b.name});" for b in temporaries]
        return "\n".join([*lines, "}", ""])

    def _ctype(self, dtype: DType) -> str:
        if dtype not in CTYPES:
            raise RecordError(
                "an element type without a plain C type", expected=", ".join(
                    d.value for d in CTYPES), got=dtype.value,
            )  # fmt: skip
        return CTYPES[dtype]

    def _statement(self, s: Stmt, indent: str) -> Iterator[str]:
        match s:
            case For(axis, extent, body):
                head = f"for (int64_t {axis} = 0; {axis} < {_concrete(extent)}; {axis}++)"
                yield from self._block(head, body, indent)
            case If(test, body):
                yield from self._block(f"if ({self.text(test)})", body, indent)
            case Declare(local, ctype, value):
                yield f"{indent}{ctype} {local} = {self.text(value)};"
            case Combine(local, kind, value):
                text = self.text(value)
                if kind in ("sum", "prod"):
                    yield f"{indent}{local} {'+' if kind == 'sum' else '*'}= {text};"
                else:
                    yield f"{indent}{local} = {kind}_{'i' if self.whole[local] else 'd'}({local}, {text});"  # noqa: E501
            case Store(buffer, index, value):
                yield f"{indent}{self._element(buffer, index)} = {self._stored(buffer, value)};"

    def _block(self, head: str, body: tuple[Stmt, ...], indent: str) -> Iterator[str]:
        yield f"{indent}{head} {{"
        for s in body:
            yield from self._statement(s, indent + "  ")
        yield f"{indent}}}"

    def _stored(self, buffer: str, value: Expr) -> str:
        """A truth value is stored as 0 or 1, whatever C made of it."""
        text = self.text(value)
        if self.known[buffer] is not DType.bool:
            return text
        if isinstance(value, Call) and value.fn in FUNCTIONS and integral(value, self.known):
            return f"({text}) & 1"
        return f"({text}) != 0"

    def text(self, e: Expr) -> str:
        """An expression as C."""
        match e:
            case Num(value):
                return _number(value)
            case Index(name):
                return name
            case Load(tensor, (), None) if tensor in self.whole:
                return tensor
            case Load(tensor, index, outside):
                element = self._element(tensor, index)
                if outside is None:
                    return element
                sizes = self.nest.buffer(tensor).sizes
                tests = [
                    f"0 <= {self.text(i)} && {self.text(i)} < {_concrete(n)}"
                    for i, n in zip(index, sizes, strict=True)  # an axis may be the longer one
                ]
                return f"({' && '.join(tests) or '1'} ? {element} : {self.text(outside)})"
            case Select(test, then, other):
                return f"({self.text(test)} ? {self.text(then)} : {self.text(other)})"
            case Call(fn, args):
                return self._call(fn, args)
        raise RecordError("a reduction inside an expression of a nest", got=ex.show(e))

    def _call(self, fn: str, args: Sequence[Expr]) -> str:
        texts = [self.text(a) for a in args]
        whole = "i" if all(integral(a, self.known) for a in args) else "d"
        match fn:
            case "not":
                return f"(!{texts[0]})"
            case "/":
                return f"((double){texts[0]} / {texts[1]})"
            case "//":
                return f"div_{whole}({texts[0]}, {texts[1]})"
            case "%":
                return f"mod_{whole}({texts[0]}, {texts[1]})"
            case "**":
                return f"pow({texts[0]}, {texts[1]})"
            case "maximum" | "minimum":
                return f"{fn[:3]}_{whole}({', '.join(texts)})"
        if fn in _INFIX:
            return f"({texts[0]} {_INFIX[fn]} {texts[1]})"
        return "(" + FUNCTIONS[fn].c.format(*(f"({t})" for t in texts)) + ")"

    def _element(self, tensor: str, index: Sequence[Expr]) -> str:
        total: str | None = None
        for i, n in zip(index, self.nest.buffer(tensor).sizes, strict=True):
            at = self.text(i)
            total = at if total is None else f"({total}) * {_concrete(n)} + ({at})"
        return f"{tensor}[{total or 0}]"


def statements(body: Sequence[Stmt]) -> Iterator[Stmt]:
    """All of them, outer ones first."""
    for s in body:
        yield s
        if isinstance(s, (For, If)):
            yield from statements(s.body)


def _number(value: object) -> str:
    if isinstance(value, float):
        if math.isinf(value):
            return "INFINITY" if value > 0 else "(-INFINITY)"
        return f"({value!r})" if value < 0 else repr(value)
    number = _concrete(value)  # type: ignore[arg-type]
    suffix = "LL" if abs(number) >= 2**31 else ""
    return f"({number}{suffix})" if number < 0 else f"{number}{suffix}"


def _concrete(size: Size) -> int:
    if not isinstance(size, int):
        raise RecordError("only a nest of concrete sizes can be printed as C", got=size)
    return size
