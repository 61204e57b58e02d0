"""The search for one cluster's schedule, led by a model, a batch at a time.

    exact hit      trials of this cluster that the store has: nothing of them is measured again
    guess          the best schedule of the nearest shape, re-fitted (`whet.kernel.refit`)
    construction   the drafts
    evolution      mutants and crossings of the best, and schedules from anywhere, of which the
                   model picks; now and then one at random (`whet.search.Led`)
    descent        at last, the best one's numbers, one after the other

A batch is compiled in parallel, then measured in a process of its own with nothing beside it.
Every trial is in the store when the next one begins.
"""

from __future__ import annotations

import itertools
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from whet.errors import SearchError
from whet.kernel.features import features
from whet.kernel.model import CostModel, Prior
from whet.kernel.process import Array
from whet.kernel.refit import refitted
from whet.kernel.schedule import read, show
from whet.kernel.space import Drafted
from whet.machine import Machine
from whet.run.contest import Contest
from whet.run.farm import Farm
from whet.run.measure import Timing
from whet.run.trials import Trials
from whet.search import Budget, Candidate, Cost, Led, Refutation, Scored
from whet.search.strategy import Keeper, Turn

BATCH = 8  # schedules that are compiled, then measured, together
WINDOW = 48  # from which they are picked
SLOW = 10.0  # times the best: timed by one call
FIRST_S = 0.05  # the same where nothing is known
DESCENT = 3  # batches without a gain after which numbers are tried one by one


@dataclass
class ScheduleSpace:
    """Schedules of a cluster as a space of `whet.search`; a state is a kernel's digest."""

    contest: Contest
    place: str
    trials: Trials
    farm: Farm
    seed: int = 0
    known: dict[str, Drafted] = field(default_factory=dict)
    best_s: float = math.inf

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.filed = self.trials.of(self.place)
        self.trials.begin(self.place, self.contest.closed)

    def see(self, d: Drafted) -> str:
        """The state that a schedule is."""
        self.known.setdefault(d.kernel.digest, d)
        return d.kernel.digest

    def start(self) -> str:
        return self.see(self.contest.variations.known[0])

    def constructed(self) -> list[str]:
        """What is known before anything is searched: filed trials, a guess, the drafts."""
        found = list(self.contest.variations.known)
        guess = self.trials.nearest(self.place, self.contest.closed)
        for text in [guess.schedule] if guess is not None else []:
            d = refitted(self.contest.naive, read(text))
            found.insert(0, Drafted("guess", d.schedule, d.kernel))
        ran = sorted((t for t in self.filed.values() if t.seconds < math.inf), key=_seconds)
        for trial in ran[:BATCH]:
            d = self.contest.variations.replayed(read(trial.schedule))
            found.append(Drafted("filed", d.schedule, d.kernel))
        return list(dict.fromkeys(self.see(d) for d in found))

    def propose(self, kept: Sequence[Scored[str]], budget: Budget) -> Iterator[Candidate[str]]:
        here, variations = kept[0].state, self.contest.variations
        while True:
            draw = self.rng.random()
            if draw < 0.6:
                d = variations.mutant(self.known[self.rng.choice(kept).state], self.rng)
            elif draw < 0.75 and len(kept) > 1:
                a, b = (self.known[s.state] for s in self.rng.sample(list(kept), 2))
                d = variations.crossing(a, b, self.rng)
            else:
                d = variations.scattered(self.rng)
            if d is not None:
                state = self.see(d)
                yield Candidate(here, state, state)

    def check(self, c: Candidate[str]) -> Refutation | None:
        return None

    def cost(self, cs: Sequence[Candidate[str]]) -> list[Scored[str]]:
        new = [c.after for c in cs if c.after not in self.filed]
        with tempfile.TemporaryDirectory(prefix="whet-tune-") as folder:
            kernels = self.contest.build([self.known[s] for s in new], Path(folder))
            limit = SLOW * self.best_s if math.isfinite(self.best_s) else FIRST_S
            found = self.contest.measure(
                self.farm, dict(zip(new, kernels, strict=True)), limit_s=limit
            )
        for state, verdict in found.items():
            self.trials.add(self.place, state, show(self.known[state].schedule), verdict)
        scored = []
        for c in cs:
            if c.after in self.filed:
                seconds, reason = self.filed[c.after].seconds, self.filed[c.after].failed
            elif isinstance(verdict := found[c.after], Timing):
                seconds, reason = verdict.best_s, ""
            else:
                seconds, reason = math.inf, verdict.reason
            self.best_s = min(self.best_s, seconds)
            cost = Cost(seconds) if seconds < math.inf else Cost.IMPOSSIBLE
            scored.append(Scored(c.after, cost, reason))
        return scored


