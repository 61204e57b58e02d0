"""Pooling and resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from whet.capture.aten.call import Call, NoMapping, Value, aten, ints, number, reshape, tuple_of
from whet.ir.graph import Node, apply

Sizes = int | Sequence[int]


def window_of(
    rank: int,
    x: Node,
    out: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> dict[str, tuple[int, ...]]:
    """Attributes of a pooling; `extra` is how far the last window stands out, as `out` says."""
    kernel = tuple_of(kernel_size, rank)
    steps = kernel if isinstance(stride, Sequence) and not stride else tuple_of(stride, rank)
    pads, gaps = tuple_of(padding, rank), tuple_of(dilation, rank)
    rows = zip(out[-rank:], ints(x.shape)[-rank:], kernel, steps, pads, gaps, strict=True)
    extra = tuple(
        max(0, (n - 1) * s - (size + 2 * p - d * (k - 1) - 1)) for n, size, k, s, p, d in rows
    )
    return dict(kernel=kernel, stride=steps, padding=pads, dilation=gaps, extra=extra)


def _rank(call: Call) -> int:
    """Spatial dims, by the call's name."""
    return int(next(c for c in call.target if c.isdigit()))


def _batched(x: Node, rank: int) -> Node:
    return reshape(x, (1, *ints(x.shape))) if len(x.shape) == rank + 1 else x


@aten("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(
    call: Call,
    x: Node,
    kernel_size: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Node:
    """The largest of each window."""
    rank = _rank(call)
    window = window_of(rank, x, call.shape, kernel_size, stride, padding, dilation)
    return reshape(apply(f"max_pool{rank}d", _batched(x, rank), **window), call.shape)


@aten("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d_with_indices")
def max_pool_with_indices(
    call: Call,
    x: Node,
    kernel_size: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Value:
    """The largest of each window; where it stands has no record."""
    call.only(0)
    return [max_pool(call, x, kernel_size, stride, padding, dilation)]


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(
    call: Call,
    x: Node,
    kernel_size: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    """The mean of each window."""
    rank = _rank(call)
    window = window_of(rank, x, call.shape, kernel_size, stride, padding, 1)
    del window["dilation"]
    if divisor_override is not None and any(window["extra"]):
        raise NoMapping("windows that stand out, divided by a given number")
    include = int(count_include_pad or divisor_override is not None)
    y = apply(f"avg_pool{rank}d", _batched(x, rank), **window, include_padding=include)
    if divisor_override is not None:
        y = apply("mul", y, number(math.prod(window["kernel"]) / divisor_override, y.dtype))
    return reshape(y, call.shape)


@aten("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
@aten("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def adaptive_avg_pool(call: Call, x: Node, output_size: Sizes) -> Node:
    """Means over as many even pieces as asked for."""
    rank = _rank(call)
    y = apply(f"adaptive_avg_pool{rank}d", _batched(x, rank), size=call.shape[-rank:])
    return reshape(y, call.shape)


@aten("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(call: Call, x: Node, output_size: Sizes) -> Value:
    """Maxima over even pieces, where the pieces are all alike."""
    call.only(0)
    rank = _rank(call)
    sizes = list(zip(ints(x.shape)[-rank:], call.shape[-rank:], strict=True))
    if any(size % out for size, out in sizes):
        raise NoMapping("pieces of different lengths")
    return [max_pool(call, x, [size // out for size, out in sizes])]


@aten("upsample_nearest1d", "upsample_nearest2d")
def upsample_nearest(
    call: Call,
    x: Node,
    output_size: Sizes | None = None,
    scale_factors: list[float] | None = None,
    scales: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Node:
    """Each output pixel a copy of the one below it; where rounding moves one, it stays a call."""
    given = [s for s in (scale_factors, scales, scales_h, scales_w) if s is not None]
    return _resampled(call, x, "nearest", given)


@aten("upsample_bilinear2d")
def upsample_bilinear(
    call: Call,
    x: Node,
    output_size: Sizes | None,
    align_corners: bool,
    scale_factors: list[float] | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Node:
    """Each output pixel a mean of its four neighbours."""
    if align_corners:
        raise NoMapping("corners aligned")
    given = [s for s in (scale_factors, scales_h, scales_w) if s is not None]
    return _resampled(call, x, "bilinear", given)


def _resampled(call: Call, x: Node, mode: str, scales: list[float | list[float]]) -> Node:
    rank = len(x.shape) - 2
    sizes, outs = ints(x.shape)[2:], call.shape[2:]
    factors: list[float] = []
    for s in scales:
        factors += s if isinstance(s, list) else [s]
    if factors and any(n * f != out for n, f, out in zip(sizes, factors, outs, strict=True)):
        raise NoMapping("a scale that is not the quotient of the sizes")
    if mode == "nearest":
        for n, out in zip(sizes, outs, strict=True):
            line = torch.arange(n, dtype=torch.float32).reshape(1, 1, n)
            if F.interpolate(line, size=out)[0, 0].tolist() != [k * n // out for k in range(out)]:
                raise NoMapping("positions that the library rounds in float32")
    flat = reshape(x, (*ints(x.shape)[:2], 1, sizes[0])) if rank == 1 else x
    y = apply(f"interpolate_{mode}", flat, size=(1, *outs) if rank == 1 else outs)
    return reshape(y, call.shape)
