"""The library's backward calls, as derived gradients of the forward operators: `conv2d~w`.

A gradient takes the forward operands and then the cotangent. Where a call hands over the forward
result instead of the operand, the operand is read off the forward node; where a gradient depends on
an operand's shape alone, zeros of that shape stand in for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.capture.aten.call import (
    Call,
    NoMapping,
    Scalar,
    Value,
    aten,
    axis_of,
    cast,
    ints,
    number,
    reshape,
    tuple_of,
)
from whet.capture.aten.contraction import attention, attention_operands
from whet.capture.aten.indexing import merged
from whet.capture.aten.pooling import window_of
from whet.ir.graph import Node, apply
from whet.ir.types import DType

Mask = Sequence[bool]


def blank(size: Sequence[int], dtype: DType) -> Node:
    """Zeros, for an operand of which only the shape matters."""
    return apply("full", size=tuple(size), value=0.0 if dtype.is_float else 0, dtype=dtype)


def _channels(grad: Node) -> Node:
    """The gradient of a bias per channel: everything else summed."""
    return apply("sum", grad, dims=tuple(d for d in range(len(grad.shape)) if d != 1))


def _operand(result: Node, op: str) -> Node | None:
    """The operand of the forward node that `result` is, where it is one."""
    return result.args[0] if result.op == op else None


# -- pointwise -----------------------------------------------------------------------------------
@aten("threshold_backward")
def threshold_backward(call: Call, grad_output: Node, x: Node, threshold: Scalar) -> Node:
    """The gradient where the result lies above the threshold."""
    before = _operand(x, "relu")
    if before is not None and threshold == 0:
        return apply("relu~x", before, grad_output)
    hit = apply("gt", x, number(threshold, x.dtype))
    return apply("where", hit, grad_output, number(0, call.dtype))


@aten("sigmoid_backward", "tanh_backward")
def saturating_backward(call: Call, grad_output: Node, output: Node) -> Node:
    """Through the forward operand, or else through the result."""
    op = call.target.split(".")[1].removesuffix("_backward")
    before = _operand(output, op)
    if before is not None:
        return apply(f"{op}~x", before, grad_output)
    one = number(1, output.dtype)
    if op == "tanh":
        slope = apply("sub", one, apply("square", output))
    else:
        slope = apply("mul", output, apply("sub", one, output))
    return apply("mul", grad_output, slope)


@aten("gelu_backward")
def gelu_backward(call: Call, grad_output: Node, x: Node, approximate: str = "none") -> Node:
    """Either kind of GELU."""
    return apply({"none": "gelu~x", "tanh": "gelu_tanh~x"}[approximate], x, grad_output)


@aten("silu_backward", "hardswish_backward", "hardsigmoid_backward")
def unary_backward(call: Call, grad_output: Node, x: Node) -> Node:
    """Functions of one operand and nothing else."""
    return apply(call.target.split(".")[1].replace("_backward", "~x"), x, grad_output)


@aten("hardtanh_backward")
def hardtanh_backward(
    call: Call, grad_output: Node, x: Node, min_val: Scalar, max_val: Scalar
) -> Node:
    """Nothing at and beyond the bounds."""
    return apply("clamp~x", x, grad_output, low=float(min_val), high=float(max_val))


@aten("leaky_relu_backward")
def leaky_relu_backward(
    call: Call, grad_output: Node, x: Node, negative_slope: Scalar, self_is_result: bool
) -> Node:
    """The result has the operand's sign, so either will do."""
    return apply("leaky_relu~x", x, grad_output, slope=float(negative_slope))


@aten("softplus_backward")
def softplus_backward(
    call: Call, grad_output: Node, x: Node, beta: Scalar, threshold: Scalar
) -> Node:
    """One above the threshold."""
    return apply("softplus~x", x, grad_output, beta=float(beta), threshold=float(threshold))


@aten("_softmax_backward_data", "_log_softmax_backward_data")
def softmax_backward(
    call: Call, grad_output: Node, output: Node, dim: int, input_dtype: object
) -> Node:
    """Through the forward operand, or else through the result."""
    op = "log_softmax" if "_log_" in call.target else "softmax"
    axis = axis_of(dim, len(output.shape))
    before = _operand(output, op)
    if before is not None and output.attr("axis") == axis:
        return apply(f"{op}~x", before, grad_output, axis=axis)
    kept = tuple(1 if d == axis else n for d, n in enumerate(ints(output.shape)))
    if op == "log_softmax":
        total = reshape(apply("sum", grad_output, dims=(axis,)), kept)
        return apply("sub", grad_output, apply("mul", apply("exp", output), total))
    weighted = apply("mul", grad_output, output)
    total = reshape(apply("sum", weighted, dims=(axis,)), kept)
    return apply("sub", weighted, apply("mul", output, total))


