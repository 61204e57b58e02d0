"""Matrix products, convolutions, einsum, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.capture.aten import call as aten_call
from whet.capture.aten.contraction import einsum as aten_einsum
from whet.capture.onnx.call import (
    Call,
    NoMapping,
    Value,
    cast,
    literal,
    onnx,
    permute,
    reshape,
    sizes,
)
from whet.capture.onnx.window import padded, window
from whet.ir.graph import Node, apply
from whet.ir.types import DType, TensorType

Ints = Sequence[int]


@onnx("MatMul")
def matmul(call: Call, x: Node, z: Node) -> Node:
    """A matrix product; a vector counts as a row on the left, as a column on the right."""
    a = reshape(x, (1, *sizes(x))) if len(x.shape) == 1 else x
    b = reshape(z, (*sizes(z), 1)) if len(z.shape) == 1 else z
    y = apply("matmul", a, b)
    shape = list(sizes(y))
    if len(z.shape) == 1:
        shape.pop()
    if len(x.shape) == 1:
        shape.pop(-1 if len(z.shape) == 1 else -2)
    return cast(reshape(y, shape), x.dtype)


@onnx("com.microsoft.FusedMatMul")
def fused_matmul(
    call: Call, x: Node, z: Node, alpha: float = 1.0, transA: int = 0, transB: int = 0,
    transBatchA: int = 0, transBatchB: int = 0,
) -> Node:  # fmt: skip
    """A scaled matrix product of operands that may lie transposed."""
    if transBatchA or transBatchB:
        raise NoMapping("batches transposed")
    y = matmul(call, _turned(x) if transA else x, _turned(z) if transB else z)
    return y if alpha == 1 else apply("mul", y, literal(alpha, y))


def _turned(x: Node) -> Node:
    rank = len(x.shape)
    return permute(x, [*range(rank - 2), rank - 1, rank - 2]) if rank > 1 else x


@onnx("Gemm")
def gemm(
    call: Call, x: Node, z: Node, c: Node | None = None, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0, broadcast: int = 0,
) -> Node:  # fmt: skip
    """alpha * x @ z + beta * c; a linear layer where it is one."""
    a = _turned(x) if transA else x
    width = sizes(z)[0] if transB else sizes(z)[1]
    row = c is None or sizes(c) in ((width,), (1, width))
    if transB and row and alpha == 1 and beta == 1 and x.dtype.is_float:
        return apply("linear", a, z, None if c is None else reshape(c, (width,)))
    y = apply("matmul", a, _turned(z) if transB else z)
    y = cast(y if alpha == 1 else apply("mul", y, literal(alpha, y)), x.dtype)
    if c is None or beta == 0:
        return y
    return apply("add", y, c if beta == 1 else apply("mul", c, literal(beta, c)))


@onnx("Einsum")
def einsum(call: Call, *operands: Node, equation: str) -> Node:
    """An einsum; its ellipsis and implicit output are written out as for torch."""
    dtype = operands[0].dtype
    like = aten_call.Call(
        "aten.einsum", (TensorType(dtype, ()),), frozenset({0}), call.walk.constant,
        call.walk.known, dense=True,
    )  # fmt: skip
    y = aten_einsum(like, equation, list(operands))
    return cast(y, dtype)


@onnx("Conv")
def conv(
    call: Call, x: Node, w: Node, bias: Node | None = None, auto_pad: str = "NOTSET",
    dilations: Ints | None = None, group: int = 1, kernel_shape: Ints | None = None,
    pads: Ints | None = None, strides: Ints | None = None,
) -> Node:  # fmt: skip
    """A convolution; uneven padding is done beforehand."""
    kernel = sizes(w)[2:]
    if kernel_shape is not None and tuple(kernel_shape) != kernel:
        raise NoMapping(f"kernel_shape {tuple(kernel_shape)} for a kernel of {kernel}")
    v = window(x, kernel, strides, dilations, pads, auto_pad)
    padding = v.before
    if not v.even:
        x, padding = padded(x, v.before, v.after, 0.0), (0,) * len(kernel)
    return apply(
        f"conv{len(kernel)}d", x, w, bias, groups=group, stride=v.stride, padding=padding,
        dilation=v.dilation,
    )  # fmt: skip


@onnx("ConvTranspose")
def conv_transpose(
    call: Call, x: Node, w: Node, bias: Node | None = None, auto_pad: str = "NOTSET",
    dilations: Ints | None = None, group: int = 1, kernel_shape: Ints | None = None,
    output_padding: Ints | None = None, output_shape: Ints | None = None,
    pads: Ints | None = None, strides: Ints | None = None,
) -> Node:  # fmt: skip
    """A transposed convolution: the whole of it, cut or lengthened at each end as asked."""
    kernel = sizes(w)[2:]
    rank = len(kernel)
    if not 1 <= rank <= 3:
        raise NoMapping(f"convolutions of {rank} dims")
    stride = tuple(strides or (1,) * rank)
    dilation = tuple(dilations or (1,) * rank)
    more = tuple(output_padding or (0,) * rank)
    given = tuple(pads or (0,) * (2 * rank))
    before, after = list(given[:rank]), list(given[rank:])
    full = [
        s * (n - 1) + d * (k - 1) + 1
        for n, k, s, d in zip(sizes(x)[2:], kernel, stride, dilation, strict=True)
    ]
    wanted = list(output_shape or ())[-rank:]
    if not wanted and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(sizes(x)[2:], stride, strict=True)]
    for k, size in enumerate(wanted):
        total = full[k] + more[k] - size
        before[k] = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        after[k] = total - before[k]
    attrs = dict(groups=group, stride=stride, dilation=dilation)
    plain = all(0 <= e < max(s, d) for e, s, d in zip(more, stride, dilation, strict=True))
    if before == after and min(before) >= 0 and plain:
        return apply(
            f"conv_transpose{rank}d", x, w, bias, padding=tuple(before), output_padding=more,
            **attrs,
        )  # fmt: skip
    zero = (0,) * rank
    y = apply(f"conv_transpose{rank}d", x, w, None, padding=zero, output_padding=zero, **attrs)
    for k in range(rank):
        y = _fitted(y, k + 2, before[k], full[k] + more[k] - after[k])
    if bias is None:
        return y
    return apply("add", y, reshape(bias, (*sizes(bias), *(1,) * rank)))


def _fitted(y: Node, axis: int, start: int, stop: int) -> Node:
    """Positions `start` up to `stop` of a dim; what lies outside it is zero."""
    size = sizes(y)[axis]
    if (start, stop) == (0, size):
        return y
    inner = apply("slice", y, axis=axis, start=max(start, 0), stop=min(stop, size), step=1)
    before, after = max(0, -start), max(0, stop - size)
    if not before and not after:
        return inner
    return apply("pad", inner, axis=axis, before=before, after=after, value=0.0)


@onnx("Attention")
def attention(
    call: Call, q: Node, k: Node, v: Node, mask: Node | None = None,
    past_key: Node | None = None, past_value: Node | None = None,
    nonpad_kv_seqlen: Node | None = None, is_causal: int = 0, kv_num_heads: int | None = None,
    q_num_heads: int | None = None, qk_matmul_output_mode: int = 0, scale: float | None = None,
    softcap: float = 0.0,
) -> Value:  # fmt: skip
    """Attention, kept whole; what the record does not have is left to the definition."""
    call.only(0, 1, 2)
    if softcap or nonpad_kv_seqlen is not None:
        raise NoMapping("attention with soft caps or unpadded lengths")
    if is_causal and (past_key is not None or sizes(q)[-2] != sizes(k)[-2]):
        raise NoMapping("causal attention of fewer queries than keys")
    flat = len(q.shape) == 3
    if flat:
        if q_num_heads is None or kv_num_heads is None:
            raise NoMapping("heads that are not counted")
        q = _heads(q, q_num_heads)
        k, v = _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    if past_key is not None and past_value is not None:
        k = apply("concat", past_key, k, axis=2)
        v = apply("concat", past_value, v, axis=2)
    heads, width = sizes(q)[1], sizes(q)[3]
    if mask is not None:
        mask = _mask(call, mask, q, k)
    y = apply(
        "attention", q, k, v, mask, scale=1 / math.sqrt(width) if scale is None else scale,
        causal=int(is_causal), group=heads // sizes(k)[1],
    )  # fmt: skip
    if flat:
        y = permute(y, (0, 2, 1, 3))
        y = reshape(y, (*sizes(y)[:2], heads * sizes(y)[3]))
    return [y, k, v]


def _heads(x: Node, heads: int) -> Node:
    batch, length, width = sizes(x)
    return permute(reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def _mask(call: Call, mask: Node, q: Node, k: Node) -> Node:
    """A mask to add, of the rank of the operands; truth values say who is seen."""
    if sizes(mask)[-1] != sizes(k)[-2]:
        raise NoMapping("a mask that is shorter than the keys")
    if mask.dtype is DType.bool:
        # A row that sees nobody has no softmax: only a mask that is known can rule that out.
        data = call.known(mask)
        if data is None or not bool(data.any(-1).all()):
            raise NoMapping("a mask that may hide everything from a query")
        mask = apply("where", mask, literal(0, q), literal(-math.inf, q))
    shape = (*(1,) * (len(q.shape) - len(mask.shape)), *sizes(mask))
    return reshape(cast(mask, q.dtype), shape)
