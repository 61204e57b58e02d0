"""A table as a space of `whet.search`: a state is a row, its price is what was measured."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.tuning.table import Row, Table
from whet.search import Budget, Candidate, Cost, Refutation, Scored


@dataclass
class TableSpace:
    """The rows of a table.

    Args:
        table: what was measured.
        seed: of the random numbers, the start state's among them.
        near: propose the neighbours of the kept rows, which differ in one parameter.
        cross: propose crossings of two kept rows.
        anywhere: propose rows from the whole table, in random order.
        jump: a neighbour may have any other value of the parameter, not only the next ones.
    """

    table: Table
    seed: int = 0
    near: bool = True
    cross: bool = True
    anywhere: bool = True
    jump: bool = True

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.rows = list(self.table.seconds)

    def start(self) -> Row:
        return self.rng.choice(self.rows)

    def propose(self, kept: Sequence[Scored[Row]], budget: Budget) -> Iterator[Candidate[Row]]:
        here = kept[0].state
        local = itertools.chain(
            (row for k in kept for row in self._neighbours(k.state)) if self.near else (),
            self._crossings([k.state for k in kept]) if self.cross else (),
        )
        found = dict.fromkeys(row for row in local if row in self.table.seconds)
        listed = list(found)
        self.rng.shuffle(listed)
        rest = self._drawn() if self.anywhere else iter(())
        # Turn about, so that a window of any size holds some of each.
        for pair in itertools.zip_longest(listed, rest):
            for row in pair:
                if row is not None and row != here:
                    yield Candidate(here, row, row)

    def check(self, c: Candidate[Row]) -> Refutation | None:
        return None

    def cost(self, cs: Sequence[Candidate[Row]]) -> list[Scored[Row]]:
        return [Scored(c.after, Cost(self.table.seconds[c.after])) for c in cs]

    def _drawn(self) -> Iterator[Row]:
        """Rows from the whole table, drawn as they are asked for; some come twice."""
        return (self.rng.choice(self.rows) for _ in range(4 * len(self.rows)))

    def _neighbours(self, row: Row) -> Iterator[Row]:
        for k, values in enumerate(self.table.values):
            at = values.index(row[k])
            others = values if self.jump else values[max(at - 1, 0) : at + 2]
            for value in others:
                if value != row[k]:
                    yield (*row[:k], value, *row[k + 1 :])

    def _crossings(self, rows: Sequence[Row]) -> Iterator[Row]:
        for a, b in itertools.combinations(rows, 2):
            for _ in range(2):
                yield tuple(self.rng.choice(pair) for pair in zip(a, b, strict=True))
