"""Pooling. What the records' windows do not have (dilated or unevenly padded means) is a
convolution by ones, divided by how many elements each window counts, which is known at import."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from whet.capture.aten.call import torch_dtype
from whet.capture.onnx.call import Call, NoMapping, cast, literal, onnx, reshape, sizes
from whet.capture.onnx.window import Window, padded, window
from whet.ir.graph import Node, apply
from whet.ir.types import DType

Ints = Sequence[int]


@onnx("MaxPool")
def max_pool(
    call: Call, x: Node, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Ints | None = None, pads: Ints | None = None, strides: Ints | None = None,
) -> Node:  # fmt: skip
    """The largest of each window."""
    call.only(0)
    v = window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    dtype = x.dtype
    x = cast(x, DType.f32) if not dtype.is_float else x
    padding = v.before
    if not v.even or any(2 * p > k for p, k in zip(v.before, v.kernel, strict=True)):
        x, padding = padded(x, v.before, v.after, -math.inf), (0,) * len(v.kernel)
    y = apply(
        f"max_pool{len(v.kernel)}d", x, kernel=v.kernel, stride=v.stride, padding=padding,
        dilation=v.dilation, extra=v.extra,
    )  # fmt: skip
    return cast(y, dtype)


@onnx("AveragePool")
def average_pool(
    call: Call, x: Node, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0,
    count_include_pad: int = 0, dilations: Ints | None = None, pads: Ints | None = None,
    strides: Ints | None = None,
) -> Node:  # fmt: skip
    """The mean of each window."""
    v = window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    small = all(2 * p <= k for p, k in zip(v.before, v.kernel, strict=True))
    if v.even and small and set(v.dilation) == {1}:
        return apply(
            f"avg_pool{len(v.kernel)}d", x, kernel=v.kernel, stride=v.stride, padding=v.before,
            extra=v.extra, include_padding=count_include_pad,
        )  # fmt: skip
    counted = torch.ones(1, 1, *sizes(x)[2:], dtype=torch.float64)
    counted = F.pad(counted, _reversed(v.before, v.after), value=float(count_include_pad))
    counted = F.pad(counted, _reversed((0,) * len(v.extra), v.extra))
    divisor = _by_ones(counted, v).to(torch_dtype(x.dtype))
    return apply("div", window_sum(x, v), call.constant(divisor))


def _reversed(before: Ints, after: Ints) -> list[int]:
    """Widths as torch takes them, last dim first."""
    return [w for b, a in reversed(list(zip(before, after, strict=True))) for w in (b, a)]


def _by_ones(x: Tensor, v: Window) -> Tensor:
    rank = len(v.kernel)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    ones = torch.ones(1, 1, *v.kernel, dtype=x.dtype)
    return convolve(x, ones, stride=v.stride, dilation=v.dilation)


def window_sum(x: Node, v: Window) -> Node:
    """The sum of each window, padding counting as zero."""
    rank = len(v.kernel)
    batch, channels = sizes(x)[:2]
    after = [a + e for a, e in zip(v.after, v.extra, strict=True)]
    x = padded(x, v.before, after, 0.0)
    apart = reshape(x, (batch * channels, 1, *sizes(x)[2:]))
    ones = apply("full", size=(1, 1, *v.kernel), value=1.0, dtype=x.dtype)
    zero, one = (0,) * rank, 1
    y = apply(
        f"conv{rank}d", apart, ones, None, groups=one, stride=v.stride, padding=zero,
        dilation=v.dilation,
    )  # fmt: skip
    return reshape(y, (batch, channels, *sizes(y)[2:]))


@onnx("LpPool")
def lp_pool(
    call: Call, x: Node, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Ints | None = None, p: float = 2, pads: Ints | None = None,
    strides: Ints | None = None,
) -> Node:  # fmt: skip
    """The p-norm of each window."""
    v = window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    return _root(window_sum(_powered(x, p), v), p)


def _powered(x: Node, p: float) -> Node:
    if p == 2:
        return apply("square", x)
    y = apply("abs", x)
    return y if p == 1 else apply("pow", y, literal(p, x))


def _root(x: Node, p: float) -> Node:
    if p == 1:
        return x
    return apply("sqrt", x) if p == 2 else apply("pow", x, literal(1 / p, x))


def _over_all(op: str, x: Node) -> Node:
    if len(x.shape) < 3:
        raise NoMapping(f"pooling of a tensor of rank {len(x.shape)}")
    dims = tuple(range(2, len(x.shape)))
    return reshape(apply(op, x, dims=dims), (*sizes(x)[:2], *(1,) * len(dims)))


@onnx("GlobalAveragePool")
def global_average_pool(call: Call, x: Node) -> Node:
    """The mean of each channel."""
    return _over_all("mean", x)


@onnx("GlobalMaxPool")
def global_max_pool(call: Call, x: Node) -> Node:
    """The largest of each channel."""
    return _over_all("amax", x)


@onnx("GlobalLpPool")
def global_lp_pool(call: Call, x: Node, p: float = 2) -> Node:
    """The p-norm of each channel."""
    return _root(_over_all("sum", _powered(x, p)), p)
