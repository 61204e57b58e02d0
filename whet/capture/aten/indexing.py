"""Reading and writing at positions that are data.

Positions handed to `index` may count from the end; they are brought to the front by arithmetic
unless they are known not to be negative. Several index tensors become one position in the merged
dims. Writing has a record where each place is written once, or where what is written is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whet.capture.aten.call import (
    Call,
    NoMapping,
    Scalar,
    aten,
    axis_of,
    cast,
    cut,
    expand,
    flat,
    ints,
    number,
    permute,
    reshape,
)
from whet.ir.graph import Node, apply
from whet.ir.types import DType

# Up to here a write is spelled out as comparisons; the library's loop is cheaper above.
PAIRS = 4096


@aten("embedding")
def embedding(
    call: Call,
    weight: Node,
    indices: Node,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Node:
    """Rows of a table."""
    return apply("embedding", weight, indices)


@aten("index_select")
def index_select(call: Call, x: Node, dim: int, index: Node) -> Node:
    """Positions of a dim, in any order."""
    if not x.shape:
        return x
    return apply("index_select", x, flat(index), axis=axis_of(dim, len(x.shape)))


@aten("gather")
def gather(call: Call, x: Node, dim: int, index: Node, sparse_grad: bool = False) -> Node:
    """One position of a dim for each place of the result."""
    if not x.shape:
        return x
    axis = axis_of(dim, len(x.shape))
    for d, n in enumerate(ints(index.shape)):
        if d != axis:
            x = cut(x, d, 0, n)
    return apply("gather", x, index, axis=axis)


@aten("index.Tensor", "_unsafe_index.Tensor")
def index(call: Call, x: Node, indices: list[Node | None]) -> Node:
    """x[i, :, j, …]: the indexed dims merged, and one position in them read."""
    if all(i is None for i in indices):
        return x
    m = merged(call, x, indices)
    x = reshape(permute(x, m.order), (*m.outer, m.count, *m.inner))
    if not m.outer and len(m.inner) == 1:
        return reshape(apply("embedding", x, m.at), call.shape)
    return reshape(apply("index_select", x, flat(m.at), axis=len(m.outer)), call.shape)


@dataclass(frozen=True, slots=True)
class Merged:
    """Index tensors made one.

    Attributes:
        order: the dims in the order that brings the indexed ones together.
        outer: sizes of the dims before them.
        count: product of the indexed dims' sizes.
        inner: sizes of the dims after them.
        at: one position in the merged dims for each place of the broadcast index tensors.
    """

    order: list[int]
    outer: list[int]
    count: int
    inner: list[int]
    at: Node


def merged(call: Call, x: Node, indices: Sequence[Node | None]) -> Merged:
    """What x[i, :, j, …] reads; indexed dims that lie apart come to the front."""
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if any(i.dtype in (DType.bool, DType.u8) for _, i in given):
        raise NoMapping("a mask as an index")
    shape = ints(x.shape)
    dims = [d for d, _ in given]
    front = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    rest = [d for d in range(len(shape)) if d not in dims]
    at: Node | None = None
    for d, i in given:
        place = _from_front(call, cast(i, DType.i64), shape[d])
        if at is not None:
            place = apply("add", apply("mul", at, number(shape[d], DType.i64)), place)
        at = place
    assert at is not None
    return Merged(
        [*rest[:front], *dims, *rest[front:]],
        [shape[d] for d in rest[:front]],
        math.prod(shape[d] for d in dims),
        [shape[d] for d in rest[front:]],
        at,
    )


def _from_front(call: Call, at: Node, size: int) -> Node:
    if _never_negative(call, at):
        return at
    wrapped = apply("add", at, number(size, DType.i64))
    return apply("where", apply("lt", at, number(0, DType.i64)), wrapped, at)


# Operators whose result is not negative when none of their operands is.
_KEEP_SIGN = frozenset(
    "add mul maximum minimum cast reshape permute expand slice select concat stack cumsum sum "
    "floor_divide flip roll index_select embedding gather square tril triu repeat".split()
)


def _never_negative(call: Call, node: Node) -> bool:
    pending, seen = [node], {node}
    while pending:
        n = pending.pop()
        if n.dtype is DType.bool or n.op in ("argmax", "argmin", "abs"):
            continue
        if n.op == "arange" and _at_least_zero(n.attr("start")) and _at_least_zero(n.attr("step")):
            continue
        if n.op == "full" and _at_least_zero(n.attr("value")):
            continue
        if n.op == "clamp" and _at_least_zero(n.attr("low")):
            continue
        if n.op == "item" and n.args[0] is not None and n.attr("index") == 1:
            if str(n.args[0].attr("target")).startswith(("aten.topk", "aten.sort")):
                continue
        data = call.data(n)
        if data is not None and (data.numel() == 0 or bool(data.min() >= 0)):
            continue
        if n.op not in _KEEP_SIGN:
            return False
        pending += [a for a in n.operands if a not in seen]
        seen.update(n.operands)
    return True


def _at_least_zero(value: object) -> bool:
    return isinstance(value, int | float) and value >= 0


@aten("scatter", "scatter_add")
def scatter(
    call: Call,
    x: Node,
    dim: int,
    index: Node,
    src: Node | None = None,
    value: Scalar | None = None,
    reduce: str | None = None,
) -> Node:
    """x with positions of a dim written, or added to, at places that are data."""
    if reduce is not None:
        raise NoMapping("scatters with a reduction")
    axis, shape = axis_of(dim, len(x.shape)), ints(x.shape)
    if not shape:
        raise NoMapping("scatters a single number")
    adds = "scatter_add" in call.target
    wide = ints(index.shape)
    if any(n != wide[d] for d, n in enumerate(shape) if d != axis):
        raise NoMapping("an index narrower than what it writes to")
    if not adds and not _distinct(index, axis):
        raise NoMapping("positions that may coincide")
    if src is not None:
        for d, n in enumerate(wide):
            src = cut(src, d, 0, n)
        written = cast(src, call.dtype)
    else:
        assert value is not None
        written = expand(number(value, call.dtype), wide)
    return _written(x, index, written, axis, adds)


def _written(x: Node, index: Node, written: Node, axis: int, adds: bool) -> Node:
    """A write as a choice over all (place written, place) pairs; each is hit once, or summed."""
    size, count = ints(x.shape)[axis], ints(index.shape)[axis]
    if count == 1 and not adds:  # as many comparisons as there are elements
        hit = apply("eq", index, _along(size, axis, len(x.shape), index.dtype))
        return apply("where", hit, cast(written, x.dtype), x)
    if size * count > PAIRS:
        raise NoMapping("writes too many places to compare each with each")
    rank = len(x.shape)
    last = [*(d for d in range(rank) if d != axis), axis]
    column = (*(ints(x.shape)[d] for d in last[:-1]), count, 1)
    at, value = (reshape(permute(t, last), column) for t in (index, written))
    hit = apply("eq", at, apply("arange", size=size, start=0, step=1, dtype=index.dtype))
    found = apply("sum", apply("where", hit, value, number(0, x.dtype)), dims=(rank - 1,))
    base = permute(x, last)
    if adds:
        y = apply("add", base, cast(found, x.dtype))
    else:
        y = apply("where", apply("amax", hit, dims=(rank - 1,)), cast(found, x.dtype), base)
    return permute(y, [last.index(d) for d in range(rank)])


def _along(size: int, axis: int, rank: int, dtype: DType) -> Node:
    """0, 1, … along one dim, 1 along the others."""
    numbers = apply("arange", size=size, start=0, step=1, dtype=dtype)
    return reshape(numbers, tuple(size if d == axis else 1 for d in range(rank)))


def _distinct(index: Node, axis: int) -> bool:
    """Whether no two positions along the axis are known to be equal."""
    if index.shape[axis] == 1:
        return True
    source = index.args[0] if index.op == "item" else None
    if source is None or index.attr("index") != 1:
        return False
    return str(source.attr("target")).startswith(("aten.topk", "aten.sort"))
