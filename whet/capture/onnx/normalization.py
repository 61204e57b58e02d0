"""Normalizations, kept whole."""

from __future__ import annotations

import math

from whet.capture.onnx.call import (
    Call,
    NoMapping,
    Value,
    axis_in,
    cast,
    literal,
    onnx,
    reshape,
    sizes,
)
from whet.capture.onnx.reduction import normalized
from whet.ir.graph import Node, apply
from whet.ir.types import DType


@onnx("BatchNormalization")
def batch_norm(
    call: Call, x: Node, scale: Node, bias: Node, mean: Node, var: Node, epsilon: float = 1e-5,
    training_mode: int = 0, is_test: int = 1, consumed_inputs: object = None,
) -> Value:  # fmt: skip
    """Channels shifted and scaled by given statistics."""
    if training_mode or (call.opset < 7 and not is_test):
        raise NoMapping("batch normalization in training")
    call.only(0)
    parts = [cast(t, x.dtype) for t in (mean, var, scale, bias)]
    return [apply("batch_norm", x, *parts, eps=epsilon)]


@onnx("InstanceNormalization")
def instance_norm(
    call: Call, x: Node, scale: Node, bias: Node, epsilon: float = 1e-5,
    consumed_inputs: object = None,
) -> Node:  # fmt: skip
    """Zero mean and unit variance of each channel of each instance."""
    return apply("group_norm", x, scale, bias, groups=sizes(x)[1], eps=epsilon)


@onnx("GroupNormalization")
def group_norm(
    call: Call, x: Node, scale: Node, bias: Node, num_groups: int, epsilon: float = 1e-5
) -> Node:
    """The same of groups of channels; before version 21 scaled by group, since then by channel."""
    if call.opset >= 21:
        return apply("group_norm", x, scale, bias, groups=num_groups, eps=epsilon)
    y = apply("group_norm", x, None, None, groups=num_groups, eps=epsilon)
    shape = sizes(x)
    apart = (shape[0], num_groups, shape[1] // num_groups, *shape[2:])
    factors = [reshape(t, (1, num_groups, *(1,) * (len(apart) - 2))) for t in (scale, bias)]
    y = apply("add", apply("mul", reshape(y, apart), factors[0]), factors[1])
    return reshape(y, shape)


@onnx("LayerNormalization")
def layer_norm(
    call: Call, x: Node, scale: Node, bias: Node | None = None, axis: int = -1,
    epsilon: float = 1e-5,
) -> Value:  # fmt: skip
    """Zero mean and unit variance over the dims from one on; the statistics where asked for."""
    k = axis_in(axis, len(x.shape))
    dims, size = tuple(range(k, len(x.shape))), sizes(x)[k:]
    whole = all(t is None or sizes(t) == size for t in (scale, bias))
    y = apply("layer_norm", x, *((scale, bias) if whole else (None, None)), size=size, eps=epsilon)
    if not whole:
        y = apply("mul", y, scale)
        y = y if bias is None else apply("add", y, bias)
    if not call.used - {0}:
        return [y]
    wide = cast(x, DType.f32) if x.dtype in (DType.f16, DType.bf16) else x
    mean, var = apply("mean", wide, dims=dims), apply("var", wide, dims=dims, correction=0)
    rstd = apply("rsqrt", apply("add", var, literal(epsilon, var)))
    kept = (*sizes(x)[:k], *(1,) * len(dims))
    return [y, reshape(mean, kept), reshape(rstd, kept)]


@onnx("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(
    call: Call, x: Node, scale: Node, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Value:
    """Unit mean square over the dims from one on."""
    call.only(0)
    k = axis_in(axis, len(x.shape))
    size = sizes(x)[k:]
    if sizes(scale) == size:
        return [apply("rms_norm", x, scale, size=size, eps=epsilon)]
    return [apply("mul", apply("rms_norm", x, None, size=size, eps=epsilon), scale)]


@onnx("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
def skip_layer_norm(
    call: Call, x: Node, skip: Node, gamma: Node, beta: Node | None = None,
    bias: Node | None = None, epsilon: float = 1e-12,
) -> Value:  # fmt: skip
    """The norm of a sum; the sum itself is output 3."""
    call.only(0, 3)
    total = apply("add", x, skip)
    if call.node.op == "SkipSimplifiedLayerNormalization":
        total = total if beta is None else apply("add", total, beta)
        y = apply("rms_norm", total, gamma, size=sizes(gamma), eps=epsilon)
    else:
        total = total if bias is None else apply("add", total, bias)
        y = apply("layer_norm", total, gamma, beta, size=sizes(gamma), eps=epsilon)
    return [y, None, None, total]


@onnx("LRN")
def local_response_norm(
    call: Call, x: Node, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Node:
    """Each channel scaled by the squares of its neighbours."""
    return apply(
        "local_response_norm", x, size=size, before=(size - 1) // 2, alpha=alpha, beta=beta, k=bias
    )


@onnx("MeanVarianceNormalization")
def mean_variance_norm(call: Call, x: Node, axes: tuple[int, ...] = (0, 2, 3)) -> Node:
    """Zero mean and unit variance over some dims; nothing keeps the variance from zero but 1e-9."""
    dims = tuple(sorted(axis_in(a, len(x.shape)) for a in axes))
    kept = [1 if d in dims else n for d, n in enumerate(sizes(x))]
    mean = reshape(apply("mean", x, dims=dims), kept)
    deviation = apply("sqrt", apply("var", x, dims=dims, correction=0))
    deviation = apply("add", reshape(deviation, kept), literal(1e-9, x))
    return apply("div", apply("sub", x, mean), deviation)


@onnx("LpNormalization")
def lp_norm(call: Call, x: Node, axis: int = -1, p: int = 2) -> Node:
    """Unit p-norm along a dim; zeros stay zeros."""
    k = axis_in(axis, len(x.shape))
    inner = apply("abs", x) if p == 1 else apply("square", x)
    norm = apply("sum", inner, dims=(k,))
    return normalized(x, norm if p == 1 else apply("sqrt", norm), (k,))


@onnx("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def nll_loss(
    call: Call, x: Node, target: Node, weight: Node | None = None, ignore_index: int | None = None,
    reduction: str = "mean",
) -> Value:  # fmt: skip
    """The negative of the (log-softmax of) x at the target class, weighted, and averaged so."""
    log = apply("log_softmax", x, axis=1) if call.node.op.startswith("Soft") else x
    shape = sizes(x)
    at = cast(target, DType.i64)
    keep = apply("ne", at, literal(ignore_index, at)) if ignore_index is not None else None
    if keep is not None:
        at = apply("where", keep, at, literal(0, at))
    picked = apply("gather", log, reshape(at, (shape[0], 1, *shape[2:])), axis=1)
    loss = apply("neg", reshape(picked, sizes(target)))
    each: Node | None = None
    if weight is not None:
        flat = apply("index_select", weight, reshape(at, (math.prod(sizes(at)),)), axis=0)
        each = reshape(flat, sizes(at))
        loss = apply("mul", loss, each)
    if keep is not None:
        loss = apply("where", keep, loss, literal(0, loss))
        each = apply("where", keep, literal(1, loss) if each is None else each, literal(0, loss))
    dims = tuple(range(len(loss.shape)))
    if reduction != "none":
        total = apply("sum", loss, dims=dims)
        if reduction == "sum":
            loss = total
        elif each is None:
            loss = apply("mean", loss, dims=dims)
        else:
            loss = apply("div", total, apply("sum", each, dims=dims))
    return [loss, log]
