"""ATen: how each operator of the table is spelled in torch.

    CALLS["softmax"] = lambda a, x: torch.softmax(x, a["axis"])

One row an operator: attributes and operand tensors in, the result out. The same rows run a graph
eagerly and, traced, hand a region to Inductor. What torch has no call for runs through its record
(`whet.ir.interp`): right, slow, and counted as such in the report. That is so for operators without
a row, and for the rare attributes that `UNFIT` names. A test compares every row with the record.

A row computes what the record says, in torch's own precision; its result shares memory with an
operand only where the operator is one of `VIEWS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from whet.backend.library import run_opaque
from whet.ir.graph import Node
from whet.ir.interp import NATIVE, run_instance
from whet.ir.types import DType

Attrs = Mapping[str, Any]
Call = Callable[..., Tensor]


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's name of an element type."""
    return cast(torch.dtype, getattr(torch, dtype.value))


def _plain(f: Callable[..., Tensor]) -> Call:
    """A row for what takes tensors alone."""
    return lambda a, *xs: f(*xs)


# Operators that torch calls by the same name and that take nothing but tensors.
_SAME = """
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh asinh
    acosh atanh erf sigmoid abs sign floor ceil trunc round isnan isinf maximum minimum pow atan2
    fmod bitwise_and bitwise_or bitwise_xor bitwise_not add sub mul div floor_divide remainder lt le
    gt ge eq ne logical_and logical_or logical_xor logical_not neg square reciprocal relu matmul
""".split()


def _max_pool(rank: int) -> Call:
    pool = getattr(torch, f"max_pool{rank}d")
    return lambda a, x: pool(
        x, a["kernel"], a["stride"], a["padding"], a["dilation"], any(a["extra"])
    )


def _avg_pool(rank: int) -> Call:
    pool = getattr(F, f"avg_pool{rank}d")
    return lambda a, x: pool(
        x, a["kernel"], a["stride"], a["padding"], any(a["extra"]), bool(a["include_padding"])
    )


def _adaptive_avg_pool(rank: int) -> Call:
    pool = getattr(F, f"adaptive_avg_pool{rank}d")
    return lambda a, x: pool(x, a["size"])


def _unfit_pool(node: Node) -> bool:
    """Padding that torch refuses, or a last window other than its ceil mode makes."""
    a, (x,) = dict(node.attrs), node.operands
    kernel, stride, padding = (cast(Any, a[k]) for k in ("kernel", "stride", "padding"))
    dilation = cast(Any, a.get("dilation", (1,) * len(kernel)))
    ceil = any(cast(Any, a["extra"]))
    for size, got, k, s, p, d in zip(
        x.shape[2:], node.shape[2:], kernel, stride, padding, dilation, strict=True
    ):
        windows = (size + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil else 0)) // s + 1
        if ceil and (windows - 1) * s >= size + p:  # it drops one that starts in the padding
            windows -= 1
        if got != windows or p * 2 > k:
            return True
    return False


