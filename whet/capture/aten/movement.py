"""Calls that only move elements: views are functions like any other here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.capture.aten.call import (
    Call,
    NoMapping,
    Refused,
    Scalar,
    Value,
    aten,
    axes_of,
    axis_of,
    cast,
    cut,
    expand,
    flat,
    ints,
    permute,
    reshape,
)
from whet.capture.aten.creation import filled
from whet.ir.graph import Node, apply

Sizes = Sequence[int]


@aten("contiguous", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "lift")
@aten("positive", "resolve_conj", "resolve_neg")
def same(call: Call, x: Node) -> Node:
    """The same value; where it lies is no business of the graph."""
    return x


@aten("view.default", "reshape", "_unsafe_view", "view_as", "reshape_as", "_reshape_alias")
@aten("_reshape_copy", "view_copy.default", "flatten", "unflatten", "squeeze", "unsqueeze")
@aten("squeeze_copy", "unsqueeze_copy", "ravel")
def view(
    call: Call,
    x: Node,
    size: object = None,
    shape: object = None,
    other: object = None,
    dim: object = None,
    start_dim: int = 0,
    end_dim: int = 0,
    sizes: object = None,
    stride: object = None,
) -> Node:
    """The same elements in the same order: the result's shape says it all."""
    return reshape(x, call.shape)


@aten("atleast_1d", "atleast_2d", "atleast_3d")
def at_least(call: Call, x: Node | None = None, tensors: Sequence[Node] = ()) -> Value:
    """Dims of 1 added, up to a rank."""
    if x is not None:
        return reshape(x, call.shape)
    return [reshape(t, ints(y.shape)) for t, y in zip(tensors, call.types, strict=True) if y]


@aten("permute", "permute_copy")
def permuted(call: Call, x: Node, dims: Sizes) -> Node:
    """Dims in another order."""
    return permute(x, [axis_of(d, len(x.shape)) for d in dims])


@aten("transpose", "transpose_copy", "swapdims")
def transpose(call: Call, x: Node, dim0: int, dim1: int) -> Node:
    """Two dims exchanged."""
    rank = len(x.shape)
    dims = list(range(rank))
    if rank:
        a, b = axis_of(dim0, rank), axis_of(dim1, rank)
        dims[a], dims[b] = b, a
    return permute(x, dims)


@aten("swapaxes")
def swapaxes(call: Call, x: Node, axis0: int, axis1: int) -> Node:
    """Two dims exchanged."""
    return transpose(call, x, axis0, axis1)


@aten("t", "t_copy", "numpy_T", "mT", "mH", "adjoint", "matrix_H")
def turned(call: Call, x: Node) -> Node:
    """A matrix, or the matrices in the last two dims, transposed; `numpy_T` turns all dims."""
    rank = len(x.shape)
    if "numpy_T" in call.target:
        return permute(x, list(reversed(range(rank))))
    return x if rank < 2 else transpose(call, x, rank - 2, rank - 1)


@aten("movedim", "moveaxis")
def movedim(call: Call, x: Node, source: int | Sizes, destination: int | Sizes) -> Node:
    """Some dims brought to new places, the others in their order around them."""
    rank = len(x.shape)
    moved = [axis_of(d, rank) for d in ([source] if isinstance(source, int) else source)]
    places = [
        axis_of(d, rank) for d in ([destination] if isinstance(destination, int) else destination)
    ]
    rest = iter(d for d in range(rank) if d not in moved)
    return permute(x, [moved[places.index(d)] if d in places else next(rest) for d in range(rank)])


@aten("expand", "expand_as", "broadcast_to", "expand_copy")
def expanded(
    call: Call, x: Node, size: object = None, other: object = None, implicit: bool = False
) -> Node:
    """Dims of 1 repeated without a copy."""
    return expand(x, call.shape)


@aten("repeat", "tile")
def repeat(call: Call, x: Node, repeats: Sizes | None = None, dims: Sizes | None = None) -> Node:
    """The whole tensor repeated along its dims: each dim becomes (times, size)."""
    times = list(repeats if repeats is not None else dims or ())
    shape = list(ints(x.shape))
    times = [1] * (len(shape) - len(times)) + times
    shape = [1] * (len(times) - len(shape)) + shape
    if all(t == 1 for t in times):
        return reshape(x, shape)
    apart = [n for t, s in zip(times, shape, strict=True) for n in ([1, s] if t != 1 else [s])]
    wide = [n for t, s in zip(times, shape, strict=True) for n in ([t, s] if t != 1 else [s])]
    return reshape(expand(reshape(x, apart), wide), call.shape)


