"""Reading and writing at positions that are data. Positions may count from the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from whet.capture.onnx.call import (
    Call,
    NoMapping,
    Value,
    aligned,
    axis_in,
    cast,
    expand,
    filled,
    library,
    number,
    onnx,
    reshape,
    sizes,
)
from whet.ir.graph import Node, apply
from whet.ir.types import DType, TensorType


def from_front(call: Call, at: Node, size: int) -> Node:
    """Positions counted from the front, as int64."""
    at = cast(at, DType.i64)
    data = call.known(at)
    if data is not None:
        return call.constant(torch.where(data < 0, data + size, data))
    wrapped = apply("add", at, number(size, DType.i64))
    return apply("where", apply("lt", at, number(0, DType.i64)), wrapped, at)


@onnx("Gather")
def gather(call: Call, x: Node, indices: Node, axis: int = 0) -> Node:
    """Positions of a dim; the dims of the positions stand in its place."""
    k = axis_in(axis, len(x.shape))
    shape = sizes(x)
    at = from_front(call, indices, shape[k])
    data = call.known(at)
    if data is not None and data.numel() and not 0 <= int(data.min()) <= int(data.max()) < shape[k]:
        raise NoMapping(f"positions outside of a dim of {shape[k]}")
    if data is not None and data.dim() == 0:
        return apply("select", x, axis=k, index=int(data))
    if k == 0 and len(shape) == 2 and len(at.shape):
        return apply("embedding", x, at)
    y = apply("index_select", x, reshape(at, (math.prod(sizes(at)),)), axis=k)
    return reshape(y, (*shape[:k], *sizes(at), *shape[k + 1 :]))


@onnx("GatherElements")
def gather_elements(call: Call, x: Node, indices: Node, axis: int = 0) -> Node:
    """One position of a dim for each place of the result."""
    k = axis_in(axis, len(x.shape))
    at = from_front(call, indices, sizes(x)[k])
    for d, n in enumerate(sizes(at)):
        if d != k and n != sizes(x)[d]:
            x = apply("slice", x, axis=d, start=0, stop=n, step=1)
    return apply("gather", x, at, axis=k)


@onnx("GatherND")
def gather_nd(call: Call, x: Node, indices: Node, batch_dims: int = 0) -> Node:
    """Whole blocks at places of several dims: the dims merged, and one position in them read."""
    shape, outer, b = sizes(x), sizes(indices), batch_dims
    depth = outer[-1]
    inner = shape[b + depth :]
    flat = reshape(x, (math.prod(shape[: b + depth]), math.prod(inner)))
    at = _flattened(call, indices, shape[b : b + depth])
    if b:
        # Each batch starts where the dims that are indexed end.
        block = math.prod(shape[b : b + depth])
        start = torch.arange(math.prod(shape[:b])) * block
        start = start.reshape(*shape[:b], *(1,) * (len(sizes(at)) - b))
        at = apply("add", at, call.constant(start))
    y = apply("embedding", flat, reshape(at, (math.prod(outer[:-1]),)))
    return reshape(y, (*outer[:-1], *inner))


def _flattened(call: Call, indices: Node, shape: Sequence[int]) -> Node:
    """Positions in several dims, listed along the last, as one position in these dims merged."""
    at: Node | None = None
    last = len(indices.shape) - 1
    for k, size in enumerate(shape):
        one = from_front(call, apply("select", indices, axis=last, index=k), size)
        at = one if at is None else apply(
            "add", apply("mul", at, number(size, DType.i64)), one
        )  # fmt: skip
    return at if at is not None else filled(0, DType.i64, sizes(indices)[:-1])


_REDUCED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@onnx("ScatterElements", "Scatter")
def scatter_elements(
    call: Call, x: Node, indices: Node, updates: Node, axis: int = 0, reduction: str = "none"
) -> Node:
    """x with positions of a dim written, or combined with what is written."""
    k = axis_in(axis, len(x.shape))
    at = from_front(call, indices, sizes(x)[k])
    if reduction == "none":
        (y,) = library("aten.scatter.src", [x, k, at, updates], x.type)
    else:
        how = _REDUCED[reduction]
        (y,) = library("aten.scatter_reduce.two", [x, k, at, updates, how], x.type)
    return y


@onnx("ScatterND")
def scatter_nd(call: Call, x: Node, indices: Node, updates: Node, reduction: str = "none") -> Node:
    """x with whole blocks written at places of several dims, the dims merged for the while."""
    shape = sizes(x)
    depth = sizes(indices)[-1]
    rows, width = math.prod(shape[:depth]), math.prod(shape[depth:])
    at = _flattened(call, indices, shape[:depth])
    count = math.prod(sizes(at))
    at = expand(reshape(at, (count, 1)), (count, width))
    flat, written = reshape(x, (rows, width)), reshape(updates, (count, width))
    y = scatter_elements(call, flat, at, written, 0, reduction)
    return reshape(y, shape)


@onnx("TensorScatter")
def tensor_scatter(
    call: Call, x: Node, updates: Node, starts: Node | None = None, axis: int = -2,
    mode: str = "linear",
) -> Node:  # fmt: skip
    """A cache with a run of positions written, from a known start for each batch."""
    k = axis_in(axis, len(x.shape))
    length, size = sizes(updates)[k], sizes(x)[k]
    first = call.ints(starts, "the starts") if starts is not None else (0,) * sizes(x)[0]
    at = torch.tensor(first)[:, None] + torch.arange(length)
    if mode == "circular":
        at = at % size
    elif int(at.max()) >= size:
        raise NoMapping("positions beyond the cache")
    shape = [n if d in (0, k) else 1 for d, n in enumerate(sizes(updates))]
    places = expand(call.constant(at.reshape(shape)), sizes(updates))
    (y,) = library("aten.scatter.src", [x, k, places, updates], x.type)
    return y


@onnx("OneHot")
def one_hot(call: Call, indices: Node, depth: Node, values: Node, axis: int = -1) -> Node:
    """A new dim with one value at the position and another elsewhere."""
    size = int(call.scalar(depth, "the depth"))
    rank = len(indices.shape) + 1
    k = axis_in(axis, rank)
    at = from_front(call, indices, size)
    at = reshape(at, (*sizes(at)[:k], 1, *sizes(at)[k:]))
    line = apply("arange", size=size, start=0, step=1, dtype=DType.i64)
    hit = apply("eq", at, aligned(line, rank, k))
    off, on = (apply("select", values, axis=0, index=i) for i in (0, 1))
    return apply("where", hit, on, off)


@onnx("TopK")
def top_k(call: Call, x: Node, k: Node, axis: int = -1, largest: int = 1, sorted: int = 1) -> Value:
    """The largest or smallest along a dim; of equal ones the first."""
    d = axis_in(axis, len(x.shape))
    count = int(call.scalar(k, "k"))
    places = TensorType(DType.i64, x.shape)
    found = library(
        "aten.sort.stable", [x], x.type, places, stable=True, dim=d, descending=bool(largest)
    )
    return [apply("slice", f, axis=d, start=0, stop=count, step=1) for f in found]


@onnx("GridSample")
def grid_sample(
    call: Call, x: Node, grid: Node, mode: str = "linear", padding_mode: str = "zeros",
    align_corners: int = 0,
) -> Node:  # fmt: skip
    """Values read at fractional places."""
    rank = len(x.shape) - 2
    modes = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}
    pads = {"zeros": 0, "border": 1, "reflection": 2}
    if rank not in (2, 3) or (rank == 3 and modes[mode] == 2):
        raise NoMapping(f"mode {mode} over {rank} dims")
    target = f"aten.grid_sampler_{rank}d.default"
    args = [x, grid, modes[mode], pads[padding_mode], bool(align_corners)]
    (y,) = library(target, args, TensorType(x.dtype, (*sizes(x)[:2], *sizes(grid)[1:-1])))
    return y


@onnx("Det")
def det(call: Call, x: Node) -> Node:
    """Determinants of matrices."""
    (y,) = library("aten.linalg_det.default", [x], TensorType(x.dtype, x.shape[:-2]))
    return y


@onnx("Col2Im")
def col2im(
    call: Call, x: Node, image_shape: Node, block_shape: Node,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Node:  # fmt: skip
    """Blocks added up in an image."""
    image = list(call.ints(image_shape, "the image's shape"))
    block = list(call.ints(block_shape, "the block's shape"))
    given = list(pads or (0, 0, 0, 0))
    if len(image) != 2 or given[:2] != given[2:]:
        raise NoMapping("images of other than two dims, or padded unevenly")
    args = [x, image, block, list(dilations or (1, 1)), given[:2], list(strides or (1, 1))]
    batch, rows = sizes(x)[:2]
    shape = (batch, rows // math.prod(block), *image)
    (y,) = library("aten.col2im.default", args, TensorType(x.dtype, shape))
    return y
