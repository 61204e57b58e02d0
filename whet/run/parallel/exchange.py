"""Exchanges on tensors: the moves of a reshard as functional collectives, and as a reference.

    Collectives   one rank of a process group: what torch.distributed does
    Together      all ranks in one process, straight from what a sharding means

Both take `parts`, a tensor for each rank that lives in this process. A collective works on the
tensor opened into the rows of its dims (`whet.parallel.parts`): a gather joins along one row, a
scatter cuts one, an exchange cuts one and joins along another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.parallel.cut import known
from whet.parallel.parts import Coords, Row, number, place, rows, starts
from whet.parallel.program import Exchange
from whet.parallel.sharding import Axes, Sharding

Parts = dict[int, Tensor]


class Group(Protocol):
    """The collectives of one group of ranks, on flat or first-dim tensors."""

    size: int

    def all_reduce(self, t: Tensor, how: str) -> Tensor:
        """Combined elementwise."""

    def all_gather(self, t: Tensor) -> Tensor:
        """Joined along the first dim."""

    def reduce_scatter(self, t: Tensor) -> Tensor:
        """Summed, and cut along the first dim."""

    def all_to_all(self, t: Tensor) -> Tensor:
        """The first dim's equal pieces go to the ranks, and come from them."""


Groups = Callable[[tuple[str, ...]], Group]


@dataclass(slots=True)
class Grid:
    """Where the ranks of a stage stand.

    Attributes:
        axes: with that of microbatches in front.
        coords: of each rank, without that of microbatches.
    """

    axes: Axes
    coords: Mapping[int, Coords]

    def at(self, rank: int, micro: int) -> dict[str, int]:
        """The coordinates of a rank in a microbatch."""
        return {self.axes[0][0]: micro, **self.coords[rank]}

    def line(self, rank: int, axes: Sequence[str]) -> list[int]:
        """The ranks of the group along some axes that a rank is in, in order."""
        own = self.coords[rank]
        found = [
            r for r, c in self.coords.items()
            if all(c[a] == own[a] for a in own if a not in axes)
        ]  # fmt: skip
        return sorted(found, key=lambda r: number(axes, self.at(r, 0), self.axes))


class Exchanger(Protocol):
    """What moves values among the ranks of a stage."""

    def exchange(self, op: Exchange, parts: Parts, micro: int) -> Parts:
        """The parts after a move."""

    def combine(self, parts: Parts, axes: tuple[str, ...], how: str) -> Parts:
        """Combined elementwise along axes."""

    def scatter(self, parts: Parts, axes: tuple[str, ...]) -> Parts:
        """Flat tensors summed along axes; each rank gets its piece."""

    def gather(self, parts: Parts, axes: tuple[str, ...]) -> Parts:
        """The opposite, without the sum."""


def opened(t: Tensor, rows_: Sequence[Row]) -> Tensor:
    """A part with a dim for each row."""
    return t.reshape([r.local for r in rows_])


def closed(t: Tensor, rows_: Sequence[Row], rank: int) -> Tensor:
    """The opposite."""
    sizes = [1] * rank
    for r in rows_:
        sizes[r.dim] *= r.local
    return t.reshape(sizes)


def part(whole: Tensor, rows_: Sequence[Row], first: Sequence[int]) -> Tensor:
    """A rank's part of a whole value."""
    t = whole.reshape([r.size for r in rows_])
    for k, (r, begin) in enumerate(zip(rows_, first, strict=True)):
        if r.local != r.size:
            t = t.narrow(k, begin, r.local)
    return closed(t, rows_, whole.dim())


def rows_of(op: Exchange, at: Sharding, axes: Axes) -> tuple[Row, ...]:
    """The rows of the value that an exchange moves."""
    node = op.key.node
    extra = (*op.move.source.cuts, *op.move.target.cuts)
    marks = tuple(
        tuple({1, *(op.marks[d] if d < len(op.marks) else ()), *(i for e, i, _ in extra if e == d)})
        for d in range(len(node.shape))
    )
    return rows(tuple(map(known, node.shape)), marks, at, axes)


