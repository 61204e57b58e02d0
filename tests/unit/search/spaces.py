"""Small spaces for the tests of the search: a landscape of numbers, and random graphs of moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from whet.search import Budget, Candidate, Cost, Refutation, Scored, Source


@dataclass
class Graph:
    """States are numbers; `moves` and `seconds` say all. Odd ways in may be forbidden."""

    moves: Mapping[int, Sequence[int]]
    seconds: Mapping[int, float]
    forbidden: frozenset[tuple[int, int]] = frozenset()
    source: Source = Source.MEASURED
    priced: list[int] = field(default_factory=list)

    def start(self) -> int:
        return 0

    def propose(self, kept: Sequence[Scored[int]], budget: Budget) -> Iterator[Candidate[int]]:
        for scored in kept:
            here = scored.state
            for after in self.moves.get(here, ()):
                yield Candidate(here, after, f"{here}->{after}")

    def check(self, c: Candidate[int]) -> Refutation | None:
        if (c.before, c.after) in self.forbidden:
            return Refutation("forbidden", {"way": [c.before, c.after]})
        return None

    def cost(self, cs: Sequence[Candidate[int]]) -> list[Scored[int]]:
        self.priced += [c.after for c in cs]
        return [Scored(c.after, Cost(self.seconds[c.after], source=self.source)) for c in cs]


def line(seconds: Sequence[float]) -> Graph:
    """States in a row; each leads to its neighbours."""
    last = len(seconds) - 1
    moves = {i: [j for j in (i - 1, i + 1) if 0 <= j <= last] for i in range(last + 1)}
    return Graph(moves, dict(enumerate(seconds)))


@dataclass
class Wander:
    """An endless stream of random jumps: what is proposed depends on the draws so far."""

    seed: int = 0
    size: int = 1000
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def start(self) -> int:
        return self.size

    def propose(self, kept: Sequence[Scored[int]], budget: Budget) -> Iterator[Candidate[int]]:
        while True:
            here = self.rng.choice(kept).state
            step = self.rng.randint(-9, 9)
            yield Candidate(here, here + step, f"{step:+d}")

    def check(self, c: Candidate[int]) -> Refutation | None:
        return Refutation("negative") if c.after < 0 else None

    def cost(self, cs: Sequence[Candidate[int]]) -> list[Scored[int]]:
        return [Scored(c.after, Cost(float(c.after))) for c in cs]


class Clock:
    """A clock that goes on by `step` whenever it is looked at."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 100.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def interrupting(space: Graph, phase: str, after: int) -> Graph:
    """The space, with Ctrl-C pressed in the `after`-th call of a phase."""
    inner: Callable[..., object] = getattr(space, phase)
    calls = 0

    def call(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt
        return inner(*args)

    setattr(space, phase, call)
    return space
