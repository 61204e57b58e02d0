"""Operators that only move elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from whet.capture.aten.call import cut
from whet.capture.onnx.call import (
    Call,
    NoMapping,
    Value,
    axes_in,
    axis_in,
    broadcast,
    cast,
    expand,
    filled,
    onnx,
    permute,
    reshape,
    sizes,
)
from whet.ir.graph import Node, apply

Ints = Sequence[int]


@onnx("Reshape")
def reshaped(call: Call, x: Node, shape: Node, allowzero: int = 0) -> Node:
    """Another shape; 0 keeps a dim, -1 is what is left."""
    old = sizes(x)
    new = list(call.ints(shape, "the shape"))
    if not allowzero:
        for k, n in enumerate(new):
            if n == 0 and k >= len(old):
                raise NoMapping("a size copied from a dim that is not there")
        new = [old[k] if n == 0 else n for k, n in enumerate(new)]
    if -1 in new:
        rest = math.prod(n for n in new if n != -1)
        if not rest:
            raise NoMapping("a size that is left over from nothing")
        new[new.index(-1)] = math.prod(old) // rest
    return reshape(x, new)


@onnx("Transpose")
def transpose(call: Call, x: Node, perm: Ints | None = None) -> Node:
    """Dims in another order, reversed by default."""
    rank = len(x.shape)
    return permute(x, axes_in(perm, rank) if perm is not None else list(reversed(range(rank))))


@onnx("Flatten")
def flatten(call: Call, x: Node, axis: int = 1) -> Node:
    """A matrix: dims before an axis, and the rest."""
    shape = sizes(x)
    k = axis + len(shape) if axis < 0 else axis
    return reshape(x, (math.prod(shape[:k]), math.prod(shape[k:])))


@onnx("Squeeze")
def squeeze(call: Call, x: Node, axes: Node | None = None) -> Node:
    """Dims of 1 taken away."""
    shape = sizes(x)
    if axes is None:
        return reshape(x, [n for n in shape if n != 1])
    gone = axes_in(call.ints(axes, "the axes"), len(shape))
    if any(shape[d] != 1 for d in gone):
        raise NoMapping("squeezes a dim that is not 1")
    return reshape(x, [n for d, n in enumerate(shape) if d not in gone])


@onnx("Unsqueeze")
def unsqueeze(call: Call, x: Node, axes: Node) -> Node:
    """Dims of 1 put in."""
    added = call.ints(axes, "the axes")
    rank = len(x.shape) + len(added)
    places = set(axes_in(added, rank))
    rest = iter(sizes(x))
    return reshape(x, [1 if d in places else next(rest) for d in range(rank)])


@onnx("Expand")
def expanded(call: Call, x: Node, shape: Node) -> Node:
    """Dims of 1 repeated, and new ones in front."""
    return expand(x, broadcast(sizes(x), call.ints(shape, "the shape")))


@onnx("Tile")
def tile(call: Call, x: Node, repeats: Node) -> Node:
    """The whole tensor repeated along its dims: each dim becomes (times, size)."""
    times, shape = call.ints(repeats, "the repeats"), sizes(x)
    apart = [n for t, s in zip(times, shape, strict=True) for n in ([1, s] if t != 1 else [s])]
    wide = [n for t, s in zip(times, shape, strict=True) for n in ([t, s] if t != 1 else [s])]
    return reshape(
        expand(reshape(x, apart), wide), [t * s for t, s in zip(times, shape, strict=True)]
    )


@onnx("Concat")
def concat(call: Call, *xs: Node, axis: int = 1) -> Node:
    """Tensors one after the other; what is empty counts for nothing."""
    k = axis_in(axis, len(xs[0].shape))
    parts = [x for x in xs if sizes(x)[k]] or [xs[0]]
    return parts[0] if len(parts) == 1 else apply("concat", *parts, axis=k)


@onnx("Slice")
def sliced(
    call: Call, x: Node, starts: Node, ends: Node, axes: Node | None = None,
    steps: Node | None = None,
) -> Node:  # fmt: skip
    """Ranges of dims; bounds count from the end when negative, and stop at the ends."""
    begin, end = call.ints(starts, "the starts"), call.ints(ends, "the ends")
    along = call.ints(axes, "the axes") if axes is not None else range(len(begin))
    step = call.ints(steps, "the steps") if steps is not None else (1,) * len(begin)
    for d, b, e, s in zip(axes_in(tuple(along), len(x.shape)), begin, end, step, strict=True):
        if not s:
            raise NoMapping("a step of 0")
        first, last, _ = slice(b, e, s).indices(sizes(x)[d])
        if e < -sizes(x)[d] and s < 0:
            last = -1
        if s < 0:
            # From behind: turn the dim around, then walk it forwards.
            x = apply("flip", x, axis=d)
            n = sizes(x)[d]
            first, last, s = n - 1 - first, n - 1 - last, -s
        x = cut(x, d, first, max(first, last), s)
    return x


@onnx("Split")
def split(
    call: Call, x: Node, split: Node | None = None, axis: int = 0, num_outputs: int | None = None
) -> Value:
    """A dim cut into pieces, as even as they can be unless their lengths are given."""
    k = axis_in(axis, len(x.shape))
    count = num_outputs or len(call.node.outputs)
    size = sizes(x)[k]
    if split is not None:
        lengths = list(call.ints(split, "the lengths"))
    else:
        each = -(-size // count)
        lengths = [max(0, min(each, size - each * i)) for i in range(count)]
    if sum(lengths) != size:
        raise NoMapping(f"pieces of {lengths} of a dim of {size}")
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [cut(x, k, end - n, end) for n, end in zip(lengths, ends, strict=True)]


@onnx("Pad")
def pad(
    call: Call, x: Node, pads: Node, value: Node | None = None, axes: Node | None = None,
    mode: str = "constant",
) -> Node:  # fmt: skip
    """A number put around, or positions of the dim itself; negative widths take away."""
    widths = call.ints(pads, "the widths")
    rank = len(x.shape)
    along = axes_in(call.ints(axes, "the axes") if axes is not None else range(rank), rank)
    number = call.scalar(value, "the padding") if value is not None else 0
    for k, d in enumerate(along):
        before, after = widths[k], widths[k + len(along)]
        size = sizes(x)[d]
        if mode != "constant":
            if before or after:
                at = _positions(mode, before, after, size)
                x = apply("index_select", x, call.constant(at), axis=d)
            continue
        x = cut(x, d, max(0, -before), size - max(0, -after))
        before, after = max(0, before), max(0, after)
        if before or after:
            plain = float(number) if x.dtype.is_float else int(number)
            x = apply("pad", x, axis=d, before=before, after=after, value=plain)
    return x


def _positions(mode: str, before: int, after: int, size: int) -> list[int]:
    """Which position of a dim stands at each place of the padded one."""
    places = range(-before, size + after)
    if mode == "edge":
        return [min(max(p, 0), size - 1) for p in places]
    if mode == "wrap":
        return [p % size for p in places]
    if mode != "reflect":
        raise NoMapping(f"padding of mode {mode}")
    period = max(2 * (size - 1), 1)
    return [min(p % period, period - p % period) if size > 1 else 0 for p in places]


@onnx("DepthToSpace")
def depth_to_space(call: Call, x: Node, blocksize: int, mode: str = "DCR") -> Node:
    """Channels spread over finer pixels."""
    n, c, h, w = sizes(x)
    b = blocksize
    if mode == "CRD":
        return apply("pixel_shuffle", x, factor=(b, b))
    y = permute(reshape(x, (n, b, b, c // (b * b), h, w)), (0, 3, 4, 1, 5, 2))
    return reshape(y, (n, c // (b * b), h * b, w * b))


@onnx("SpaceToDepth")
def space_to_depth(call: Call, x: Node, blocksize: int, mode: str = "DCR") -> Node:
    """Pixels gathered into channels."""
    n, c, h, w = sizes(x)
    b = blocksize
    apart = reshape(x, (n, c, h // b, b, w // b, b))
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return reshape(permute(apart, order), (n, c * b * b, h // b, w // b))


@onnx("Trilu")
def trilu(call: Call, x: Node, k: Node | None = None, upper: int = 1) -> Node:
    """One triangle kept, the rest zero."""
    diagonal = int(call.scalar(k, "the diagonal")) if k is not None else 0
    if 0 in sizes(x):
        return x
    return cast(apply("triu" if upper else "tril", x, diagonal=diagonal), x.dtype)


@onnx("ReverseSequence")
def reverse_sequence(
    call: Call, x: Node, lengths: Node, batch_axis: int = 1, time_axis: int = 0
) -> Node:
    """The first `length` steps of each batch turned around."""
    ends = call.static(lengths, "the lengths").reshape(-1, 1)
    steps = torch.arange(sizes(x)[time_axis])
    at = torch.where(steps < ends, ends - 1 - steps, steps)
    if batch_axis > time_axis:
        at = at.T
    shape = [n if d in (batch_axis, time_axis) else 1 for d, n in enumerate(sizes(x))]
    return apply("gather", x, expand(call.constant(at.reshape(shape)), sizes(x)), axis=time_axis)


@onnx("Compress")
def compress(call: Call, x: Node, condition: Node, axis: int | None = None) -> Node:
    """The positions of a dim, or of all elements in row, where a known condition holds."""
    kept = call.static(condition, "the condition").reshape(-1).nonzero().reshape(-1)
    if axis is None:
        x, axis = reshape(x, (math.prod(sizes(x)),)), 0
    k = axis_in(axis, len(x.shape))
    if not kept.numel():
        return filled(0, x.dtype, [0 if d == k else n for d, n in enumerate(sizes(x))])
    return apply("index_select", x, call.constant(kept), axis=k)
