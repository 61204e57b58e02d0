"""Parameters on ranks: flat buckets, sharded as ZeRO says, updated by a stock optimizer.

    zero 0   every rank keeps the bucket, its gradients are summed over the bucket's ranks
    zero 1   gradients are scattered, each rank updates its piece, the new weights are gathered
    zero 2   the same, gradients are scattered in every microbatch and kept in pieces
    zero 3   only the piece is kept; the bucket is gathered before a block and dropped behind it

An optimizer that works element by element does the same to a flat piece as to the parameters, so
`torch.optim` is used as it is, on one flat parameter for each bucket.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.ir.graph import Node
from whet.parallel.cut import known
from whet.parallel.parts import Marks, rows, starts
from whet.parallel.program import Bucket, Key, Stage
from whet.run.parallel.exchange import Exchanger, Grid, Parts, part

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(slots=True)
class Weights:
    """One bucket on the ranks of this process.

    Attributes:
        count: ranks that share it.
        held: what each rank keeps, flat: the bucket, or its piece under ZeRO 3.
        own: the flat parameter that each rank updates; a piece of `held` or all of it.
        gathered: the whole bucket of each rank while it is there.
        sums: gradients so far; by parameter, or flat pieces from ZeRO 2 on.
    """

    bucket: Bucket
    stage: Stage
    grid: Grid
    exchanger: Exchanger
    held: Parts
    own: dict[int, torch.nn.Parameter]
    count: int
    marks: Mapping[Node, Marks]
    gathered: Parts = field(default_factory=dict)
    sums: dict[Key, Parts] = field(default_factory=dict)
    pieces: Parts = field(default_factory=dict)
    _views: tuple[tuple[Tensor, ...], dict[Key, Parts]] = field(default=((), {}), repr=False)

    @property
    def zero(self) -> int:
        return self.stage.part.zero if self.count > 1 else 0

    @classmethod
    def of(
        cls, bucket: Bucket, stage: Stage, grid: Grid, exchanger: Exchanger,
        wholes: Mapping[str, Tensor], ranks: Sequence[int], marks: Mapping[Node, Marks],
    ) -> Weights:  # fmt: skip
        """A bucket from whole parameters, which may lie on the meta device."""
        sizes = dict(stage.axes)
        count = math.prod(sizes[a] for a in bucket.reduce)
        made = cls(bucket, stage, grid, exchanger, {}, {}, count, marks)
        for r in ranks:
            coords = grid.at(r, 0)
            flat = []
            for key in bucket.parameters:
                whole = wholes[key.node.name].detach()
                rows_ = rows(tuple(whole.shape), marks.get(key.node, ()), key.at, stage.axes)
                flat.append(part(whole, rows_, starts(rows_, coords, stage.axes)).reshape(-1))
            pad = made.padded - bucket.elements
            if pad:
                flat.append(flat[0].new_zeros(pad))
            joined = torch.cat(flat) if len(flat) > 1 else flat[0].clone()
            made.place(r, joined)
        return made

    @property
    def padded(self) -> int:
        """Elements of the bucket, filled up so that every rank has an equal piece."""
        return -(-self.bucket.elements // self.count) * self.count

    @property
    def length(self) -> int:
        """Elements that a rank updates."""
        return self.padded // self.count if self.zero else self.padded

    def start(self, rank: int) -> int:
        """Where in the bucket a rank's piece begins."""
        if not self.zero:
            return 0
        line = self.grid.line(rank, self.bucket.reduce)
        return line.index(rank) * self.length

    def place(self, rank: int, whole: Tensor) -> None:
        """Keep what a rank keeps of a whole bucket."""
        piece = whole.narrow(0, self.start(rank), self.length)
        if self.zero == 3:
            piece = piece.clone()
            self.held[rank] = piece
        else:
            self.held[rank] = whole
        self.own[rank] = torch.nn.Parameter(piece, requires_grad=False)

    # -- weights ---------------------------------------------------------------------------------
    def fetch(self) -> None:
        """Gather a bucket that is kept in pieces."""
        if self.zero == 3 and not self.gathered:
            self.gathered = self.exchanger.gather(self.held, self.bucket.reduce)

    def drop(self) -> None:
        """Give back what was gathered."""
        self.gathered, self._views = {}, ((), {})

    def views(self) -> dict[Key, Parts]:
        """Every parameter as it lies on the ranks."""
        whole = self.gathered if self.zero == 3 else self.held
        flats, found = self._views
        if len(flats) == len(whole) and all(map(operator.is_, flats, whole.values())):
            return found
        found = {k: {} for k in self.bucket.parameters}
        sizes = dict(self.stage.axes)
        for r, flat in whole.items():
            at = 0
            for key in self.bucket.parameters:
                shape = key.at.shape(tuple(map(known, key.node.shape)), sizes)
                count = math.prod(shape)
                found[key][r] = flat.narrow(0, at, count).view(shape)
                at += count
        self._views = tuple(whole.values()), found
        return found

    # -- gradients -------------------------------------------------------------------------------
    def add(self, values: Callable[[Key], Parts], partial: frozenset[str], *, last: bool) -> None:
        """Take the gradients of one microbatch.

        Args:
            values: of keys of the stage.
            partial: axes in time: gradients that are partial along them are added up.
            last: of the step.
        """
        for key in dict.fromkeys(self.bucket.gradients):
            new = values(key)
            old = self.sums.get(key)
            if old is None or not any(a in partial for a, _ in key.at.partial):
                self.sums[key] = new
            else:
                self.sums[key] = {r: t + new[r] for r, t in old.items()}
        if self.zero >= 2 or last:
            self._reduce()

    def _reduce(self) -> None:
        whole: Parts = {}
        at = 0
        for key, moves in zip(self.bucket.gradients, self.bucket.finish, strict=True):
            parts = self.sums[key]
            for op in moves:
                parts = self.exchanger.exchange(op, parts, 0)
            for r, t in parts.items():
                if r not in whole:
                    whole[r] = t.new_empty(self.padded)
                    whole[r][self.bucket.elements :].zero_()
                whole[r].narrow(0, at, t.numel()).view(t.shape).copy_(t)
            at += t.numel()
        self.sums = {}
        if self.count == 1:
            got = whole
        elif self.zero:
            got = self.exchanger.scatter(whole, self.bucket.reduce)
        else:
            got = self.exchanger.combine(whole, self.bucket.reduce, "sum")
        if self.pieces:
            got = {r: self.pieces[r] + t for r, t in got.items()}
        self.pieces = got

    def update(self, optimizers: Mapping[int, torch.optim.Optimizer]) -> None:
        """Hand the gradients to the optimizers; `settle` follows their step."""
        for r, p in self.own.items():
            p.grad = self.pieces[r].to(p.dtype)
        self.pieces = {}

    def settle(self) -> None:
        """Bring the new weights to everyone who keeps them."""
        for p in self.own.values():
            p.grad = None
        if self.zero in (1, 2):
            got = self.exchanger.gather(
                {r: p.detach() for r, p in self.own.items()}, self.bucket.reduce
            )
            for r, t in got.items():
                self.held[r].copy_(t)
