"""Operators of the table under the name that ONNX has for them: one row each.

    row(writer, node, operand name or None, …, attribute=…) -> name

A row that cannot say a node raises `Unwritten`; its record is written out then, as those of all
operators without a row are. Attributes are the node's; operands have the types of its arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from whet.backend.aten import torch_dtype
from whet.capture.onnx.pointwise import BINARY, UNARY
from whet.capture.onnx.writer import Unwritten, Writer, sizes
from whet.ir.graph import Node
from whet.ir.types import DType, promote

Row = Callable[..., str]
ROWS: dict[str, Row] = {}
Ints = Sequence[int]


def row(*names: str) -> Callable[[Row], Row]:
    """Register a row for operators."""

    def register(made: Row) -> Row:
        ROWS.update(dict.fromkeys(names, made))
        return made

    return register


def _shape(n: Node, k: int) -> tuple[int, ...]:
    a = n.args[k]
    assert a is not None
    return sizes(a)


def _dtype(n: Node, k: int = 0) -> DType:
    a = n.args[k]
    assert a is not None
    return a.dtype


def _alike(w: Writer, n: Node, *names: str | None) -> list[str | None]:
    """Operands in the type of the result."""
    return [
        x if x is None else w.cast(x, _dtype(n, k), n.dtype) for k, x in enumerate(names)
    ]  # fmt: skip


# -- element by element ----------------------------------------------------------------------------
def _unary(op: str, w: Writer, n: Node, x: str) -> str:
    if not n.dtype.is_float:  # runtimes know some of these for floats alone
        raise Unwritten
    return w.op(op, w.cast(x, _dtype(n), n.dtype))


_OF_FLAGS = ("And", "Or", "Xor", "Equal")


def _binary(op: str, w: Writer, n: Node, x: str, z: str) -> str:
    meet = promote((_dtype(n, 0), _dtype(n, 1)))
    if meet is DType.bool:
        if op not in _OF_FLAGS:
            raise Unwritten
    elif (op in _OF_FLAGS and op != "Equal") or n.dtype not in (DType.bool, meet):
        raise Unwritten
    x, z = w.cast(x, _dtype(n, 0), meet), w.cast(z, _dtype(n, 1), meet)
    return w.op(op, x, z)


for _theirs, _ours in UNARY.items():
    ROWS[_ours] = functools.partial(_unary, _theirs)
for _theirs, _ours in BINARY.items():
    ROWS[_ours] = functools.partial(_binary, _theirs)


def _float_only(made: Row) -> Row:
    def checked(w: Writer, n: Node, *args: str | None, **attrs: object) -> str:
        if not all(a is None or a.dtype is n.dtype for a in n.args) or not n.dtype.is_float:
            raise Unwritten
        return made(w, n, *args, **attrs)

    return checked


def _single(made: Row) -> Row:
    """Attributes have 32 bits: float64 is written out with the number itself."""

    def checked(w: Writer, n: Node, *args: str | None, **attrs: object) -> str:
        if n.dtype is DType.f64:
            raise Unwritten
        return made(w, n, *args, **attrs)

    return _float_only(checked)


ROWS["div"] = _float_only(lambda w, n, x, z: w.op("Div", x, z))
ROWS["pow"] = _float_only(lambda w, n, x, z: w.op("Pow", x, z))
ROWS["maximum"] = _float_only(lambda w, n, x, z: w.op("Max", x, z))
ROWS["minimum"] = _float_only(lambda w, n, x, z: w.op("Min", x, z))
ROWS["square"] = _float_only(lambda w, n, x: w.op("Mul", x, x))
ROWS["gelu"] = _float_only(lambda w, n, x: w.op("Gelu", x))
ROWS["gelu_tanh"] = _float_only(lambda w, n, x: w.op("Gelu", x, approximate="tanh"))
ROWS["leaky_relu"] = _single(lambda w, n, x, slope: w.op("LeakyRelu", x, alpha=float(slope)))


@row("cast")
def cast(w: Writer, n: Node, x: str, dtype: DType) -> str:
    """Another element type."""
    return w.cast(x, _dtype(n), dtype)


@row("where")
def where(w: Writer, n: Node, c: str, x: str, z: str) -> str:
    """One of two."""
    if _dtype(n) is not DType.bool:
        raise Unwritten
    return w.op("Where", c, w.cast(x, _dtype(n, 1), n.dtype), w.cast(z, _dtype(n, 2), n.dtype))


@row("clamp")
@_float_only
def clamp(w: Writer, n: Node, x: str, low: float, high: float) -> str:
    """Between two bounds."""
    return w.op("Clip", x, w.number(low, n.dtype), w.number(high, n.dtype))


@row("full")
def full(w: Writer, n: Node, size: Ints, value: float, dtype: DType) -> str:
    """One number everywhere."""
    one = w.number(value, dtype)
    return one if not size else w.op("Expand", one, w.ints(*size))


@row("arange")
def arange(w: Writer, n: Node, size: int, start: float, step: float, dtype: DType) -> str:
    """Numbers in a row."""
    line = start + step * torch.arange(size, dtype=torch.float64 if dtype.is_float else torch.int64)
    return w.constant(line.to(torch_dtype(dtype)))


# -- movement --------------------------------------------------------------------------------------
@row("reshape")
def reshape(w: Writer, n: Node, x: str, size: Ints) -> str:
    """Another shape."""
    return w.reshape(x, size)


@row("permute")
def permute(w: Writer, n: Node, x: str, dims: Ints) -> str:
    """Dims in another order."""
    return w.op("Transpose", x, perm=tuple(dims)) if dims else x


@row("expand")
def expand(w: Writer, n: Node, x: str, size: Ints) -> str:
    """Dims of 1 repeated."""
    return w.op("Expand", x, w.ints(*size))


@row("slice")
def slice_(w: Writer, n: Node, x: str, axis: int, start: int, stop: int, step: int) -> str:
    """A part of a dim."""
    return w.op("Slice", x, w.ints(start), w.ints(stop), w.ints(axis), w.ints(step))


@row("select")
def select(w: Writer, n: Node, x: str, axis: int, index: int) -> str:
    """One position of a dim."""
    return w.op("Gather", x, w.constant(torch.tensor(index)), axis=axis)


@row("flip")
def flip(w: Writer, n: Node, x: str, axis: int) -> str:
    """A dim the other way around."""
    far = -(1 << 62)
    return w.op("Slice", x, w.ints(-1), w.ints(far), w.ints(axis), w.ints(-1))


@row("pad")
def pad(w: Writer, n: Node, x: str, axis: int, before: int, after: int, value: float) -> str:
    """A number around a dim."""
    return w.op("Pad", x, w.ints(before, after), w.number(value, n.dtype), w.ints(axis))


@row("concat")
def concat(w: Writer, n: Node, *xs: str, axis: int) -> str:
    """One behind the other."""
    return w.op("Concat", *_alike(w, n, *xs), axis=axis)


@row("stack")
def stack(w: Writer, n: Node, *xs: str, axis: int) -> str:
    """Along a new dim."""
    return w.op(
        "Concat", *(w.op("Unsqueeze", str(x), w.ints(axis)) for x in _alike(w, n, *xs)), axis=axis
    )


@row("embedding")
def embedding(w: Writer, n: Node, t: str, ids: str) -> str:
    """Rows of a table."""
    return w.op("Gather", t, w.cast(ids, _dtype(n, 1), DType.i64), axis=0)


@row("index_select")
def index_select(w: Writer, n: Node, x: str, ids: str, axis: int) -> str:
    """Positions of a dim."""
    return w.op("Gather", x, w.cast(ids, _dtype(n, 1), DType.i64), axis=axis)


@row("gather")
def gather(w: Writer, n: Node, x: str, ids: str, axis: int) -> str:
    """A position for each element."""
    rest = [(a, b) for d, (a, b) in enumerate(zip(_shape(n, 0), _shape(n, 1), strict=True))
            if d != axis]  # fmt: skip
    if any(a != b for a, b in rest):
        raise Unwritten
    return w.op("GatherElements", x, w.cast(ids, _dtype(n, 1), DType.i64), axis=axis)


@row("tril", "triu")
def triangle(w: Writer, n: Node, x: str, diagonal: int) -> str:
    """One side of a diagonal."""
    at = w.constant(torch.tensor(diagonal))
    return w.op("Trilu", x, at, upper=int(n.op == "triu"))


# -- sums of products ------------------------------------------------------------------------------
@row("matmul")
@_float_only
def matmul(w: Writer, n: Node, x: str, z: str) -> str:
    """A matrix product."""
    return w.op("MatMul", x, z)


@row("linear")
@_float_only
def linear(w: Writer, n: Node, x: str, weight: str, bias: str | None) -> str:
    """A product with a transposed matrix, and a row added."""
    if len(_shape(n, 0)) == 2:
        return w.op("Gemm", x, weight, bias, transB=1)
    y = w.op("MatMul", x, w.op("Transpose", weight, perm=(1, 0)))
    return y if bias is None else w.op("Add", y, bias)


@row("einsum")
@_float_only
def einsum(w: Writer, n: Node, *xs: str, equation: str) -> str:
    """By its equation; few runtimes know diagonals."""
    if any(len(set(t)) < len(t) for t in equation.partition("->")[0].split(",")):
        raise Unwritten
    return w.op("Einsum", *xs, equation=equation.replace(" ", ""))


@row("conv1d", "conv2d", "conv3d")
@_float_only
def conv(
    w: Writer, n: Node, x: str, weight: str, bias: str | None, groups: int, stride: Ints,
    padding: Ints, dilation: Ints,
) -> str:  # fmt: skip
    """A convolution."""
    return w.op(
        "Conv", x, weight, bias, group=groups, strides=tuple(stride),
        pads=(*padding, *padding), dilations=tuple(dilation),
    )  # fmt: skip


@row("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
@_float_only
def conv_transpose(
    w: Writer, n: Node, x: str, weight: str, bias: str | None, groups: int, stride: Ints,
    padding: Ints, output_padding: Ints, dilation: Ints,
) -> str:  # fmt: skip
    """A transposed convolution."""
    return w.op(
        "ConvTranspose", x, weight, bias, group=groups, strides=tuple(stride),
        pads=(*padding, *padding), output_padding=tuple(output_padding), dilations=tuple(dilation),
    )  # fmt: skip


@row("attention")
@_float_only
def attention(
    w: Writer, n: Node, q: str, k: str, v: str, mask: str | None, scale: float, causal: int,
    group: int,
) -> str:  # fmt: skip
    """Scores, their softmax, and the values weighted by it."""
    if group != 1 or len(_shape(n, 0)) != 4:
        raise Unwritten
    turned = w.op("Transpose", k, perm=(0, 1, 3, 2))
    scores = w.op("Mul", w.op("MatMul", q, turned), w.number(scale, n.dtype))
    if mask is not None:
        scores = w.op("Add", scores, mask)
    if causal:
        rows, columns = _shape(n, 0)[-2], _shape(n, 1)[-2]
        seen = torch.ones(rows, columns, dtype=torch.bool).tril()
        scores = w.op("Where", w.constant(seen), scores, w.number(float("-inf"), n.dtype))
    return w.op("MatMul", w.op("Softmax", scores, axis=-1), v)


# -- reductions ------------------------------------------------------------------------------------
def _reduction(op: str, w: Writer, n: Node, x: str, dims: Ints) -> str:
    if _dtype(n) is DType.bool:
        raise Unwritten
    x = w.cast(x, _dtype(n), n.dtype)
    return w.op(op, x, w.ints(*dims), keepdims=0) if dims else x


for _ours, _theirs in {
    "sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin",
    "prod": "ReduceProd",
}.items():  # fmt: skip
    ROWS[_ours] = functools.partial(_reduction, _theirs)


@row("softmax", "log_softmax")
@_float_only
def softmax(w: Writer, n: Node, x: str, axis: int) -> str:
    """Along one dim."""
    return w.op("Softmax" if n.op == "softmax" else "LogSoftmax", x, axis=axis)


@row("logsumexp")
@_float_only
def logsumexp(w: Writer, n: Node, x: str, axis: int) -> str:
    """Along one dim."""
    return w.op("ReduceLogSumExp", x, w.ints(axis), keepdims=0)


@row("argmax", "argmin")
def argmax(w: Writer, n: Node, x: str, axis: int) -> str:
    """The first place of the extreme."""
    if not _dtype(n).is_float:
        raise Unwritten
    return w.op("ArgMax" if n.op == "argmax" else "ArgMin", x, axis=axis, keepdims=0)


@row("cumsum")
def cumsum(w: Writer, n: Node, x: str, axis: int) -> str:
    """Sums so far."""
    return w.op("CumSum", w.cast(x, _dtype(n), n.dtype), w.constant(torch.tensor(axis)))


# -- windows and norms -----------------------------------------------------------------------------
@row("max_pool1d", "max_pool2d", "max_pool3d")
@_float_only
def max_pool(
    w: Writer, n: Node, x: str, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints,
    extra: Ints,
) -> str:  # fmt: skip
    """The largest of each window."""
    after = [p + e for p, e in zip(padding, extra, strict=True)]
    if any(p >= k for p, k in zip(after, kernel, strict=True)):
        raise Unwritten
    return w.op(
        "MaxPool", x, kernel_shape=tuple(kernel), strides=tuple(stride), pads=(*padding, *after),
        dilations=tuple(dilation),
    )  # fmt: skip


@row("avg_pool1d", "avg_pool2d", "avg_pool3d")
@_float_only
def avg_pool(
    w: Writer, n: Node, x: str, kernel: Ints, stride: Ints, padding: Ints, extra: Ints,
    include_padding: int,
) -> str:  # fmt: skip
    """The mean of each window."""
    after = [p + e for p, e in zip(padding, extra, strict=True)]
    if (any(extra) and include_padding) or any(p >= k for p, k in zip(after, kernel, strict=True)):
        raise Unwritten
    return w.op(
        "AveragePool", x, kernel_shape=tuple(kernel), strides=tuple(stride),
        pads=(*padding, *after), count_include_pad=include_padding,
    )  # fmt: skip


@row("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
@_float_only
def adaptive(w: Writer, n: Node, x: str, size: Ints) -> str:
    """Means of equal windows; of unequal ones the record is written."""
    shape = _shape(n, 0)[2:]
    if any(a % b for a, b in zip(shape, size, strict=True)):
        raise Unwritten
    if set(size) == {1}:
        return w.op("GlobalAveragePool", x)
    step = tuple(a // b for a, b in zip(shape, size, strict=True))
    return w.op("AveragePool", x, kernel_shape=step, strides=step)


@row("batch_norm")
@_single
def batch_norm(
    w: Writer, n: Node, x: str, mean: str, var: str, gamma: str | None, beta: str | None, eps: float
) -> str:
    """Channels shifted and scaled."""
    plain = torch.ones(_shape(n, 1), dtype=torch_dtype(n.dtype))
    gamma = w.constant(plain) if gamma is None else gamma
    beta = w.constant(plain * 0) if beta is None else beta
    return w.op("BatchNormalization", x, gamma, beta, mean, var, epsilon=float(eps))


@row("layer_norm")
@_single
def layer_norm(
    w: Writer, n: Node, x: str, gamma: str | None, beta: str | None, size: Ints, eps: float
) -> str:
    """Zero mean and unit variance over the last dims."""
    if gamma is None:
        gamma = w.constant(torch.ones(tuple(size), dtype=torch_dtype(n.dtype)))
    return w.op("LayerNormalization", x, gamma, beta, axis=-len(size), epsilon=float(eps))
