"""Sums, extrema, scans, softmax and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.capture.aten.call import (
    Call,
    Scalar,
    Value,
    aten,
    axes_of,
    axis_of,
    cast,
    flat,
    ints,
    keep,
    number,
    reshape,
)
from whet.ir.graph import Node, apply
from whet.ir.types import DType

Dims = int | Sequence[int] | None


def _reduced(op: str, x: Node, dim: Dims, keepdim: bool) -> Node:
    dims = axes_of(dim, len(x.shape))
    return keep(apply(op, x, dims=dims), dims, keepdim, ints(x.shape))


@aten("sum", "mean", "prod")
def total(
    call: Call, x: Node, dim: Dims = None, keepdim: bool = False, dtype: object = None
) -> Node:
    """A sum, mean or product; in the result's element type from the start."""
    return _reduced(_family(call), cast(x, call.dtype), dim, keepdim)


@aten("amax", "amin")
def extremum(call: Call, x: Node, dim: Dims = None, keepdim: bool = False) -> Node:
    """The largest or smallest element."""
    return _reduced(_family(call), x, dim, keepdim)


@aten("max.default", "min.default")
def largest(call: Call, x: Node) -> Node:
    """The largest or smallest of all elements."""
    return _reduced("a" + _family(call), x, None, False)


@aten("max.dim", "min.dim")
def largest_where(call: Call, x: Node, dim: int, keepdim: bool = False) -> Value:
    """The largest or smallest along a dim, and where it stands first."""
    name, axis = _family(call), axis_of(dim, len(x.shape))
    found = [_reduced("a" + name, x, axis, keepdim)]
    if 1 in call.used:
        found.append(_position(f"arg{name}", x, axis, keepdim))
    return found


@aten("argmax", "argmin")
def position(call: Call, x: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    """Where the largest or smallest element stands first."""
    if dim is None:
        rank = len(x.shape)
        y = _position(_family(call), flat(x), 0, False)
        return reshape(y, (1,) * rank) if keepdim else y
    return _position(_family(call), x, axis_of(dim, len(x.shape)), keepdim)


def _position(op: str, x: Node, axis: int, keepdim: bool) -> Node:
    if not x.shape:
        return number(0, DType.i64)
    return keep(apply(op, x, axis=axis), (axis,), keepdim, ints(x.shape))


@aten("any", "all")
def truth(call: Call, x: Node, dim: Dims = None, keepdim: bool = False) -> Node:
    """Whether any or all elements differ from zero."""
    op = {"any": "amax", "all": "amin"}[_family(call)]
    return cast(_reduced(op, cast(x, DType.bool), dim, keepdim), call.dtype)


@aten("var", "std")
def variance(
    call: Call,
    x: Node,
    dim: Dims = None,
    unbiased: bool = True,
    correction: Scalar | None = None,
    keepdim: bool = False,
) -> Node:
    """Variance or its root; one is taken off the count unless `correction` says otherwise."""
    dims = axes_of(dim, len(x.shape))
    less = correction if correction is not None else int(unbiased)
    y = keep(apply("var", x, dims=dims, correction=less), dims, keepdim, ints(x.shape))
    return apply("sqrt", y) if _family(call) == "std" else y


@aten("var_mean")
def variance_mean(
    call: Call,
    x: Node,
    dim: Dims = None,
    unbiased: bool = True,
    correction: Scalar | None = None,
    keepdim: bool = False,
) -> Value:
    """Variance and mean."""
    return [
        variance(call, x, dim, unbiased, correction, keepdim),
        _reduced("mean", x, dim, keepdim),
    ]


@aten("logsumexp")
def logsumexp(call: Call, x: Node, dim: Dims, keepdim: bool = False) -> Node:
    """log of the sum of exp, over one dim or several made one."""
    dims, shape = axes_of(dim, len(x.shape)), ints(x.shape)
    x = cast(x, call.dtype)
    if not shape:
        return x
    if len(dims) > 1:
        rest = [d for d in range(len(shape)) if d not in dims]
        x = apply("permute", x, dims=(*rest, *dims))
        x = reshape(x, (*(shape[d] for d in rest), math.prod(shape[d] for d in dims)))
        return keep(apply("logsumexp", x, axis=len(rest)), dims, keepdim, shape)
    return keep(apply("logsumexp", x, axis=dims[0]), dims, keepdim, shape)


@aten("linalg_vector_norm")
def vector_norm(
    call: Call,
    x: Node,
    ord: float = 2,
    dim: Dims = None,
    keepdim: bool = False,
    dtype: object = None,
) -> Node:
    """The p-norm over some dims."""
    x = cast(x, call.dtype)
    if math.isinf(ord):
        return _reduced("amax" if ord > 0 else "amin", apply("abs", x), dim, keepdim)
    if ord == 0:
        return _reduced("sum", cast(apply("ne", x, number(0, x.dtype)), x.dtype), dim, keepdim)
    if ord == 1:
        return _reduced("sum", apply("abs", x), dim, keepdim)
    if ord == 2:
        return apply("sqrt", _reduced("sum", apply("square", x), dim, keepdim))
    powers = apply("pow", apply("abs", x), number(ord, x.dtype))
    return apply("pow", _reduced("sum", powers, dim, keepdim), number(1 / ord, x.dtype))


@aten("cumsum")
def cumsum(call: Call, x: Node, dim: int, dtype: object = None) -> Node:
    """Running sums."""
    x = cast(x, call.dtype)
    return apply("cumsum", x, axis=axis_of(dim, len(x.shape))) if x.shape else x


@aten("cummax")
def cummax(call: Call, x: Node, dim: int) -> Value:
    """Running maxima; where they stand has no record."""
    call.only(0)
    return [apply("cummax", x, axis=axis_of(dim, len(x.shape))) if x.shape else x]


@aten("diff")
def diff(
    call: Call,
    x: Node,
    n: int = 1,
    dim: int = -1,
    prepend: Node | None = None,
    append: Node | None = None,
) -> Node:
    """Differences of neighbours, taken n times."""
    axis = axis_of(dim, len(x.shape))
    parts = [p for p in (prepend, x, append) if p is not None]
    x = apply("concat", *parts, axis=axis) if len(parts) > 1 else x
    for _ in range(n):
        size = ints(x.shape)[axis]
        after = apply("slice", x, axis=axis, start=1, stop=size, step=1)
        before = apply("slice", x, axis=axis, start=0, stop=size - 1, step=1)
        x = apply("ne" if x.dtype is DType.bool else "sub", after, before)
    return x


@aten("softmax.int", "_softmax", "log_softmax.int", "_log_softmax", "special_softmax")
def softmax(
    call: Call, x: Node, dim: int, dtype: object = None, half_to_float: bool = False
) -> Node:
    """Softmax along a dim, or its logarithm; in the result's element type."""
    x = cast(x, call.dtype)
    rank = len(x.shape)
    op = "log_softmax" if "log_softmax" in call.target else "softmax"
    if not rank:
        return reshape(apply(op, reshape(x, (1,)), axis=0), ())
    return apply(op, x, axis=axis_of(dim, rank))


def _family(call: Call) -> str:
    return call.target.split(".")[1]
