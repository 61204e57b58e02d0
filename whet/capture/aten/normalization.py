"""Normalizations, kept whole; the statistics they return are spelled out where they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from whet.capture.aten.call import (
    Call,
    Value,
    aten,
    cast,
    ints,
    keep,
    number,
    reshape,
    torch_dtype,
)
from whet.ir.graph import Node, apply


@aten("layer_norm")
def layer_norm(
    call: Call,
    x: Node,
    normalized_shape: Sequence[int],
    weight: Node | None = None,
    bias: Node | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Node:
    """Zero mean and unit variance over the last dims, then scale and shift."""
    return apply("layer_norm", x, weight, bias, size=tuple(normalized_shape), eps=eps)


@aten("native_layer_norm")
def native_layer_norm(
    call: Call,
    x: Node,
    normalized_shape: Sequence[int],
    weight: Node | None,
    bias: Node | None,
    eps: float,
) -> Value:
    """`layer_norm` with the mean and the reciprocal deviation it used."""
    dims = range(len(x.shape) - len(normalized_shape), len(x.shape))
    y = layer_norm(call, x, normalized_shape, weight, bias, eps)
    return [y, *(_statistics(x, dims, eps) if call.used - {0} else ())]


def _statistics(x: Node, dims: Sequence[int], eps: float) -> tuple[Node, Node]:
    mean = apply("mean", x, dims=tuple(dims))
    var = apply("var", x, dims=tuple(dims), correction=0)
    rstd = apply("rsqrt", apply("add", var, number(eps, x.dtype)))
    return keep(mean, dims, True, ints(x.shape)), keep(rstd, dims, True, ints(x.shape))


@aten("rms_norm")
def rms_norm(
    call: Call,
    x: Node,
    normalized_shape: Sequence[int],
    weight: Node | None = None,
    eps: float | None = None,
) -> Node:
    """Unit mean square over the last dims, then scale."""
    if eps is None:
        eps = torch.finfo(torch_dtype(x.dtype)).eps
    return apply("rms_norm", x, weight, size=tuple(normalized_shape), eps=eps)


@aten("group_norm")
def group_norm(
    call: Call,
    x: Node,
    num_groups: int,
    weight: Node | None = None,
    bias: Node | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Node:
    """Zero mean and unit variance over groups of channels, then scale and shift per channel."""
    return apply("group_norm", x, weight, bias, groups=num_groups, eps=eps)


@aten("native_group_norm")
def native_group_norm(
    call: Call,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> Value:
    """`group_norm` with the mean and the reciprocal deviation it used."""
    y = group_norm(call, x, group, weight, bias, eps)
    if not call.used - {0}:
        return [y]
    mean, rstd = _statistics(reshape(x, (N, group, C // group * HxW)), (2,), eps)
    return [y, reshape(mean, (N, group)), reshape(rstd, (N, group))]


@aten("instance_norm")
def instance_norm(
    call: Call,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    running_mean: Node | None,
    running_var: Node | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Node:
    """Group norm with a group for each channel, or batch norm where statistics are given."""
    if not use_input_stats:
        return apply("batch_norm", x, running_mean, running_var, weight, bias, eps=eps)
    return apply("group_norm", x, weight, bias, groups=ints(x.shape)[1], eps=eps)


@aten("batch_norm")
def batch_norm(
    call: Call,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    running_mean: Node | None,
    running_var: Node | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Node:
    """Channels shifted and scaled by given statistics, or by those of the batch."""
    if not training:
        return apply("batch_norm", x, running_mean, running_var, weight, bias, eps=eps)
    mean, var = _of_batch(x)
    return apply("batch_norm", x, mean, var, weight, bias, eps=eps)


def _of_batch(x: Node) -> tuple[Node, Node]:
    dims = tuple(d for d in range(len(x.shape)) if d != 1)
    return apply("mean", x, dims=dims), apply("var", x, dims=dims, correction=0)


@aten("_native_batch_norm_legit_no_training", "_native_batch_norm_legit.no_stats")
def native_batch_norm(
    call: Call,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    running_mean: Node | None = None,
    running_var: Node | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    """Batch norm as decompositions spell it, without running statistics to update."""
    if running_mean is None:
        mean, var = _of_batch(x)
        rstd = apply("rsqrt", apply("add", var, number(eps, var.dtype)))
        return [apply("batch_norm", x, mean, var, weight, bias, eps=eps), mean, rstd]
    call.only(0)
    return [apply("batch_norm", x, running_mean, running_var, weight, bias, eps=eps)]


@aten("_native_batch_norm_legit_functional")
def functional_batch_norm(
    call: Call,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    running_mean: Node,
    running_var: Node,
    training: bool,
    momentum: float,
    eps: float,
) -> Value:
    """Batch norm with the running statistics after the call as results of their own."""
    if not training:
        y = apply("batch_norm", x, running_mean, running_var, weight, bias, eps=eps)
        call.only(0, 3, 4)
        return [y, None, None, running_mean, running_var]
    mean, var = _of_batch(x)
    rstd = apply("rsqrt", apply("add", var, number(eps, var.dtype)))
    count = math.prod(n for d, n in enumerate(ints(x.shape)) if d != 1)
    unbiased = apply("mul", var, number(count / max(count - 1, 1), var.dtype))
    return [
        apply("batch_norm", x, mean, var, weight, bias, eps=eps),
        mean,
        rstd,
        _moved(running_mean, mean, momentum),
        _moved(running_var, unbiased, momentum),
    ]


def _moved(old: Node, new: Node, momentum: float) -> Node:
    kept = apply("mul", old, number(1 - momentum, old.dtype))
    return apply("add", kept, apply("mul", cast(new, old.dtype), number(momentum, old.dtype)))
