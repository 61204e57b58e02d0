"""Which states a search goes on from.

A strategy is a generator: it yields a `Turn` (the states to propose from, and how to draw from the
proposals), is sent the scored states that came of it, and returns the reason when it has enough.
Its frontier, its temperature and its random numbers are then plain local variables:

    strategy     goes on from                             ends
    Greedy       the best neighbour, while it is better   Converged at a local optimum
    BestFirst    the cheapest state not yet expanded      Saturated, or Converged without progress
    Beam         the cheapest `width` new states          Saturated, or Converged without progress
    Annealing    a neighbour accepted by Metropolis       Converged when it has cooled

What a solver answers is a proposal like any other (see `selection`), so every strategy can run it.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Generic, Protocol, TypeAlias, TypeVar

from whet.errors import SearchError
from whet.search.budget import StopReason
from whet.search.space import S, Scored

T = TypeVar("T")


class Draw(Protocol):
    """Which of the proposals to look at, in which order."""

    def __call__(self, proposals: Iterator[T], /) -> Iterable[T]: ...


def every(proposals: Iterator[T], /) -> Iterable[T]:
    """Draw every proposal, in the order of the space."""
    return proposals


@dataclass(frozen=True, slots=True)
class Turn(Generic[S]):
    """What a strategy asks of the next round."""

    kept: Sequence[Scored[S]]
    draw: Draw = every


Keeper: TypeAlias = Generator[Turn[S], Sequence[Scored[S]], StopReason]


class Strategy(Protocol):
    """Decides what is kept."""

    def keep(self, start: Scored[S]) -> Keeper[S]: ...


def _cheapest(found: Sequence[Scored[S]]) -> Scored[S]:
    return min(found, key=lambda scored: scored.seconds)


def _at_least(what: str, least: float, got: float) -> None:
    if not got >= least:
        raise SearchError("a strategy cannot be this", expected=f"{what} >= {least}", got=got)


@dataclass(frozen=True, slots=True)
class Greedy:
    """Steepest descent: the best neighbour, as long as it is better."""

    def keep(self, start: Scored[S]) -> Keeper[S]:
        here = start
        while True:
            found = yield Turn([here])
            if not found:
                return StopReason.SATURATED
            best = _cheapest(found)
            if best.seconds >= here.seconds:
                return StopReason.CONVERGED
            here = best


@dataclass(frozen=True, slots=True)
class BestFirst:
    """Expand the cheapest state that was not expanded yet.

    Args:
        slack: states that cost more than `slack` times the best are dropped. This is the α by
            which TASO (Jia et al., SOSP 2019) lets a search pass through worse graphs.
        patience: rounds without a better state before giving up.
    """

    slack: float = 1.05
    patience: float = math.inf

    def __post_init__(self) -> None:
        _at_least("slack", 1, self.slack)
        _at_least("patience", 1, self.patience)

    def keep(self, start: Scored[S]) -> Keeper[S]:
        best, idle, order = start.seconds, 0, count()
        frontier = [(start.seconds, next(order), start)]  # order: equal costs, first come first
        seen = {start.state}
        while frontier:
            seconds, _, here = heapq.heappop(frontier)
            if seconds > self.slack * best:
                return StopReason.CONVERGED  # so does the rest of the heap
            for scored in (yield Turn([here])):
                if scored.state not in seen:
                    seen.add(scored.state)
                    heapq.heappush(frontier, (scored.seconds, next(order), scored))
            reached = min(best, frontier[0][0] if frontier else best)
            idle = 0 if reached < best else idle + 1
            best = reached
            if idle >= self.patience:
                return StopReason.CONVERGED
        return StopReason.SATURATED


@dataclass(frozen=True, slots=True)
class Beam:
    """Go on from the cheapest `width` states that are new this round.

    Args:
        width: how many states are kept.
        patience: rounds without a better state before giving up.
    """

    width: int = 8
    patience: float = math.inf

    def __post_init__(self) -> None:
        _at_least("width", 1, self.width)
        _at_least("patience", 1, self.patience)

    def keep(self, start: Scored[S]) -> Keeper[S]:
        kept, best, idle = [start], start.seconds, 0
        seen = {start.state}
        while True:
            found = yield Turn(kept)
            new = {scored.state: scored for scored in found if scored.state not in seen}
            if not new:
                return StopReason.SATURATED
            seen |= new.keys()
            kept = heapq.nsmallest(self.width, new.values(), key=lambda scored: scored.seconds)
            idle = 0 if kept[0].seconds < best else idle + 1
            best = min(best, kept[0].seconds)
            if idle >= self.patience:
                return StopReason.CONVERGED


@dataclass(frozen=True, slots=True)
class Annealing:
    """Metropolis against the current state, cooling geometrically.

    Each round draws `sample` of the proposals at random and holds the best of them against the
    current state: a better one is taken, one that is slower by the fraction d with probability
    exp(-d / temperature) (Metropolis et al. 1953; Kirkpatrick et al. 1983). With a sample of one
    this is the textbook chain; with every proposal and temperature zero it is `Greedy`.

    Args:
        seed: of the random numbers; the same seed makes the same choices.
        temperature: the first one, as a fraction of the current cost.
        final: the last one, likewise.
        rounds: how many rounds it takes to cool.
        sample: candidates per round; None for all that are proposed, in the space's order.
        window: proposals that a sample is drawn from, where a space proposes more than can be
            listed.
    """

    seed: int = 0
    temperature: float = 0.05
    final: float = 1e-3
    rounds: int = 1000
    sample: int | None = 1
    window: int = 256

    def __post_init__(self) -> None:
        _at_least("temperature", 0, self.temperature)
        _at_least("rounds", 1, self.rounds)
        _at_least("sample", 1, 1 if self.sample is None else self.sample)
        _at_least("window", 1, self.window)
        if self.temperature and not 0 < self.final <= self.temperature:
            raise SearchError(
                "a strategy cannot be this",
                expected=f"0 < final <= temperature = {self.temperature}",
                got=self.final,
            )

    def keep(self, start: Scored[S]) -> Keeper[S]:
        rng = random.Random(self.seed)

        def draw(proposals: Iterator[T], /) -> Iterable[T]:
            if self.sample is None:
                return proposals
            window = list(islice(proposals, self.window))
            return rng.sample(window, min(self.sample, len(window)))

        here = start
        for step in range(self.rounds):
            found = yield Turn([here], draw)
            if not found:
                if self.sample is None:
                    return StopReason.SATURATED
                continue  # what was drawn was refuted; another draw may not be
            best = _cheapest(found)
            if self._accepts(best.seconds, here.seconds, self._at(step), rng):
                here = best
            elif self.temperature == 0 and self.sample is None:
                return StopReason.CONVERGED
        return StopReason.CONVERGED

    def _at(self, step: int) -> float:
        if self.temperature == 0:
            return 0.0
        return self.temperature * float((self.final / self.temperature) ** (step / self.rounds))

    @staticmethod
    def _accepts(seconds: float, current: float, temperature: float, rng: random.Random) -> bool:
        if seconds < current:
            return True
        if temperature == 0 or current == 0:
            return False
        slower = 0.0 if seconds == current else seconds / current - 1  # both may be infinite
        return rng.random() < math.exp(-slower / temperature)