def _seconds(trial: object) -> float:
    return float(getattr(trial, "seconds", math.inf))


class Tuning:
    """One cluster's search, which can be left and taken up again.

    Args:
        contest: the cluster.
        place: that its trials are filed under.
        trials, farm: of this machine.
        machine: for the features.
        prior: what was learnt elsewhere, if anything was.
        seed: of the random numbers.

    Attributes:
        spent_s: seconds that batches took, their compilation included.
        count: schedules measured, or taken from the store.
    """

    def __init__(
        self,
        contest: Contest,
        place: str,
        trials: Trials,
        farm: Farm,
        machine: Machine,
        prior: Prior | None = None,
        seed: int = 0,
    ) -> None:
        self.space = ScheduleSpace(contest, place, trials, farm, seed)
        self._machine, self._threads = machine, contest.target.threads
        self._features: dict[str, Array] = {}
        self.model = CostModel(self._read, prior)
        led = Led(self.model, seed, first=0, batch=BATCH, window=WINDOW, kept=6)
        self._keeper: Keeper[str] | None = None
        self._led = led
        self._turn: Turn[str] | None = None
        self.scored: dict[str, Scored[str]] = {}
        self.spent_s, self.batches, self.idle = 0.0, 0, 0
        self._descending: Iterator[Drafted] | None = None

    @property
    def count(self) -> int:
        return len(self.scored)

    @property
    def best(self) -> Scored[str]:
        """The fastest so far.

        Raises:
            SearchError: nothing was measured.
        """
        if not self.scored:
            raise SearchError("nothing was measured yet", hint="call step() first")
        return min(self.scored.values(), key=lambda s: s.seconds)

    @property
    def schedule(self) -> Drafted:
        """The fastest schedule so far."""
        return self.space.known[self.best.state]

    @property
    def first_s(self) -> float:
        """Seconds of the fastest that was known without a search."""
        return self._first_s

    @property
    def step_s(self) -> float:
        """Seconds that a batch takes, as far as that is known."""
        return self.spent_s / self.batches if self.batches else 2.0

    @property
    def gain(self) -> float:
        """Share of its time that the next batch may be expected to take off.

        While batches bring something, what the last ones brought; it falls with each that does not.
        """
        if not self.batches:
            return 0.3
        progress = 1.0 - self.best.seconds / self._first_s if self._first_s < math.inf else 0.0
        recent = max(progress / self.batches, 0.02)
        return float(recent * 0.5**self.idle)

    def step(self) -> None:
        """One batch more."""
        began, before = time.perf_counter(), self.best.seconds if self.scored else math.inf
        if self._keeper is None:
            self._begin()
        elif self.idle >= DESCENT and (numbers := self._descent()):
            self._price(numbers)
        else:
            self._follow()
        self.idle = 0 if self.best.seconds < 0.99 * before else self.idle + 1
        self.batches += 1
        self.spent_s += time.perf_counter() - began

    def _begin(self) -> None:
        states = self.space.constructed()
        found = self._price(states)
        self._first_s = min(s.seconds for s in found)
        self._keeper = self._led.keep(self.best)
        self._turn = next(self._keeper)
        self.model.learn([s for s in found if s is not self.best])

    def _follow(self) -> None:
        assert self._keeper is not None
        assert self._turn is not None
        budget = Budget()
        kept = sorted(self.scored.values(), key=lambda s: s.seconds)[: self._led.kept]
        proposals = (
            (k, c)
            for k, c in enumerate(itertools.islice(self.space.propose(kept, budget), 4 * WINDOW))
            if c.after not in self.scored
        )
        chosen = [c.after for _, c in self._turn.draw(proposals)]
        if chosen:
            self._turn = self._keeper.send(self._price(chosen))

    def _descent(self) -> list[str]:
        """The next of the best one's numbers, changed one at a time."""
        if self._descending is None:
            self._descending = self.space.contest.variations.neighbours(self.schedule)
        states = (self.space.see(d) for d in self._descending)
        found = list(itertools.islice((s for s in states if s not in self.scored), BATCH))
        if not found:
            self._descending = None
        return found

    def _price(self, states: Sequence[str]) -> list[Scored[str]]:
        candidates = [Candidate(s, s, s) for s in dict.fromkeys(states)]
        found = self.space.cost(candidates)
        self.scored |= {s.state: s for s in found}
        return found

    def _read(self, states: Sequence[str]) -> Array:
        for s in states:
            if s not in self._features:
                kernel = self.space.known[s].kernel
                self._features[s] = features(kernel, self._machine, self._threads)
        return np.stack([self._features[s] for s in states])
