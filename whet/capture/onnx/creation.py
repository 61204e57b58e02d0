"""Tensors out of nothing, and what is known of tensors: shapes, sizes, ranges, constants."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from whet.capture.onnx.call import (
    Call,
    NoMapping,
    aligned,
    cast,
    dtype_of,
    expand,
    filled,
    onnx,
    reshape,
    sizes,
)
from whet.ir.graph import Node, apply
from whet.ir.types import DType


@onnx("Constant")
def constant(
    call: Call, value: Tensor | None = None, value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None, value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
) -> Node:  # fmt: skip
    """A tensor that stands in the file."""
    if value is not None:
        return call.constant(value)
    given = next(
        (v for v in (value_float, value_floats, value_int, value_ints) if v is not None), None
    )
    if given is None:
        raise NoMapping("a constant without a value")
    dtype = torch.float32 if value_float is not None or value_floats is not None else torch.int64
    return call.constant(torch.tensor(given, dtype=dtype))


@onnx("ConstantOfShape")
def constant_of_shape(call: Call, shape: Node, value: Tensor | None = None) -> Node:
    """One number everywhere, 0 of float32 by default."""
    size = call.ints(shape, "the shape")
    if value is None:
        return filled(0.0, DType.f32, size)
    like = call.constant(value.reshape(()))
    return filled(value.reshape(()).item(), like.dtype, size)


@onnx("Shape")
def shape(call: Call, x: Node, start: int = 0, end: int | None = None) -> Node:
    """The sizes of a tensor, or of some of its dims."""
    return call.constant(sizes(x)[slice(start, end)])


@onnx("Size")
def size(call: Call, x: Node) -> Node:
    """The number of elements."""
    return call.constant(torch.tensor(math.prod(sizes(x))))


@onnx("Range")
def range_(call: Call, start: Node, limit: Node, delta: Node) -> Node:
    """start, start + delta, … below limit."""
    first, last, step = (
        call.scalar(n, what) for n, what in ((start, "start"), (limit, "limit"), (delta, "delta"))
    )
    count = max(0, math.ceil((last - first) / step))
    plain = float if start.dtype.is_float else int
    return apply("arange", size=count, start=plain(first), step=plain(step), dtype=start.dtype)


@onnx("EyeLike")
def eye_like(call: Call, x: Node, dtype: int | None = None, k: int = 0) -> Node:
    """Ones on a diagonal."""
    rows, columns = (apply("arange", size=n, start=0, step=1, dtype=DType.i64) for n in sizes(x))
    row = apply("add", aligned(rows, 2, 0), filled(k, DType.i64, ()))
    hit = apply("eq", row, reshape(columns, (1, sizes(x)[1])))
    return cast(expand(hit, sizes(x)), x.dtype if dtype is None else dtype_of(dtype))
