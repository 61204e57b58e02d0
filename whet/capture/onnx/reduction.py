"""Sums, extrema, scans, softmax."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from whet.capture.onnx.call import (
    ROWS,
    Call,
    NoMapping,
    axes_in,
    axis_in,
    cast,
    filled,
    library,
    literal,
    onnx,
    permute,
    reshape,
    sizes,
)
from whet.ir.graph import Node, apply
from whet.ir.types import DType, TensorType

Body = Callable[[Node, tuple[int, ...]], Node]


def _plain(op: str) -> Body:
    return lambda x, dims: apply(op, x, dims=dims)


def _of(inner: str, op: str) -> Body:
    return lambda x, dims: apply(op, apply(inner, x), dims=dims)


def _log_sum_exp(x: Node, dims: tuple[int, ...]) -> Node:
    shape = sizes(x)
    rest = [d for d in range(len(shape)) if d not in dims]
    x = permute(x, [*rest, *dims])
    x = reshape(x, (*(shape[d] for d in rest), math.prod(shape[d] for d in dims)))
    return apply("logsumexp", x, axis=len(rest))


# Reduced dims go; the second column is the value over no elements.
REDUCTIONS: dict[str, tuple[Body, float]] = {
    "ReduceL1":        (_of("abs", "sum"), 0),
    "ReduceL2":        (lambda x, dims: apply("sqrt", _of("square", "sum")(x, dims)), 0),
    "ReduceLogSum":    (lambda x, dims: apply("log", apply("sum", x, dims=dims)), -math.inf),
    "ReduceLogSumExp": (_log_sum_exp, -math.inf),
    "ReduceMax":       (_plain("amax"), -math.inf),
    "ReduceMean":      (_plain("mean"), math.nan),
    "ReduceMin":       (_plain("amin"), math.inf),
    "ReduceProd":      (_plain("prod"), 1),
    "ReduceSum":       (_plain("sum"), 0),
    "ReduceSumSquare": (_of("square", "sum"), 0),
}  # fmt: skip
_NEEDS_FLOAT = ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean")


def _reduce(
    name: str, call: Call, x: Node, axes: Node | None = None, keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Node:  # fmt: skip
    body, nothing = REDUCTIONS[name]
    shape, rank = sizes(x), len(x.shape)
    if name in _NEEDS_FLOAT and not x.dtype.is_float:
        raise NoMapping(f"{name} of {x.dtype}")
    given = call.ints(axes, "the axes") if axes is not None else ()
    dims = tuple(sorted(set(axes_in(given, rank)))) or tuple(range(rank))
    if not given and noop_with_empty_axes:
        # No dims are reduced, yet what is done to each element is done.
        return _each(name, x)
    kept = [1 if d in dims else n for d, n in enumerate(shape)]
    left = kept if keepdims else [n for d, n in enumerate(shape) if d not in dims]
    if not dims:
        return _each(name, x)
    if 0 in (shape[d] for d in dims):
        if not x.dtype.is_float and abs(nothing) == math.inf:
            raise NoMapping("an extremum of no elements")
        return filled(nothing, x.dtype, left)
    return reshape(cast(body(x, dims), x.dtype), left)


def _each(name: str, x: Node) -> Node:
    """The reduction of each element by itself."""
    if name in ("ReduceL1", "ReduceL2"):
        return apply("abs", x)
    if name == "ReduceSumSquare":
        return apply("square", x)
    return apply("log", x) if name == "ReduceLogSum" else x


for _name in REDUCTIONS:
    ROWS[_name] = functools.partial(_reduce, _name)


def _position(
    op: str, call: Call, x: Node, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Node:
    k = axis_in(axis, len(x.shape))
    size = sizes(x)[k]
    if select_last_index:
        found = apply(op, apply("flip", x, axis=k), axis=k)
        found = apply("sub", literal(size - 1, found), found)
    else:
        found = apply(op, x, axis=k)
    shape = [1 if d == k else n for d, n in enumerate(sizes(x))]
    return reshape(found, shape) if keepdims else found


ROWS["ArgMax"] = functools.partial(_position, "argmax")
ROWS["ArgMin"] = functools.partial(_position, "argmin")


@onnx("CumSum", "CumProd")
def running(call: Call, x: Node, axis: Node, exclusive: int = 0, reverse: int = 0) -> Node:
    """Running sums or products, from either end, with or without the element itself."""
    k = axis_in(int(call.scalar(axis, "the axis")), len(x.shape))
    product = call.node.op == "CumProd"
    size = sizes(x)[k]
    x = apply("flip", x, axis=k) if reverse else x
    if exclusive:
        neutral = float(product) if x.dtype.is_float else int(product)
        x = apply("slice", x, axis=k, start=0, stop=size - 1, step=1)
        x = apply("pad", x, axis=k, before=1, after=0, value=neutral)
    if product:
        wide = x.dtype if x.dtype.is_float else DType.i64
        (y,) = library("aten.cumprod.default", [x, k], TensorType(wide, x.shape))
        y = cast(y, x.dtype)
    else:
        y = cast(apply("cumsum", x, axis=k), x.dtype)
    return apply("flip", y, axis=k) if reverse else y


def _softmax(op: str, call: Call, x: Node, axis: int | None = None) -> Node:
    """Along one dim; before version 13 along all dims from one on, as if they were one."""
    if axis is None:
        axis = -1 if call.opset >= 13 else 1
    k = axis_in(axis, len(x.shape))
    shape = sizes(x)
    if call.opset >= 13 or math.prod(shape[k + 1 :]) == 1:
        return apply(op, x, axis=k)
    flat = reshape(x, (math.prod(shape[:k]), math.prod(shape[k:])))
    return reshape(apply(op, flat, axis=1), shape)


ROWS["Softmax"] = functools.partial(_softmax, "softmax")
ROWS["LogSoftmax"] = functools.partial(_softmax, "log_softmax")


def normalized(x: Node, norm: Node, axes: Sequence[int]) -> Node:
    """x over a norm whose dims were reduced, where it is not zero."""
    shape = [1 if d in axes else n for d, n in enumerate(sizes(x))]
    kept = reshape(norm, shape)
    zero = apply("eq", kept, literal(0, kept))
    return apply("where", zero, literal(0, x), apply("div", x, kept))
