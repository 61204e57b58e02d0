"""Searches replayed over tables: how good the best so far is after each trial.

    random       rows drawn from the whole table
    annealing    Metropolis from neighbour to neighbour
    genetic      children of the sixteen fittest: mutants and crossings
    nothing      whet's search, its model knowing nothing before the first trial
    whet         the same with a prior, learnt from other tables

A trial is a row that was not paid for before; the state a search starts from is its first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.tuning.space import TableSpace
from bench.tuning.table import Row, Table
from whet.kernel.model import CostModel, Prior
from whet.kernel.process import Array, Shape
from whet.search import (
    Annealing,
    Budget,
    Evolution,
    Led,
    Sampling,
    Scored,
    StopReason,
    Strategy,
    search,
)
from whet.search.space import Candidate


@dataclass
class Recorded(TableSpace):
    """A table's space that remembers what was paid for, in order."""

    paid: list[float] = field(default_factory=list)

    def cost(self, cs: Sequence[Candidate[Row]]) -> list[Scored[Row]]:
        found = super().cost(cs)
        self.paid += [scored.seconds for scored in found]
        return found


class Trials(Budget):
    """A budget in rows paid for: drawing one again costs nothing, but not forever."""

    def __init__(self, paid: list[float], trials: int) -> None:
        super().__init__(batch=1, candidates=20 * trials)
        self.paid, self.trials = paid, trials

    def stop(self) -> StopReason | None:
        return StopReason.BUDGET if len(self.paid) >= self.trials else super().stop()


Search = Callable[[Table, int, int], list[float]]


def _run(space: Recorded, strategy: Strategy, trials: int) -> list[float]:
    search(space, strategy, Trials(space.paid, trials))
    return space.paid


def sampled(table: Table, seed: int, trials: int) -> list[float]:
    """Random search."""
    space = Recorded(table, seed, near=False, cross=False)
    return _run(space, Sampling(seed, batch=1, window=16), trials)


def annealed(table: Table, seed: int, trials: int) -> list[float]:
    """Simulated annealing without a model; cooled over the trials that it has."""
    space = Recorded(table, seed, cross=False, anywhere=False)
    strategy = Annealing(seed, temperature=0.5, final=0.01, rounds=2 * trials)
    return _run(space, strategy, trials)


def evolved(table: Table, seed: int, trials: int) -> list[float]:
    """A genetic algorithm; its first generation is drawn at random."""
    space = Recorded(table, seed)
    return _run(space, Evolution(seed, population=16, children=8), trials)


def led(prior: Prior | None = None, shape: Shape | None = None) -> Search:
    """whet's search, its model starting from what was learnt elsewhere, if anything was."""

    def run(table: Table, seed: int, trials: int) -> list[float]:
        space = Recorded(table, seed)
        model = CostModel(table.features, prior, table.relations, shape)
        strategy = Led(model, seed, first=12 if prior is None else 0)
        return _run(space, strategy, trials)

    return run


SEARCHES: Mapping[str, Search] = {
    "random": sampled,
    "annealing": annealed,
    "genetic": evolved,
    "nothing": led(),
}


def curve(paid: list[float], best: float, trials: int) -> Array:
    """Slowdown of the best so far against the best known, after each trial.

    A search that stopped early keeps what it had.
    """
    seen = np.minimum.accumulate(np.asarray(paid[:trials]))
    whole = np.concatenate([seen, np.full(max(trials - len(seen), 0), seen[-1])])
    result: Array = whole / best
    return result


def curves(run: Search, table: Table, seeds: int, trials: int) -> Array:
    """(seeds, trials): a curve for each seed."""
    return np.stack([curve(run(table, seed, trials), table.best, trials) for seed in range(seeds)])


def regret(found: Array) -> float:
    """How much slower than the best known the best so far was, on average over the trials; the
    median over seeds. A row that did not run counts ten times as slow."""
    return float(np.median(np.minimum(found, 10.0).mean(1)) - 1.0)