# -- norms ---------------------------------------------------------------------------------------
def _epsilon(rstd: Node) -> float:
    """The number under the root of the reciprocal deviation that the forward call returned."""
    at = rstd
    while at.op in ("reshape", "rsqrt", "add"):
        at = at.operands[-1]
    value = at.attr("value")
    if at.op != "full" or not isinstance(value, float):
        raise NoMapping("statistics of unknown origin")
    return value


@aten("native_layer_norm_backward")
def layer_norm_backward(
    call: Call,
    grad_out: Node,
    x: Node,
    normalized_shape: Sequence[int],
    mean: Node,
    rstd: Node,
    weight: Node | None,
    bias: Node | None,
    output_mask: Mask,
) -> Value:
    """Gradients of the operand, the scale and the shift."""
    attrs = dict(size=tuple(normalized_shape), eps=_epsilon(rstd))
    return [
        apply(f"layer_norm~{name}", x, weight, bias, grad_out, **attrs)
        if wanted and given is not None
        else None
        for name, given, wanted in zip(
            ("x", "gamma", "beta"), (x, weight, bias), output_mask, strict=True
        )
    ]


@aten("native_group_norm_backward")
def group_norm_backward(
    call: Call,
    grad_out: Node,
    x: Node,
    mean: Node,
    rstd: Node,
    weight: Node | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    output_mask: Mask,
) -> Value:
    """Gradients of the operand, the scale and the shift."""
    operands = (x, weight, None, grad_out)
    attrs = dict(groups=group, eps=_epsilon(rstd))
    return [
        apply("group_norm~x", *operands, **attrs) if output_mask[0] else None,
        apply("group_norm~gamma", *operands, **attrs) if output_mask[1] and weight else None,
        _channels(grad_out) if output_mask[2] else None,
    ]


@aten("native_batch_norm_backward")
def batch_norm_backward(
    call: Call,
    grad_out: Node,
    x: Node,
    weight: Node | None,
    running_mean: Node | None,
    running_var: Node | None,
    save_mean: Node | None,
    save_invstd: Node | None,
    train: bool,
    eps: float,
    output_mask: Mask,
) -> Value:
    """Gradients of the operand, the scale and the shift; in training through the statistics too."""
    dims = tuple(d for d in range(len(x.shape)) if d != 1)
    if train:
        mean = apply("mean", x, dims=dims)
        var = apply("var", x, dims=dims, correction=0)
    elif running_mean is not None and running_var is not None:
        mean, var = running_mean, running_var
    else:
        raise NoMapping("no statistics")

    def gradient(name: str) -> Node:
        return apply(f"batch_norm~{name}", x, mean, var, weight, None, grad_out, eps=eps)

    dx = gradient("x") if output_mask[0] else None
    if dx is not None and train:
        dx = apply("add", dx, apply("mean~x", x, gradient("mean"), dims=dims))
        dx = apply("add", dx, apply("var~x", x, gradient("var"), dims=dims, correction=0))
    return [
        dx,
        gradient("gamma") if output_mask[1] and weight is not None else None,
        _channels(grad_out) if output_mask[2] else None,
    ]


# -- contractions --------------------------------------------------------------------------------
@aten("convolution_backward")
def convolution_backward(
    call: Call,
    grad_output: Node,
    x: Node,
    weight: Node,
    bias_sizes: object,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Mask,
) -> Value:
    """Gradients of the operand, the kernel and the bias."""
    rank = len(weight.shape) - 2
    attrs: dict[str, object] = dict(
        groups=groups, stride=tuple_of(stride, rank),
        padding=tuple_of(padding, rank), dilation=tuple_of(dilation, rank),
    )  # fmt: skip
    op = f"conv{rank}d"
    if transposed:
        op, attrs["output_padding"] = f"conv_transpose{rank}d", tuple_of(output_padding, rank)
    found = [
        apply(f"{op}~{name}", x, weight, None, grad_output, **attrs) if wanted else None
        for name, wanted in zip("xw", output_mask, strict=False)
    ]
    return [*found, _channels(grad_output) if output_mask[2] else None]


@aten("_scaled_dot_product_flash_attention_for_cpu")
def flash_attention(
    call: Call,
    query: Node,
    key: Node,
    value: Node,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    attn_mask: Node | None = None,
    scale: float | None = None,
) -> Value:
    """Attention, as it is spelled below autograd; the logarithm it also gives has no record."""
    call.only(0)
    return [attention(call, query, key, value, attn_mask, dropout_p, is_causal, scale, True)]


