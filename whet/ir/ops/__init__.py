"""The operator table: every operator, defined once by its record.

    TABLE["matmul"]                                  one Operator
    instance("matmul", (shape, shape), {})           its record bound to shapes (cached)
    result_type("matmul", operand types, {})         element type and shape of a result

Nothing else in whet knows what an operator computes: shapes, values, proofs, gradients, costs,
loops and sharding are all read off the instance. See docs/adding-an-operator.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from whet.errors import RecordError
from whet.ir.kind import kind_of
from whet.ir.ops import contraction, movement, normalization, pointwise, recurrent, reduction
from whet.ir.record import Instance, Record, Shape
from whet.ir.types import DType, TensorType

Attrs = tuple[tuple[str, object], ...]
Text = Callable[[Sequence[Shape | None], Mapping[str, object]], str]
BoundAttrs = Callable[[Sequence[Shape | None], Mapping[str, object]], Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator.

    Attributes:
        name: what graphs call it.
        record: its record, when one text serves all shapes.
        text: else how the text follows from shapes and attributes (number of operands, einsum).
        attrs: what of the attributes that text binds; all of them by default.
    """

    name: str
    record: Record | None = None
    text: Text | None = None
    attrs: BoundAttrs | None = None

    def bind(self, shapes: Sequence[Shape | None], attrs: Mapping[str, object]) -> Instance:
        """The record at these shapes. Raises `RecordError` where they do not fit."""
        if self.record is not None:
            return self.record.bind(shapes, attrs)
        assert self.text is not None
        try:
            bound = self.attrs(shapes, attrs) if self.attrs else attrs
            text = self.text(shapes, attrs)
        except (KeyError, ValueError, AssertionError) as fault:
            raise RecordError(
                f"operator {self.name} does not take these shapes or attributes",
                expected=fault, got=f"shapes {list(shapes)}, attributes {dict(attrs)}",
            ) from None  # fmt: skip
        return _parse(text).bind(shapes, bound)


TABLE: dict[str, Operator] = {}


def define(record: str | Record) -> Operator:
    """Add an operator to the table from its record and return it."""
    parsed = record if isinstance(record, Record) else Record(record)
    TABLE[parsed.name] = Operator(parsed.name, record=parsed)
    instance.cache_clear()
    return TABLE[parsed.name]


@functools.cache
def _parse(text: str) -> Record:
    return Record(text)


def exists(name: str) -> bool:
    """Is there an operator of this name, in the table or derived from one that is?"""
    return name.partition("~")[0] in TABLE


def operator(name: str) -> Operator:
    """The operator called `name`; `op~x` is the gradient of operand x of `op`.

    Raises:
        RecordError: there is none; names the nearest.
    """
    if "~" in name:
        from whet.ir.adjoint import backward

        return backward(name)
    found = TABLE.get(name)
    if found is None:
        import difflib

        near = difflib.get_close_matches(name, TABLE, n=3)
        raise RecordError(f"there is no operator {name}", hint=", ".join(near) or None)
    return found


@functools.lru_cache(maxsize=8192)
def instance(name: str, shapes: tuple[Shape | None, ...], attrs: Attrs) -> Instance:
    """The operator's record bound to operand shapes (None: operand left out).

    Args:
        attrs: (name, value) pairs sorted by name, as nodes carry them.
    """
    known = dict(attrs)
    known.pop("out", None)
    return operator(name).bind(shapes, known)


def result_type(name: str, operands: Sequence[TensorType | None], attrs: Attrs) -> TensorType:
    """Type of a result; attribute `out` names the result where there are several."""
    known = dict(attrs)
    bound = instance(name, tuple(None if t is None else t.shape for t in operands), attrs)
    out = str(known.get("out", bound.outs[0]))
    if out not in bound.results:
        raise RecordError(f"operator {name} has no result {out}", expected=", ".join(bound.outs))
    given = {n: t.dtype for n, t in zip(bound.operands, filter(None, operands), strict=True)}
    dtype = known.get("dtype")
    if "~" in name:  # a gradient has its operand's type, whatever it is computed from
        dtype = given[name.rpartition("~")[2]]
    if not isinstance(dtype, DType):
        dtype = kind_of(bound, out, given)
    return TensorType(dtype, bound.shape(out))


def record_of(name: str, shapes: Sequence[Shape | None], attrs: Mapping[str, object]) -> Record:
    """The record text's parsed form that serves these shapes."""
    op = operator(name)
    if op.record is not None:
        return op.record
    assert op.text is not None
    return _parse(op.text(shapes, attrs))


for _module in (pointwise, contraction, movement, reduction, normalization, recurrent):
    for _text in _module.RECORDS:
        define(_text)
for _module in (contraction, movement):
    for _name, _how in _module.STRUCTURAL.items():
        _text_of, _attrs_of = _how if isinstance(_how, tuple) else (_how, None)
        TABLE[_name] = Operator(_name, text=_text_of, attrs=_attrs_of)
