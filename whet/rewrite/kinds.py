"""What a bank is made of: kinds of tensors, makers of them, members of classes.

Kind    = shape over symbols, with what the bank holds of that shape
Maker   = operator, attributes, kinds of operands, kind of the result
Member  = maker over classes                     one way to compute a class
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field

from whet.ir.expr import Call, Load
from whet.ir.functions import FUNCTIONS
from whet.ir.interp.stacked import Stack
from whet.ir.ops import TABLE, instance
from whet.ir.types import Poly
from whet.rewrite.attributes import Shape


@dataclass(frozen=True, slots=True)
class Maker:
    """An operator at given kinds of operands, with its attributes."""

    op: str
    attrs: tuple[tuple[str, object], ...]
    kinds: tuple[int | None, ...]
    result: int


@dataclass(slots=True)
class Kind:
    """A type: a shape over symbols, and what the bank holds of that shape."""

    shape: Shape
    stacks: list[Stack] = field(default_factory=list)  # one for each assignment of sizes
    classes: list[int] = field(default_factory=list)  # in the order of the stacks' rows


@dataclass(frozen=True, slots=True)
class Member:
    """One way to compute a class: a maker over classes."""

    maker: int
    args: tuple[int, ...]


def pointwise(op: str) -> bool:
    """Whether an operator's operands broadcast to its result."""
    record = TABLE[op].record
    return record is not None and all(
        len(dims) == 1 and isinstance(dims[0], ast.Starred) and isinstance(dims[0].value, ast.Name)
        for dims in (listed(t) for _, t, _ in record.operands)
    )


def listed(operand: ast.Subscript) -> list[ast.expr]:
    """The dims of an operand as its record lists them."""
    return operand.slice.elts if isinstance(operand.slice, ast.Tuple) else [operand.slice]


def rank_of(operand: ast.Subscript) -> int | None:
    """How many dims an operand has; None where a group decides."""
    dims = listed(operand)
    return None if any(isinstance(d, ast.Starred) for d in dims) else len(dims)


def concrete(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape at given sizes."""
    return tuple(int(str(substituted(n, sizes))) for n in shape)


def substituted(value: object, sizes: Mapping[str, int]) -> object:
    """An attribute's value at given sizes."""
    if isinstance(value, Poly):
        return value.substitute(sizes)
    if isinstance(value, tuple):
        return tuple(substituted(v, sizes) for v in value)
    return value


def associates(op: str) -> bool:
    """Whether an operator of two operands may be bracketed at will, by its record."""
    body = instance(op, ((2,), (2,)), ()).lets[-1].body
    match body:
        case Call(fn, (Load(), Load())):
            known = FUNCTIONS.get(fn)
            return fn in ("+", "*") or (known is not None and "associative" in known.laws)
    return False
