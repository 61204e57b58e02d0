"""What a forward pass hands out: the parts of its ranks, and the whole.

Part := number of the graph's output, shape of the whole, Row*, first step of each, tensor
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from whet.parallel.cut import known
from whet.parallel.parts import Row, rows, starts
from whet.run.parallel.exchange import opened
from whet.run.parallel.runner import Runner


class Part(NamedTuple):
    """A rank's part of one result, of one microbatch; plain data that ranks can send."""

    number: int
    rank: int
    shape: tuple[int, ...]
    rows: tuple[Row, ...]
    first: tuple[int, ...]
    tensor: Tensor

    def of(self, whole: Tensor) -> Tensor:
        """The same part of a whole value, with a dim for each row."""
        t = whole.view([r.size for r in self.rows])
        for k, (r, begin) in enumerate(zip(self.rows, self.first, strict=True)):
            t = t.narrow(k, begin, r.local)
        return t

    @property
    def open(self) -> Tensor:
        """The tensor likewise."""
        return opened(self.tensor, self.rows)


def parts(runner: Runner) -> list[Part]:
    """What the ranks of a process have of the results of the last forward pass."""
    found = []
    for s, stage in enumerate(runner.program.stages):
        if s not in runner.ranks:
            continue
        grid = runner.grids[s]
        for number, key in stage.results:
            shape = tuple(map(known, key.node.shape))
            rows_ = rows(shape, (), key.at, grid.axes)
            for micro in range(runner.program.strategy.microbatches):
                for r, t in runner.results[number, micro].items():
                    first = starts(rows_, grid.at(r, micro), grid.axes)
                    found.append(Part(number, r, shape, rows_, first, t))
    return found


def joined(found: Iterable[Part]) -> tuple[Tensor, ...]:
    """The results in order, from the parts of all ranks."""
    made: dict[int, Tensor] = {}
    for p in found:
        whole = made.get(p.number)
        if whole is None:
            whole = made[p.number] = torch.empty(p.shape, dtype=p.tensor.dtype)
        p.of(whole).copy_(p.open)
    return tuple(made[k] for k in sorted(made))