@dataclass(slots=True)
class Collectives:
    """Moves by the collectives of process groups.

    Attributes:
        grid: the stage.
        groups: of the ranks along axes, this one among them.
    """

    grid: Grid
    groups: Groups
    _rows: dict[int, tuple[tuple[Row, ...], tuple[Row, ...]]] = field(default_factory=dict)

    def exchange(self, op: Exchange, parts: Parts, micro: int) -> Parts:
        ((rank, t),) = parts.items()
        return {rank: self._exchange(op, t, self.grid.at(rank, micro))}

    def _exchange(self, op: Exchange, t: Tensor, coords: Coords) -> Tensor:
        move, dims = op.move, t.dim()
        if move.kind == "drop":
            return t if number(move.axes, coords, self.grid.axes) == 0 else torch.zeros_like(t)
        if move.kind == "all_reduce":
            return self.groups(move.axes).all_reduce(t, move.combine)
        (axis,) = move.axes
        found = self._rows.get(id(op))  # the program keeps its operations
        if found is None:
            axes = self.grid.axes
            found = rows_of(op, move.source, axes), rows_of(op, move.target, axes)
            self._rows[id(op)] = found
        before, after = found
        t = opened(t, before)
        have, want = move.source.on(axis), move.target.on(axis)
        if move.kind == "slice":
            assert isinstance(want, tuple)
            k = place(before, *want)
            length = after[k].local
            return closed(t.narrow(k, coords[axis] * length, length), after, dims)
        group = self.groups((axis,))
        if move.kind == "all_gather":
            assert isinstance(have, tuple)
            k = place(before, *have)
            got = group.all_gather(t.movedim(k, 0).contiguous())
            return closed(got.movedim(0, k), after, dims)
        assert isinstance(want, tuple)
        k = place(before, *want)
        if move.kind == "reduce_scatter":
            got = group.reduce_scatter(t.movedim(k, 0).contiguous())
            return closed(got.movedim(0, k), after, dims)
        assert isinstance(have, tuple)
        n, j = group.size, place(before, *have)
        sent = t.unflatten(k, (n, before[k].local // n)).movedim(k, 0).contiguous()
        got = group.all_to_all(sent)  # (source rank, rows of the piece)
        got = got.movedim(0, j)
        return closed(got.flatten(j, j + 1), after, dims)

    def combine(self, parts: Parts, axes: tuple[str, ...], how: str) -> Parts:
        return {r: self.groups(axes).all_reduce(t, how) for r, t in parts.items()}

    def scatter(self, parts: Parts, axes: tuple[str, ...]) -> Parts:
        return {r: self.groups(axes).reduce_scatter(t) for r, t in parts.items()}

    def gather(self, parts: Parts, axes: tuple[str, ...]) -> Parts:
        return {r: self.groups(axes).all_gather(t) for r, t in parts.items()}


COMBINE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add, "max": torch.maximum, "min": torch.minimum, "prod": torch.mul,
}  # fmt: skip


@dataclass(slots=True)
class Together:
    """All ranks of a stage in one process: what a move means, and whether it is legal.

    A rank gets what members of its group have; where they do not have it the move is refused.
    """

    grid: Grid
    _lines: dict[tuple[int, tuple[str, ...]], list[int]] = field(default_factory=dict)

    def line(self, rank: int, axes: tuple[str, ...]) -> list[int]:
        found = self._lines.get((rank, axes))
        if found is None:
            found = self._lines[rank, axes] = self.grid.line(rank, axes)
        return found

    def exchange(self, op: Exchange, parts: Parts, micro: int) -> Parts:
        move = op.move
        if move.kind == "drop":
            return {
                r: t if number(move.axes, self.grid.at(r, micro), self.grid.axes) == 0
                else torch.zeros_like(t)
                for r, t in parts.items()
            }  # fmt: skip
        if move.kind == "all_reduce":
            return self.combine(parts, move.axes, move.combine)
        if move.kind == "reduce_scatter":
            parts = self.combine(parts, move.axes, move.combine)
        local = move.kind in ("slice", "reduce_scatter")
        return {
            r: self._assembled(op, [r] if local else self.line(r, move.axes), r, parts, micro)
            for r in parts
        }

    def _assembled(
        self, op: Exchange, members: Sequence[int], r: int, parts: Parts, micro: int
    ) -> Tensor:
        """A rank's part of the target from what some ranks have of the source."""
        axes = self.grid.axes
        before, after = rows_of(op, op.move.source, axes), rows_of(op, op.move.target, axes)
        shape = tuple(map(known, op.key.node.shape))
        index = torch.arange(math.prod(shape)).reshape(shape)
        flat = parts[r].new_zeros(index.numel())
        there = torch.zeros(index.numel(), dtype=torch.bool)
        for m in members:
            at = part(index, before, starts(before, self.grid.at(m, micro), axes)).reshape(-1)
            flat[at] = parts[m].reshape(-1)
            there[at] = True
        mine = part(index, after, starts(after, self.grid.at(r, micro), axes))
        if not bool(there[mine.reshape(-1)].all()):
            raise WhetError(
                "a move asks for what no member of its group has", expected=op.move.target,
                got=op.move.source, where=op.key.node,
            )  # fmt: skip
        return flat[mine.reshape(-1)].reshape(mine.shape)

    def combine(self, parts: Parts, axes: tuple[str, ...], how: str) -> Parts:
        found = {}
        for r in parts:
            total: Tensor | None = None
            for m in self.line(r, axes):
                total = parts[m] if total is None else COMBINE[how](total, parts[m])
            assert total is not None
            found[r] = total
        return found

    def scatter(self, parts: Parts, axes: tuple[str, ...]) -> Parts:
        summed = self.combine(parts, axes, "sum")
        found = {}
        for r, t in summed.items():
            line = self.line(r, axes)
            length = t.shape[0] // len(line)
            found[r] = t.narrow(0, line.index(r) * length, length)
        return found

    def gather(self, parts: Parts, axes: tuple[str, ...]) -> Parts:
        return {r: torch.cat([parts[m] for m in self.line(r, axes)]) for r in parts}