@aten("repeat_interleave.self_int")
def repeat_interleave(
    call: Call, x: Node, repeats: int, dim: int | None = None, output_size: int | None = None
) -> Node:
    """Each element repeated in place: a dim becomes (size, times)."""
    shape = ints(x.shape)
    if dim is None:
        shape, dim = (call.shape[0] // repeats if repeats else 0,), 0
        x = reshape(x, shape)
    at = axis_of(dim, len(shape)) + 1
    wide = expand(reshape(x, (*shape[:at], 1, *shape[at:])), (*shape[:at], repeats, *shape[at:]))
    return reshape(wide, call.shape)


@aten("select.int", "select_copy.int")
def select(call: Call, x: Node, dim: int, index: int) -> Node:
    """One position of a dim, the dim gone."""
    axis = axis_of(dim, len(x.shape))
    return apply("select", x, axis=axis, index=index % ints(x.shape)[axis])


@aten("slice.Tensor", "slice_copy.Tensor")
def slice_(
    call: Call,
    x: Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Node:
    """A range of a dim; bounds count from the end when negative, and stop at the ends."""
    axis = axis_of(dim, len(x.shape))
    begin, stop, _ = slice(start, end, step).indices(ints(x.shape)[axis])
    return cut(x, axis, begin, max(begin, stop), step)


@aten("narrow", "narrow_copy")
def narrow(call: Call, x: Node, dim: int, start: int, length: int) -> Node:
    """`length` positions of a dim."""
    axis = axis_of(dim, len(x.shape))
    begin = start % max(ints(x.shape)[axis], 1) if start < 0 else start
    return cut(x, axis, begin, begin + length)


@aten("split", "chunk", "split_with_sizes", "unsafe_split", "unsafe_chunk", "tensor_split")
@aten("unsafe_split_with_sizes", "split_copy", "split_with_sizes_copy", "hsplit", "vsplit")
def split(
    call: Call,
    x: Node,
    split_size: object = None,
    split_sizes: object = None,
    chunks: object = None,
    sections: object = None,
    indices: object = None,
    dim: int = 0,
) -> list[Node]:
    """A dim cut into pieces: how long each is, the results' shapes say."""
    axis = axis_of(dim, len(x.shape))
    at, pieces = 0, []
    for type in call.types:
        assert type is not None
        length = ints(type.shape)[axis]
        pieces.append(cut(x, axis, at, at + length))
        at += length
    return pieces


@aten("unbind", "unbind_copy")
def unbind(call: Call, x: Node, dim: int = 0) -> list[Node]:
    """Every position of a dim."""
    axis = axis_of(dim, len(x.shape))
    return [apply("select", x, axis=axis, index=k) for k in range(ints(x.shape)[axis])]


@aten("cat", "concat", "concatenate")
def cat(call: Call, tensors: list[Node], dim: int = 0) -> Node:
    """Tensors one after the other; an empty vector among them counts for nothing."""
    rank = len(call.shape)
    parts = [cast(t, call.dtype) for t in tensors if len(t.shape) == rank and t.shape != (0,)]
    if not parts:
        return filled(call, 0)
    if len(parts) == 1:
        return parts[0]
    return apply("concat", *parts, axis=axis_of(dim, rank))


@aten("stack")
def stack(call: Call, tensors: list[Node], dim: int = 0) -> Node:
    """Tensors side by side along a new dim."""
    parts = [cast(t, call.dtype) for t in tensors]
    return apply("stack", *parts, axis=axis_of(dim, len(call.shape)))


@aten("flip", "fliplr", "flipud")
def flip(call: Call, x: Node, dims: Sizes) -> Node:
    """Dims read backwards."""
    for axis in axes_of(list(dims), len(x.shape)) if dims else ():
        x = apply("flip", x, axis=axis)
    return x


@aten("roll")
def roll(call: Call, x: Node, shifts: Sizes, dims: Sizes = ()) -> Node:
    """Dims turned around; without dims, all elements in row."""
    shape = ints(x.shape)
    if not dims:
        return reshape(apply("roll", flat(x), axis=0, shift=shifts[0]), shape)
    for d, shift in zip(dims, shifts, strict=True):
        axis = axis_of(d, len(shape))
        x = apply("roll", x, axis=axis, shift=shift % max(shape[axis], 1))
    return x


@aten("tril", "triu")
def triangle(call: Call, x: Node, diagonal: int = 0) -> Node:
    """One triangle kept, the rest zero."""
    y = apply(call.target.split(".")[1], x, diagonal=diagonal)
    return cast(y, call.dtype)


@aten("constant_pad_nd")
def constant_pad(call: Call, x: Node, pad: Sizes, value: Scalar = 0) -> Node:
    """A number put around, or, where the width is negative, positions taken away."""
    for k in range(len(pad) // 2):
        axis = len(x.shape) - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        size = ints(x.shape)[axis]
        x = cut(x, axis, max(0, -before), size - max(0, -after))
        before, after = max(0, before), max(0, after)
        if before or after:
            plain = float(value) if x.dtype.is_float else int(value)
            x = apply("pad", x, axis=axis, before=before, after=after, value=plain)
    return x


@aten("pad")
def pad(
    call: Call, x: Node, pad: Sizes, mode: str = "constant", value: Scalar | None = None
) -> Node:
    """Padding of any mode; all but a constant repeat positions of the dim itself."""
    if mode == "constant":
        return constant_pad(call, x, pad, value or 0)
    return _repeated(call, x, pad, mode)


@aten("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def reflection_pad(call: Call, x: Node, padding: Sizes) -> Node:
    """Padding with what lies mirrored inside."""
    return _repeated(call, x, padding, "reflect")


@aten("replication_pad1d", "replication_pad2d", "replication_pad3d")
def replication_pad(call: Call, x: Node, padding: Sizes) -> Node:
    """Padding with the border."""
    return _repeated(call, x, padding, "replicate")


def _repeated(call: Call, x: Node, widths: Sizes, mode: str) -> Node:
    import torch

    for k in range(len(widths) // 2):
        before, after = widths[2 * k], widths[2 * k + 1]
        axis = len(x.shape) - 1 - k
        size = ints(x.shape)[axis]
        at = torch.arange(-before, size + after)
        if mode == "reflect":
            at = (size - 1) - ((at.abs() - (size - 1)).abs())
        elif mode == "replicate":
            at = at.clamp(0, size - 1)
        elif mode == "circular":
            at = at % size
        else:
            raise NoMapping(f"padding of mode {mode}")
        if before or after:
            x = apply("index_select", x, call.constant(at), axis=axis)
    return x


@aten("pixel_shuffle")
def pixel_shuffle(call: Call, x: Node, upscale_factor: int) -> Node:
    """Channels spread over finer pixels."""
    shape = ints(x.shape)
    x = reshape(x, (math.prod(shape[:-3]), *shape[-3:]))
    return reshape(apply("pixel_shuffle", x, factor=(upscale_factor, upscale_factor)), call.shape)


@aten("unfold.default")
def unfold(call: Call, x: Node, dimension: int, size: int, step: int) -> Node:
    """Windows of a dim; positions within a window become the last dim."""
    import torch

    if not x.shape:
        return reshape(x, call.shape)
    axis, rank = axis_of(dimension, len(x.shape)), len(x.shape)
    windows = call.shape[axis]
    at = (torch.arange(windows)[:, None] * step + torch.arange(size)).flatten()
    x = apply("index_select", x, call.constant(at), axis=axis)
    shape = ints(x.shape)
    x = reshape(x, (*shape[:axis], windows, size, *shape[axis + 1 :]))
    return permute(x, [*range(axis + 1), *range(axis + 2, rank + 1), axis + 1])


@aten("as_strided", "as_strided_copy")
def as_strided(
    call: Call, x: Node, size: Sizes, stride: Sizes, storage_offset: int | None = None
) -> Node:
    """Elements at regular distances in memory, which is known only of a tensor that fills it."""
    import torch

    if not call.dense:
        raise Refused("it reads memory by strides, and this tensor does not fill its own")
    at = torch.tensor(storage_offset or 0)
    for n, step in zip(size, stride, strict=True):
        at = at[..., None] + torch.arange(n) * step
    taken = apply("index_select", flat(x), call.constant(at.flatten()), axis=0)
    return reshape(taken, call.shape)


@aten("diagonal", "diagonal_copy")
def diagonal(call: Call, x: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    """A diagonal of two dims, as the last dim."""
    import torch

    rank, shape = len(x.shape), ints(x.shape)
    a, b = axis_of(dim1, rank), axis_of(dim2, rank)
    others = [d for d in range(rank) if d not in (a, b)]
    x = permute(x, [*others, a, b])
    x = reshape(x, (*(shape[d] for d in others), shape[a] * shape[b]))
    at = torch.arange(call.shape[-1]) * (shape[b] + 1) + max(offset, 0) + max(-offset, 0) * shape[b]
    return apply("index_select", x, call.constant(at), axis=len(others))


@aten("slice_scatter")
def slice_scatter(
    call: Call,
    x: Node,
    src: Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Node:
    """x with a range of a dim replaced."""
    axis = axis_of(dim, len(x.shape))
    begin, stop, _ = slice(start, end, step).indices(ints(x.shape)[axis])
    if stop <= begin:
        return x
    if (begin, stop, step) == (0, x.shape[axis], 1):
        return cast(src, call.dtype)
    return apply("slice_scatter", x, cast(src, call.dtype), axis=axis, start=begin, step=step)


@aten("select_scatter")
def select_scatter(call: Call, x: Node, src: Node, dim: int, index: int) -> Node:
    """x with one position of a dim replaced."""
    shape = ints(x.shape)
    axis = axis_of(dim, len(shape))
    src = reshape(src, (*shape[:axis], 1, *shape[axis + 1 :]))
    begin = index % shape[axis]
    return slice_scatter(call, x, src, axis, begin, begin + 1)


@aten("copy")
def copy(call: Call, x: Node, src: Node) -> Node:
    """The source in the target's shape and element type."""
    return expand(cast(src, call.dtype), call.shape)
