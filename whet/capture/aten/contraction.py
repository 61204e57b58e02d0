"""Matrix products, convolutions, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.capture.aten.call import (
    Call,
    NoMapping,
    Scalar,
    aten,
    cast,
    expand,
    ints,
    number,
    reshape,
    tuple_of,
)
from whet.ir.graph import Node, apply
from whet.ir.types import DType

Sizes = int | Sequence[int]


@aten("matmul", "mm", "bmm", "mv", "dot", "vdot")
def matmul(
    call: Call, x: Node, other: Node | None = None, mat2: Node | None = None,
    vec: Node | None = None, tensor: Node | None = None,
) -> Node:  # fmt: skip
    """A matrix product; a vector counts as a row on the left, as a column on the right."""
    z = next(v for v in (other, mat2, vec, tensor) if v is not None)
    a = reshape(x, (1, *ints(x.shape))) if len(x.shape) == 1 else x
    b = reshape(z, (*ints(z.shape), 1)) if len(z.shape) == 1 else z
    return reshape(apply("matmul", a, b), call.shape)


@aten("addmm", "baddbmm", "addmv")
def addmm(
    call: Call, x: Node, mat1: Node | None = None, mat2: Node | None = None,
    batch1: Node | None = None, batch2: Node | None = None, mat: Node | None = None,
    vec: Node | None = None, beta: Scalar = 1, alpha: Scalar = 1,
) -> Node:  # fmt: skip
    """beta * x + alpha * (a @ b)"""
    a = next(v for v in (mat1, batch1, mat) if v is not None)
    b = next(v for v in (mat2, batch2, vec) if v is not None)
    column = b if vec is None else reshape(b, (*ints(b.shape), 1))
    product = apply("matmul", a, column)
    if vec is not None:
        product = reshape(product, ints(product.shape)[:-1])
    if alpha != 1:
        product = apply("mul", product, number(alpha, product.dtype))
    if beta == 0:
        return product
    if beta != 1:
        x = apply("mul", x, number(beta, x.dtype))
    return apply("add", x, product)


@aten("linear")
def linear(call: Call, x: Node, weight: Node, bias: Node | None = None) -> Node:
    """x @ weight^T + bias"""
    if len(weight.shape) == 1:
        y = reshape(apply("linear", x, reshape(weight, (1, *ints(weight.shape))), None), call.shape)
        return y if bias is None else apply("add", y, bias)
    return apply("linear", x, weight, bias)


@aten("einsum")
def einsum(call: Call, equation: str, tensors: list[Node], path: object = None) -> Node:
    """An einsum, its ellipsis and implicit output written out, as a record of its own."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    letters = iter(
        c for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation
    )
    widest = max(
        len(t.shape) - len(s.replace("...", "")) for t, s in zip(tensors, terms, strict=True)
    )
    dots = "".join(next(letters) for _ in range(widest)) if "..." in inputs else ""
    if not arrow:
        counted = inputs.replace(".", "").replace(",", "")
        out = "..." + "".join(sorted(c for c in set(counted) if counted.count(c) == 1))
    spelled = []
    for t, s in zip(tensors, terms, strict=True):
        extra = len(t.shape) - len(s.replace("...", ""))
        spelled.append(s.replace("...", dots[len(dots) - extra :]))
    out = out.replace("...", dots)
    if any(len(set(s)) < len(s) for s in spelled) or not (",".join(spelled) + out).islower():
        raise NoMapping("an index repeated within an operand, or in upper case")
    sizes: dict[str, int] = {}
    for t, s in zip(tensors, spelled, strict=True):
        for letter, n in zip(s, ints(t.shape), strict=True):
            if sizes.setdefault(letter, n) != n:
                raise NoMapping("operands broadcast against each other")
    parts = [cast(t, call.dtype) for t in tensors]
    return apply("einsum", *parts, equation=f"{','.join(spelled)}->{out}")


@aten("bilinear")
def bilinear(
    call: Call, input1: Node, input2: Node, weight: Node, bias: Node | None = None
) -> Node:
    """A form that is linear in each of two vectors, for every output."""
    a, b = (
        reshape(t, (math.prod(ints(t.shape)[:-1]), ints(t.shape)[-1])) for t in (input1, input2)
    )
    y = reshape(apply("einsum", a, weight, b, equation="bi,oij,bj->bo"), call.shape)
    return y if bias is None else apply("add", y, bias)


