"""A strategy: how a model is laid out on a cluster, before any of it is lowered.

    Strategy := Part+ microbatches schedule chunks           parts in the order of the model
    Part     := first last devices Recipe zero recompute     places of blocks, first ≤ … < last
    Recipe   := (axis size)* pinned style                    how blocks are cut there

A style says what the 0-1 program of a block may do and what memory counts for in it:

    free       anything along axes that are not pinned
    lean       the same, and memory is dear
    tokens     parameters are cut, samples and tokens are not: activations between blocks are whole
    weird      windows cut samples along "data", products with parameters cut the parameters
               (Krizhevsky, "One weird trick", 2014)
    experts    products with a parameter for each of many cut these, all others cut samples
               (Lepikhin et al., "GShard", 2020)
    rows       tables of which rows are looked up are cut by rows along "data", or
    columns    by columns; all others are free
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

STYLES = ("free", "lean", "tokens", "weird", "experts", "rows", "columns")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the blocks of a part are cut.

    Attributes:
        axes: name and size of each axis of its mesh; "data" cuts samples.
        pinned: axes that cut samples only.
        style: one of `STYLES`.
    """

    axes: tuple[tuple[str, int], ...]
    pinned: frozenset[str] = frozenset({"data"})
    style: str = "free"

    def size(self, name: str) -> int:
        return dict(self.axes).get(name, 1)

    def __str__(self) -> str:
        text = " x ".join(f"{name} {size}" for name, size in self.axes if size > 1) or "one device"
        loose = [n for n, size in self.axes if n == "data" and n not in self.pinned and size > 1]
        extra = [self.style] if self.style != "free" else []
        return " ".join([text, *extra, *(f"({n} free)" for n in loose)])


@dataclass(frozen=True, slots=True)
class Part:
    """One stage of the pipeline.

    Attributes:
        first, last: places of its blocks in the model, the last not included.
        devices: of the cluster.
        recipe: how its blocks are cut.
        zero, recompute, offload, shares: as `whet.parallel.placed.Stage` has them.
    """

    first: int
    last: int
    devices: tuple[int, ...]
    recipe: Recipe
    zero: int = 0
    recompute: bool = False
    offload: frozenset[str] = frozenset()
    shares: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Strategy:
    """A whole layout.

    Attributes:
        parts: stages in the order of the model.
        microbatches, schedule, chunks: as `Placed` has them.
        origin: what proposed it.
    """

    parts: tuple[Part, ...]
    microbatches: int = 1
    schedule: str = "1f1b"
    chunks: int = 1
    origin: str = ""

    @property
    def groups(self) -> int:
        return len(self.parts) // self.chunks

    def everywhere(self, **fields: Any) -> Strategy:
        """The same with some fields of all parts replaced."""
        return replace(self, parts=tuple(replace(p, **fields) for p in self.parts))

    def __str__(self) -> str:
        kinds = dict.fromkeys(
            f"{p.recipe}, zero {p.zero}{', recompute' if p.recompute else ''}" for p in self.parts
        )
        depth = f"{self.groups} stages" if self.groups > 1 else "1 stage"
        if self.chunks > 1:
            depth += f" of {self.chunks} chunks"
        return f"{depth}, {self.microbatches} microbatches, {self.schedule}: {'; '.join(kinds)}"


def even(
    speeds: Sequence[Sequence[float]],
    groups: Sequence[tuple[int, ...]],
    recipes: Sequence[Recipe],
    *,
    chunks: int = 1,
    **fields: Any,
) -> tuple[Part, ...]:
    """Parts that take about the same time on groups of devices.

    Args:
        speeds: for each group, seconds of every block of the model there.
        groups: the devices of each group.
        recipes: of each group.
        chunks: parts of each group.
    """
    count = len(groups) * chunks
    cuts = balanced([speeds[k % len(groups)] for k in range(count)])
    return tuple(
        Part(a, b, groups[k % len(groups)], recipes[k % len(groups)], **fields)
        for k, (a, b) in enumerate(itertools.pairwise(cuts))
    )


def balanced(times: Sequence[Sequence[float]]) -> list[int]:
    """Where to cut a row of blocks so that the slowest part is as fast as can be.

    The inter-operator half of the search: dynamic programming over the table best[k][i], the first
    i blocks on the first k meshes (Narayanan et al., "PipeDream", SOSP 2019, section 3.1). Every
    part gets a block at least.

    Args:
        times: for each part in order, the seconds that each block takes on its devices.
    """
    parts, n = len(times), len(times[0])
    totals = []
    for row in times:
        total = [0.0]
        for w in row:
            total.append(total[-1] + w)
        totals.append(total)
    best = [[math.inf] * (n + 1) for _ in range(parts + 1)]
    back = [[0] * (n + 1) for _ in range(parts + 1)]
    best[0][0] = 0.0
    for k in range(1, parts + 1):
        total, before = totals[k - 1], best[k - 1]
        low = k - 1
        for i in range(k, n - (parts - k) + 1):
            # Where the last part best begins only moves right as i grows.
            worst = max(before[low], total[i] - total[low])
            while low + 1 < i:
                further = max(before[low + 1], total[i] - total[low + 1])
                if further > worst:
                    break
                low, worst = low + 1, further
            best[k][i], back[k][i] = worst, low
    cuts = [n]
    for k in range(parts, 0, -1):
        cuts.append(back[k][cuts[-1]])
    return cuts[::-1]