@aten("_scaled_dot_product_flash_attention_for_cpu_backward")
def flash_attention_backward(
    call: Call,
    grad_out: Node,
    query: Node,
    key: Node,
    value: Node,
    out: Node,
    logsumexp: None,
    dropout_p: float,
    is_causal: bool,
    attn_mask: Node | None = None,
    scale: float | None = None,
) -> Value:
    """Gradients of query, key and value."""
    if dropout_p > 0:
        raise NoMapping("draws random numbers")
    operands, attrs = attention_operands(query, key, value, attn_mask, is_causal, scale, True)
    return [apply(f"attention~{name}", *operands, grad_out, **attrs) for name in "qkv"]


# -- pooling -------------------------------------------------------------------------------------
@aten("max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward")
def max_pool_backward(
    call: Call,
    grad_output: Node,
    x: Node,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: None,
) -> Node:
    """To the first largest of each window."""
    rank = int(next(c for c in call.target if c.isdigit()))
    window = window_of(rank, x, ints(grad_output.shape), kernel_size, stride, padding, dilation)
    return apply(f"max_pool{rank}d~x", x, grad_output, **window)


@aten("avg_pool2d_backward", "avg_pool3d_backward")
def avg_pool_backward(
    call: Call,
    grad_output: Node,
    x: Node,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Node:
    """To all of each window alike."""
    if divisor_override is not None:
        raise NoMapping("divided by a given number")
    rank = int(next(c for c in call.target if c.isdigit()))
    window = window_of(rank, x, ints(grad_output.shape), kernel_size, stride, padding, 1)
    del window["dilation"]
    include = int(count_include_pad)
    return apply(f"avg_pool{rank}d~x", x, grad_output, **window, include_padding=include)


@aten("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
def adaptive_avg_pool_backward(call: Call, grad_output: Node, x: Node) -> Node:
    """To all of each piece alike."""
    rank = int(next(c for c in call.target if c.isdigit()))
    size = ints(grad_output.shape)[-rank:]
    return apply(f"adaptive_avg_pool{rank}d~x", x, grad_output, size=size)


# -- positions -----------------------------------------------------------------------------------
@aten("embedding_dense_backward")
def embedding_backward(
    call: Call,
    grad_output: Node,
    indices: Node,
    num_weights: int,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
) -> Node:
    """Rows summed where they were read; a padding row gets nothing."""
    if scale_grad_by_freq:
        raise NoMapping("gradients scaled by frequency")
    if 0 <= padding_idx < num_weights:
        padded = apply("eq", indices, number(padding_idx, indices.dtype))
        padded = reshape(padded, (*ints(indices.shape), 1))
        grad_output = apply("where", padded, number(0, call.dtype), grad_output)
    return apply("embedding~t", blank(call.shape, call.dtype), indices, grad_output)


@aten("index_put", "_unsafe_index_put")
def index_put(
    call: Call,
    x: Node,
    indices: list[Node | None],
    values: Node,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Node:
    """Values added at positions: the gradient of reading them."""
    if not accumulate:
        raise NoMapping("positions that may coincide")
    m = merged(call, x, indices)
    if m.order != list(range(len(x.shape))):
        raise NoMapping("indexed dims apart from each other")
    places = math.prod(ints(m.at.shape))
    wide = (*m.outer, *ints(m.at.shape), *m.inner)
    values = apply("expand", cast(values, call.dtype), size=wide)
    values = reshape(values, (*m.outer, places, *m.inner))
    base = blank((*m.outer, m.count, *m.inner), call.dtype)
    at = reshape(m.at, (places,))
    added = apply("index_select~x", base, at, values, axis=len(m.outer))
    return apply("add", x, reshape(added, call.shape))


@aten("slice_backward")
def slice_backward(
    call: Call,
    grad_output: Node,
    input_sizes: Sequence[int],
    dim: int,
    start: int,
    end: int,
    step: int,
) -> Node:
    """The gradient where it was cut from, zero elsewhere."""
    axis = axis_of(dim, len(input_sizes))
    begin, stop, _ = slice(start, end, step).indices(input_sizes[axis])
    whole = blank(input_sizes, call.dtype)
    return apply("slice~x", whole, grad_output, axis=axis, start=begin, stop=stop, step=step)


@aten("select_backward")
def select_backward(
    call: Call, grad_output: Node, input_sizes: Sequence[int], dim: int, index: int
) -> Node:
    """The gradient where it was taken from, zero elsewhere."""
    axis = axis_of(dim, len(input_sizes))
    whole = blank(input_sizes, call.dtype)
    return apply("select~x", whole, grad_output, axis=axis, index=index % input_sizes[axis])
