"""Searches that need no model: what one that has a model must be better than.

Sampling    states drawn at random
Evolution   children of the fittest (μ + λ), drawn from what the space proposes of them
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from whet.search.budget import StopReason
from whet.search.space import S, Scored
from whet.search.strategy import Draw, Keeper, Turn, _at_least

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Draw at random, `batch` proposals a round, always from the start state.

    Args:
        seed: of the random numbers.
        batch: proposals drawn a round.
        window: proposals that they are drawn from.
    """

    seed: int = 0
    batch: int = 4
    window: int = 1024

    def __post_init__(self) -> None:
        _at_least("batch", 1, self.batch)
        _at_least("window", 1, self.window)

    def keep(self, start: Scored[S]) -> Keeper[S]:
        rng = random.Random(self.seed)
        while (yield Turn([start], _sample(rng, self.batch, self.window))):
            pass
        return StopReason.SATURATED


@dataclass(frozen=True, slots=True)
class Evolution:
    """Keep the fittest, and price children of theirs.

    Parents and children compete for the next generation (Bäck, Hoffmeister and Schwefel 1991). The
    space proposes the children: mutants of the kept states, and crossings where it knows how.

    Args:
        seed: of the random numbers.
        population: how many are kept.
        children: how many are priced a generation.
        window: proposals that children are drawn from.
        patience: generations without a better state before giving up.
    """

    seed: int = 0
    population: int = 16
    children: int = 8
    window: int = 1024
    patience: float = math.inf

    def __post_init__(self) -> None:
        _at_least("population", 1, self.population)
        _at_least("children", 1, self.children)
        _at_least("window", 1, self.window)
        _at_least("patience", 1, self.patience)

    def keep(self, start: Scored[S]) -> Keeper[S]:
        rng = random.Random(self.seed)
        alive = {start.state: start}
        best, idle = start.seconds, 0
        while True:
            parents = list(alive.values())
            found = yield Turn(parents, _sample(rng, self.children, self.window))
            if not found:
                return StopReason.SATURATED
            alive |= {scored.state: scored for scored in found}
            fittest = heapq.nsmallest(self.population, alive.values(), key=lambda s: s.seconds)
            alive = {scored.state: scored for scored in fittest}
            idle = 0 if fittest[0].seconds < best else idle + 1
            best = min(best, fittest[0].seconds)
            if idle >= self.patience:
                return StopReason.CONVERGED


def _sample(rng: random.Random, count: int, window: int) -> Draw:
    """Draw `count` of the first `window` proposals."""

    def draw(proposals: Iterator[T], /) -> Iterable[T]:
        listed = list(islice(proposals, window))
        return rng.sample(listed, min(count, len(listed)))

    return draw
