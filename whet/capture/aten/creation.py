"""Tensors out of nothing: filled ones, ranges. They become literals, never leaves."""

from __future__ import annotations

from whet.capture.aten.call import Call, NoMapping, Scalar, aten, cast, expand, number, reshape
from whet.ir.graph import Node, apply
from whet.ir.types import DType


def filled(call: Call, value: Scalar) -> Node:
    """The call's result, every element `value`."""
    literal = number(value, call.dtype)
    attrs = dict(literal.attrs) | {"size": call.shape}
    return apply("full", **attrs)


@aten("zeros", "zeros_like", "new_zeros", "zero")
@aten("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted")
def zeros(
    call: Call, x: Node | None = None, size: object = None, stride: object = None,
    physical_layout: object = None, dtype: object = None,
) -> Node:  # fmt: skip
    """Zeros; memory that nobody has written may as well hold them."""
    return filled(call, 0)


@aten("ones", "ones_like", "new_ones")
def ones(call: Call, x: Node | None = None, size: object = None, dtype: object = None) -> Node:
    """Ones."""
    return filled(call, 1)


@aten("full", "full_like", "new_full", "fill", "scalar_tensor")
def full(
    call: Call,
    x: Node | None = None,
    size: object = None,
    fill_value: Scalar | None = None,
    value: Scalar | Node | None = None,
    s: Scalar | None = None,
    dtype: object = None,
) -> Node:
    """One number everywhere; it may come as a tensor of one element."""
    given = next(v for v in (fill_value, value, s) if v is not None)
    if isinstance(given, Node):
        return expand(cast(given, call.dtype), call.shape)
    return filled(call, given)


@aten("arange")
def arange(
    call: Call, start: Scalar = 0, end: Scalar = 0, step: Scalar = 1, dtype: object = None
) -> Node:
    """start, start + step, … below end."""
    plain = float if call.dtype.is_float else int
    if not call.dtype.is_float and any(isinstance(v, float) and v % 1 for v in (start, step)):
        raise NoMapping("integers at fractional steps")
    return apply(
        "arange", size=call.shape[0], start=plain(start), step=plain(step), dtype=call.dtype
    )


@aten("prims.iota")
def iota(
    call: Call, length: int, start: int, step: int, dtype: object, requires_grad: bool
) -> Node:
    """start, start + step, …, `length` of them."""
    return apply("arange", size=length, start=start, step=step, dtype=call.dtype)


@aten("eye")
def eye(call: Call, n: int, m: int | None = None, dtype: object = None) -> Node:
    """Ones where row and column are equal."""
    rows, columns = (apply("arange", size=k, start=0, step=1, dtype=DType.i64) for k in call.shape)
    return cast(apply("eq", reshape(rows, (call.shape[0], 1)), columns), call.dtype)


@aten("native_dropout")
def native_dropout(call: Call, x: Node, p: float, train: object) -> list[Node]:
    """What is kept, scaled, and which elements these are: flags that are drawn outside."""
    if call.draw is None or not 0 < p < 1 or train is False:
        raise NoMapping("it draws random numbers")
    flags = call.draw(call.shape, 1 - p)
    kept = apply("mul", cast(flags, x.dtype), number(1 / (1 - p), x.dtype))
    return [apply("mul", x, kept), flags]
