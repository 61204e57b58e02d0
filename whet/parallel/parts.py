"""Where a rank's part of a value lies: index arithmetic, no tensors.

    Row   := inner size axes            one factor of a dim and the mesh axes that cut it
    Rows  := Row*                       of all dims, outer ones first
    Box   := start, shape               of whole positions, as a checkpoint stores them

A dim of 36864 with the inner sizes 1, 128 and 12288 is the rows (12288: 3), (128: 96), (1: 128).
A rank has a contiguous range of every row; of the value itself that is one box where outermost rows
are cut, and several where a row has others outside of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.parallel.sharding import Axes, Sharding, ShardingError

Marks = tuple[tuple[int, ...], ...]  # for each dim, the inner sizes of its factors, 1 among them
Coords = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One factor of a dim.

    Attributes:
        dim, inner, size: its place, the elements inside one step of it, and its steps.
        axes: of the mesh, that cut it; the first is the outermost.
        local: steps that a rank has.
    """

    dim: int
    inner: int
    size: int
    axes: tuple[str, ...]
    local: int


def rows(shape: Sequence[int], marks: Marks, at: Sharding, mesh: Axes) -> tuple[Row, ...]:
    """All factors of a value under a sharding.

    Raises:
        ShardingError: a cut does not divide its factor.
    """
    sizes = dict(mesh)
    found = []
    for dim, whole in enumerate(shape):
        own = {1, *(i for d, i, _ in at.cuts if d == dim)}
        own.update(marks[dim] if dim < len(marks) else ())
        chain = [*sorted(i for i in own if i < whole or i == 1), whole]
        for low, high in reversed(list(itertools.pairwise(chain))):
            axes = tuple(a for d, i, a in at.cuts if (d, i) == (dim, low))
            count = math.prod(sizes[a] for a in axes)
            size = high // low
            if size % count or high % low:
                raise ShardingError("a cut does not divide", expected=size, got=count, where=at)
            found.append(Row(dim, low, size, axes, size // count))
    return tuple(found)


def number(axes: Sequence[str], coords: Coords, mesh: Axes) -> int:
    """The place of a rank along some axes, the first in the mesh the slowest."""
    found = 0
    for name, size in mesh:
        if name in axes:
            found = found * size + coords[name]
    return found


def starts(rows_: Sequence[Row], coords: Coords, mesh: Axes) -> tuple[int, ...]:
    """Of each row, the first step that a rank has."""
    return tuple(number(r.axes, coords, mesh) * r.local for r in rows_)


def place(rows_: Sequence[Row], dim: int, inner: int) -> int:
    """Which of the rows is the factor."""
    return next(k for k, r in enumerate(rows_) if (r.dim, r.inner) == (dim, inner))


# -- boxes ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Box:
    """A part of a whole value that is contiguous in every dim.

    Attributes:
        start, shape: in the whole value.
        offset: of its first element in the flat range that it was asked for, in elements.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int


def boxes(
    rows_: Sequence[Row], first: Sequence[int], rank: int, low: int, high: int
) -> Iterator[Box]:
    """The boxes of the whole value that elements low … high of a rank's part are, in order.

    Args:
        rows_, first: of the part; see `rows` and `starts`.
        rank: number of dims of the value.
        low, high: in the part, row-major; the last not included.
    """
    sizes = [r.local for r in rows_]
    inside = _strides(sizes)

    def visit(k: int, low: int, high: int, at: tuple[int, ...]) -> Iterator[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:  # fmt: skip # noqa: E501
        """Ranges within the row-space as boxes of it."""
        if low >= high:
            return
        if k == len(sizes):
            yield low, high, at, ()
            return
        step = inside[k]
        a, b = low // step, (high - 1) // step
        if a == b:
            for p, q, start, shape in visit(k + 1, low - a * step, high - a * step, (*at, a)):
                yield p + a * step, q + a * step, start, (1, *shape)
            return
        if low % step:
            yield from visit(k, low, (a + 1) * step, at)
            a += 1
        full = high // step
        if full > a:
            rest = tuple(0 for _ in sizes[k + 1 :])
            yield a * step, full * step, (*at, a, *rest), (full - a, *sizes[k + 1 :])
        if high % step:
            yield from visit(k, full * step, high, at)

    for p, _, start, shape in visit(0, low, high, ()):
        yield from _whole(rows_, first, rank, start, shape, p - low)


def _strides(sizes: Sequence[int]) -> list[int]:
    """Of each row, the elements inside one step of it."""
    found = itertools.accumulate(reversed(list(sizes)[1:]), lambda a, b: a * b, initial=1)
    return list(found)[::-1]


def _whole(
    rows_: Sequence[Row], first: Sequence[int], rank: int, start: Sequence[int],
    shape: Sequence[int], offset: int,
) -> Iterator[Box]:  # fmt: skip
    """A box of rows as boxes of dims: a row that is not whole ends what is contiguous.

    What is contiguous in the part has to be so in the box: rows are gone through one by one down to
    the last that is not.
    """
    per_dim: list[list[int]] = [[] for _ in range(rank)]
    for k, r in enumerate(rows_):
        per_dim[r.dim].append(k)
    last = -1
    for group in per_dim:
        # The rows behind the outermost that is longer than 1 have to be whole.
        for j, k in enumerate(group):
            if shape[k] > 1 and any(shape[b] != rows_[b].size for b in group[j + 1 :]):
                last = max(last, k)
    walked = [k for k in range(last + 1) if shape[k] > 1]
    inside = _strides(shape)
    for steps in itertools.product(*(range(shape[k]) for k in walked)):
        at = dict(zip(walked, steps, strict=True))
        begin, extent = [0] * rank, [1] * rank
        for k, r in enumerate(rows_):
            begin[r.dim] += (first[k] + start[k] + at.get(k, 0)) * r.inner
            extent[r.dim] *= 1 if k in at else shape[k]
        yield Box(tuple(begin), tuple(extent), offset + sum(s * inside[k] for k, s in at.items()))
