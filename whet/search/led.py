"""A search led by an advisor: measure few, learn from each, ask where to look next.

    advisor := learn(scored states), pick(states, count) -> places, the most promising first

The advisor is usually a cost model with its doubt (`whet.kernel.model`), but the strategy knows
nothing of it: it opens with draws at random, and from then on shows the advisor a window of what
the space proposes around the best states, and has the space price what it picks.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar, cast

from whet.search.budget import StopReason
from whet.search.space import Candidate, S, Scored
from whet.search.strategy import Keeper, Turn, _at_least

T = TypeVar("T")


STUCK = 5  # batches without a better state, after which as many are drawn at random as at first:
AGAIN = 12  # an advisor that has learnt elsewhere never saw this space as a whole


class Advisor(Protocol):
    """Learns what states cost, and says which others are worth pricing."""

    def learn(self, found: Sequence[Scored[Any]]) -> None:
        """Take in prices; what cannot run costs infinity."""
        ...

    def pick(self, states: Sequence[Any], count: int) -> Sequence[int]:
        """Places of at most `count` states, the most promising first, unlike one another."""
        ...


@dataclass(frozen=True, slots=True)
class Led:
    """Goes where the advisor points, and now and then elsewhere.

    Args:
        advisor: is taught every price that the search pays for.
        seed: of the random numbers.
        first: states drawn at random before the advisor is asked; 0 where it has learnt elsewhere.
        batch: states priced between two questions.
        window: proposals that the advisor chooses from.
        kept: the best states, around which the space proposes.
        epsilon: share of states drawn at random all the same, against an advisor that is wrong.
        patience: batches without a better state before giving up.
    """

    advisor: Advisor
    seed: int = 0
    first: int = 12
    batch: int = 4
    window: int = 1024
    kept: int = 8
    epsilon: float = 0.1
    patience: float = math.inf

    def __post_init__(self) -> None:
        _at_least("first", 0, self.first)
        _at_least("batch", 1, self.batch)
        _at_least("window", 1, self.window)
        _at_least("kept", 1, self.kept)
        _at_least("patience", 1, self.patience)

    def keep(self, start: Scored[S]) -> Keeper[S]:
        rng = random.Random(self.seed)
        known: dict[S, Scored[S]] = {start.state: start}
        self.advisor.learn([start])
        best, idle, opening = start.seconds, 0, self.first

        def draw(proposals: Iterator[T], /) -> Iterable[T]:
            window: dict[Any, T] = {}
            for proposal in islice(proposals, self.window):  # a generator may go on forever
                _, candidate = cast(tuple[int, Candidate[Any]], proposal)
                if candidate.after not in known:
                    window.setdefault(candidate.after, proposal)
            states, drawn = list(window), list(window.values())
            if opening > 0:
                return rng.sample(drawn, min(opening, len(drawn)))
            count = min(self.batch, len(states))
            chosen = list(self.advisor.pick(states, count))
            taken = set(chosen)
            rest = [k for k in range(len(states)) if k not in taken]
            for place in range(len(chosen)):
                if rest and rng.random() < self.epsilon:
                    chosen[place] = rest.pop(rng.randrange(len(rest)))
            return [drawn[k] for k in chosen]

        while True:
            kept = heapq.nsmallest(self.kept, known.values(), key=lambda scored: scored.seconds)
            found = yield Turn(kept, draw)
            new = {s.state: s for s in found if s.state not in known}
            if not new:
                return StopReason.SATURATED
            known |= new
            self.advisor.learn(list(new.values()))
            opening = 0 if idle % STUCK or not idle else AGAIN
            reached = min(best, *(s.seconds for s in new.values()))
            idle = 0 if reached < best else idle + 1
            best = reached
            if idle >= self.patience:
                return StopReason.CONVERGED
