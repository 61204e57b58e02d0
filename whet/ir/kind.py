"""Element types of results, inferred from a record's expressions.

A number is *weak*: it takes the type of what it meets. An index is int64, a bracket bool; division
and the functions of kind "float" leave the integers for float32; a sum of bools or integers is
int64, as in torch.
"""

from __future__ import annotations

from collections.abc import Mapping

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
)  # fmt: skip
from whet.ir.functions import FUNCTIONS
from whet.ir.record import Instance
from whet.ir.types import DType, promote

WEAK_INT, WEAK_FLOAT = "int", "float"
Kind = DType | str


def kind_of(instance: Instance, out: str, operands: Mapping[str, DType]) -> DType:
    """Element type of result `out` given the operands' element types."""
    known: dict[str, Kind] = dict(operands)
    for let in instance.lets:
        known[let.name] = _kind(let.body, known)
        if let.name == out:
            break
    return _strong(known[out])


def _kind(e: Expr, known: Mapping[str, Kind]) -> Kind:
    match e:
        case Num(value):
            return WEAK_FLOAT if isinstance(value, float) else WEAK_INT
        case Index():
            return DType.i64
        case Load(tensor, _, outside):
            return known[tensor] if outside is None else _meet(known[tensor], _kind(outside, known))
        case Select(_, then, other) if then == ONE and other == ZERO:
            return DType.bool
        case Select(_, then, other):
            return _meet(_kind(then, known), _kind(other, known))
        case Reduce(kind, _, body):
            inner = _kind(body, known)
            if kind in ("sum", "prod") and not (isinstance(inner, DType) and inner.is_float):
                return WEAK_FLOAT if inner == WEAK_FLOAT else DType.i64
            return inner
        case Call(fn, args):
            if fn in COMPARISON or fn in LOGIC:
                return DType.bool
            meet = _kind(args[0], known)
            for a in args[1:]:
                meet = _meet(meet, _kind(a, known))
            function = FUNCTIONS.get(fn)
            if function is not None and function.kind == "bool":
                return DType.bool
            if fn == "/" or (function is not None and function.kind == "float"):
                return _meet(meet, WEAK_FLOAT)
            if fn in ("+", "-", "*") and meet == DType.bool:
                return DType.i64 if any(_kind(a, known) == DType.bool for a in args) else meet
            return meet


def _meet(a: Kind, b: Kind) -> Kind:
    if isinstance(a, DType) and isinstance(b, DType):
        return promote((a, b))
    if isinstance(b, DType):
        a, b = b, a
    if isinstance(a, DType):
        if b == WEAK_FLOAT and not a.is_float and a is not DType.c64:
            return DType.f32
        return DType.i64 if a is DType.bool and b == WEAK_INT else a
    return WEAK_FLOAT if WEAK_FLOAT in (a, b) else WEAK_INT


def _strong(kind: Kind) -> DType:
    if isinstance(kind, DType):
        return kind
    return DType.f32 if kind == WEAK_FLOAT else DType.i64