@aten("conv1d", "conv2d", "conv3d")
def conv(
    call: Call,
    x: Node,
    weight: Node,
    bias: Node | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Node:
    """A convolution; without a batch dim it gets one for the while."""
    rank = len(weight.shape) - 2
    x = _batched(x, rank)
    if isinstance(padding, str):
        x, padding = _named_padding(x, weight, tuple_of(dilation, rank), padding)
    y = apply(
        f"conv{rank}d", x, weight, bias, groups=groups, stride=tuple_of(stride, rank),
        padding=tuple_of(padding, rank), dilation=tuple_of(dilation, rank),
    )  # fmt: skip
    return reshape(y, call.shape)


def _named_padding(
    x: Node, weight: Node, dilation: tuple[int, ...], padding: str
) -> tuple[Node, tuple[int, ...]]:
    """What "valid" and "same" mean; an odd sum pads once more on the right, as the library does."""
    if padding == "valid":
        return x, (0,) * len(dilation)
    totals = [d * (k - 1) for d, k in zip(dilation, ints(weight.shape)[2:], strict=True)]
    for k, total in enumerate(totals):
        if total % 2:
            x = apply("pad", x, axis=k + 2, before=0, after=1, value=0.0)
    return x, tuple(t // 2 for t in totals)


@aten("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    call: Call,
    x: Node,
    weight: Node,
    bias: Node | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Node:
    """A transposed convolution."""
    rank = len(weight.shape) - 2
    y = apply(
        f"conv_transpose{rank}d", _batched(x, rank), weight, bias, groups=groups,
        stride=tuple_of(stride, rank), padding=tuple_of(padding, rank),
        dilation=tuple_of(dilation, rank), output_padding=tuple_of(output_padding, rank),
    )  # fmt: skip
    return reshape(y, call.shape)


@aten("convolution", "_convolution")
def convolution(
    call: Call,
    x: Node,
    weight: Node,
    bias: Node | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    benchmark: bool = False,
    deterministic: bool = False,
    cudnn_enabled: bool = False,
    allow_tf32: bool = False,
) -> Node:
    """Either kind of convolution, as decompositions spell it."""
    if transposed:
        return conv_transpose(
            call, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return conv(call, x, weight, bias, stride, padding, dilation, groups)


def _batched(x: Node, rank: int) -> Node:
    return reshape(x, (1, *ints(x.shape))) if len(x.shape) == rank + 1 else x


@aten("scaled_dot_product_attention")
def attention(
    call: Call,
    query: Node,
    key: Node,
    value: Node,
    attn_mask: Node | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Node:
    """Attention, kept whole; a mask of truth values becomes one of zeros and minus infinities."""
    if dropout_p > 0:
        raise NoMapping("draws random numbers")
    operands, attrs = attention_operands(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    return reshape(apply("attention", *operands, **attrs), call.shape)


def attention_operands(
    query: Node,
    key: Node,
    value: Node,
    attn_mask: Node | None,
    is_causal: bool,
    scale: float | None,
    grouped: bool,
) -> tuple[tuple[Node | None, ...], dict[str, object]]:
    """Operands and attributes of `attention`: heads in groups, the mask of full rank and added."""
    rank = max(len(query.shape), 3)
    q, k, v = (
        reshape(t, (1,) * (rank - len(t.shape)) + ints(t.shape)) for t in (query, key, value)
    )
    heads, groups = ints(q.shape)[-3], ints(k.shape)[-3]
    if heads != groups and not grouped:
        k, v = (expand(t, (*ints(t.shape)[:-3], heads, *ints(t.shape)[-2:])) for t in (k, v))
        groups = heads
    mask = attn_mask
    if mask is not None:
        if mask.dtype is DType.bool:
            mask = apply("where", mask, number(0, q.dtype), number(-math.inf, q.dtype))
        shape = (1,) * (rank - len(mask.shape)) + ints(mask.shape)
        mask = reshape(cast(mask, q.dtype), shape)
    if scale is None:
        scale = 1 / math.sqrt(ints(q.shape)[-1])
    return (q, k, v, mask), dict(scale=scale, causal=is_causal, group=heads // groups)