def _conv(a: Attrs, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    zero, dilation = [0] * len(a["stride"]), spread(a["dilation"], w.shape[2:])
    return torch.convolution(x, w, b, a["stride"], a["padding"], dilation, False, zero, a["groups"])


def spread(dilation: Sequence[int], kernel: Sequence[object]) -> tuple[int, ...]:
    """A convolution's dilation, 1 where the kernel has one element and nothing to spread: torch
    2.13 reads outside of memory for some 1x1 kernels otherwise (images one pixel wide, channels
    last)."""
    return tuple(1 if k == 1 else d for d, k in zip(dilation, kernel, strict=True))


def _conv_transpose(a: Attrs, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return torch.convolution(
        x, w, b, a["stride"], a["padding"], a["dilation"], True, a["output_padding"], a["groups"]
    )


def _attention(a: Attrs, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    causal = bool(a["causal"])
    if mask is not None:
        mask = mask.to(q.dtype)
        if causal:  # torch takes one of the two
            future = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
            mask, causal = mask.masked_fill(future, -math.inf), False
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=a["scale"], enable_gqa=a["group"] != 1
    )


def _slice(a: Attrs, x: Tensor) -> Tensor:
    taken = torch.ops.aten.slice.Tensor(x, a["axis"], a["start"], a["stop"], a["step"])
    return cast(Tensor, taken)


def _pad(a: Attrs, x: Tensor) -> Tensor:
    axis = a["axis"] % x.dim()
    sizes = [0, 0] * (x.dim() - 1 - axis) + [a["before"], a["after"]]
    return F.pad(x, sizes, value=a["value"])


def _slice_scatter(a: Attrs, x: Tensor, z: Tensor) -> Tensor:
    stop = a["start"] + z.shape[a["axis"]] * a["step"]
    return torch.slice_scatter(x, z, a["axis"], a["start"], stop, a["step"])


def _rope(a: Attrs, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def _over(reduce: Callable[..., Tensor]) -> Call:
    """A reduction over `dims`; to torch, no dims are all of them."""
    return lambda a, x: (
        reduce(x, a["dims"]) if a["dims"] else reduce(x.unsqueeze(-1), (-1,))
    )  # fmt: skip


def _var(a: Attrs, x: Tensor) -> Tensor:
    return _over(lambda t, dims: torch.var(t, dims, correction=a["correction"]))(a, x)


def _prod(a: Attrs, x: Tensor) -> Tensor:
    dims = sorted((d % x.dim() for d in a["dims"]), reverse=True)
    if not dims:
        return x.to(x.dtype if x.is_floating_point() else torch.int64, copy=True)
    for d in dims:
        x = torch.prod(x, d)
    return x


def _arange(a: Attrs) -> Tensor:
    exact = all(isinstance(a[k], int) for k in ("start", "step"))
    steps = torch.arange(a["size"], dtype=torch.int64 if exact else torch.float64)
    return torch.add(steps * a["step"], a["start"]).to(torch_dtype(a["dtype"]))


def _einsum(a: Attrs, *xs: Tensor) -> Tensor:
    found = torch.einsum(a["equation"], *xs)
    return found.clone() if len(xs) == 1 else found  # of one operand it may be a view


def _gather(a: Attrs, x: Tensor, ids: Tensor) -> Tensor:
    """torch takes the leading part of the other axes; the record has them equal."""
    return torch.gather(x, a["axis"], ids.to(torch.int64))


def _interpolate_nearest(a: Attrs, x: Tensor) -> Tensor:
    """By whole numbers, as the record; torch's scale is a float32, exact for powers of two only."""
    pairs = list(zip((2, 3), x.shape[2:], a["size"], strict=True))
    if all(size % n == 0 and (size // n).bit_count() == 1 for _, n, size in pairs):
        return F.interpolate(x, a["size"])
    for axis, n, size in pairs:
        x = torch.index_select(x, axis, torch.arange(size) * n // size)
    return x


def _local_response_norm(a: Attrs, x: Tensor) -> Tensor:
    before, size = a["before"], a["size"]
    square = F.pad(
        (x * x).flatten(2).unsqueeze(1) if x.dim() > 2 else (x * x)[:, None, :, None],
        (0, 0, before, size - 1 - before),
    )
    mean = F.avg_pool2d(square, (size, 1), stride=1).squeeze(1).reshape(x.shape)
    return x / torch.add(mean * a["alpha"], a["k"]).pow(a["beta"])


def _lstm_cell(
    a: Attrs, x: Tensor, h: Tensor, c: Tensor, w: Tensor, u: Tensor, b: Tensor | None
) -> Tensor:
    hidden, cell = torch.lstm_cell(x, (h, c), w, u, b, None if b is None else torch.zeros_like(b))
    return cell if a.get("out") == "c1" else hidden


def _gru_cell(
    a: Attrs, x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Tensor | None, c: Tensor | None
) -> Tensor:
    if b is None or c is None:  # both or neither, to torch
        zero = torch.zeros(w.shape[0], dtype=w.dtype)
        b, c = zero if b is None else b, zero if c is None else c
    return torch.gru_cell(x, h, w, u, b, c)


CALLS: dict[str, Call] = {
    "gelu":         lambda a, x: F.gelu(x),
    "gelu_tanh":    lambda a, x: F.gelu(x, approximate="tanh"),
    "silu":         lambda a, x: F.silu(x),
    "hardsigmoid":  lambda a, x: F.hardsigmoid(x),
    "hardswish":    lambda a, x: F.hardswish(x),
    "leaky_relu":   lambda a, x: F.leaky_relu(x, a["slope"]),
    "elu":          lambda a, x: F.elu(x, a["alpha"]),
    "softplus":     lambda a, x: F.softplus(x, a["beta"], a["threshold"]),
    "clamp":        lambda a, x: torch.clamp(x, a["low"], a["high"]),
    "where":        lambda a, c, x, z: torch.where(c if c.dtype == torch.bool else c != 0, x, z),
    "cast":         lambda a, x: x.to(torch_dtype(a["dtype"])),
    "full":         lambda a: torch.full(a["size"], a["value"], dtype=torch_dtype(a["dtype"])),
    "arange":       _arange,
    "linear":       lambda a, x, w, b: F.linear(x, w, b),
    "einsum":       _einsum,
    "attention":    _attention,
    "concat":       lambda a, *xs: torch.cat(xs, a["axis"]),
    "stack":        lambda a, *xs: torch.stack(xs, a["axis"]),
    "reshape":      lambda a, x: x.reshape(a["size"]),
    "permute":      lambda a, x: x.permute(a["dims"]),
    "expand":       lambda a, x: x.expand(a["size"]),
    "slice":        _slice,
    "select":       lambda a, x: x.select(a["axis"], a["index"]),
    "pad":          _pad,
    "flip":         lambda a, x: x.flip(a["axis"]),
    "roll":         lambda a, x: x.roll(a["shift"], a["axis"]),
    "tril":         lambda a, x: x.tril(a["diagonal"]),
    "triu":         lambda a, x: x.triu(a["diagonal"]),
    "embedding":    lambda a, t, ids: F.embedding(ids, t),
    "gather":       _gather,
    "index_select": lambda a, x, ids: torch.index_select(x, a["axis"], ids),
    "slice_scatter": _slice_scatter,
    "interpolate_nearest": _interpolate_nearest,
    "interpolate_bilinear": lambda a, x: F.interpolate(x, a["size"], mode="bilinear"),
    "pixel_shuffle": lambda a, x: F.pixel_shuffle(x, a["factor"][0]),
    "rope":         _rope,
    "sum":          _over(torch.sum),
    "mean":         _over(torch.mean),
    "var":          _var,
    "amax":         _over(torch.amax),
    "amin":         _over(torch.amin),
    "prod":         _prod,
    "argmax":       lambda a, x: torch.argmax(x, a["axis"]),
    "argmin":       lambda a, x: torch.argmin(x, a["axis"]),
    "cumsum":       lambda a, x: torch.cumsum(x, a["axis"]),
    "cummax":       lambda a, x: torch.cummax(x, a["axis"]).values,
    "softmax":      lambda a, x: torch.softmax(x, a["axis"]),
    "log_softmax":  lambda a, x: torch.log_softmax(x, a["axis"]),
    "logsumexp":    lambda a, x: torch.logsumexp(x, a["axis"]),
    "batch_norm":   lambda a, x, m, v, g, b: F.batch_norm(x, m, v, g, b, eps=a["eps"]),
    "layer_norm":   lambda a, x, g, b: F.layer_norm(x, a["size"], g, b, a["eps"]),
    "rms_norm":     lambda a, x, g: F.rms_norm(x, a["size"], g, a["eps"]),
    "group_norm":   lambda a, x, g, b: F.group_norm(x, a["groups"], g, b, a["eps"]),
    "local_response_norm": _local_response_norm,
    "lstm_cell":    _lstm_cell,
    "gru_cell":     _gru_cell,
}  # fmt: skip
CALLS |= {name: _plain(getattr(torch, name)) for name in _SAME}
for _rank in (1, 2, 3):
    CALLS[f"conv{_rank}d"] = _conv
    CALLS[f"conv_transpose{_rank}d"] = _conv_transpose
    CALLS[f"max_pool{_rank}d"] = _max_pool(_rank)
    CALLS[f"avg_pool{_rank}d"] = _avg_pool(_rank)
    CALLS[f"adaptive_avg_pool{_rank}d"] = _adaptive_avg_pool(_rank)

# Attributes that a row cannot take: node -> whether it cannot.
UNFIT: dict[str, Callable[[Node], bool]] = {
    f"{kind}_pool{rank}d": _unfit_pool for kind in ("max", "avg") for rank in (1, 2, 3)
}

# Calls whose result may share memory with their operand.
VIEWS = frozenset({"reshape", "permute", "expand", "slice", "select", "cast"})


def has_call(node: Node) -> bool:
    """Whether torch has a call for this node; if not it runs through its record."""
    if node.op in ("opaque", "item"):
        return True
    return node.op in CALLS and not (node.op in UNFIT and UNFIT[node.op](node))


def bound(node: Node) -> Callable[..., Any]:
    """A function of the node's operands that computes it; see `call`."""
    if not node.is_leaf and node.op not in ("opaque", "item") and has_call(node):
        row, attrs = CALLS[node.op], dict(node.attrs)
        return lambda *xs: row(attrs, *xs)
    return lambda *xs: call(node, xs)


def call(node: Node, operands: Sequence[Tensor | None]) -> Any:
    """One node's value; of a library call with several results, all of them (see `item`)."""
    if node.op == "opaque":
        found = run_opaque(node, [x for x in operands if x is not None])
        types = cast(Sequence[object], node.attr("types"))
        return found[0] if len(types) == 1 else found
    if node.op == "item":
        return cast(Sequence[Tensor], operands[0])[int(str(node.attr("index")))]
    if has_call(node):
        return CALLS[node.op](dict(node.attrs), *operands)
    out = node.attr("out")
    return run_instance(node.instance, operands, NATIVE, None if out is None else str(out))
