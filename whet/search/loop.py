"""The one loop: propose → check → cost → keep.

A space proposes moves from the states that were kept; each is checked, the sound ones are priced,
and the strategy says which states to go on from. Nothing here knows what a state is. Whatever the
strategy kept, the answer is the best state that was ever priced, and never worse than the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

from whet.errors import SearchError
from whet.search.budget import Budget, StopReason
from whet.search.journal import Journal, NoJournal
from whet.search.space import START, Candidate, S, Scored, Space
from whet.search.strategy import Keeper, Strategy, Turn


@dataclass(frozen=True, slots=True)
class Outcome(Generic[S]):
    """What a search found, why it stopped, and where its time went.

    `proposed = refuted + scored + repeated` (an interrupt may leave some unaccounted for), where a
    repeated candidate led to a state that had its price already. `phases` has seconds by phase.
    """

    best: Scored[S]
    start: Scored[S]
    stop: StopReason
    rounds: int
    proposed: int
    refuted: int
    scored: int
    repeated: int
    phases: Mapping[str, float]

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in self.phases.items())
        return (
            f"{self.start.cost} -> {self.best.cost}: {self.stop} after {self.rounds} rounds, "
            f"{self.proposed} proposed, {self.refuted} refuted, {self.scored} scored; {phases}"
        )


def search(
    space: Space[S], strategy: Strategy, budget: Budget, journal: Journal | None = None
) -> Outcome[S]:
    """Search `space` until nothing is left, the strategy has enough, or the budget ends.

    Ctrl-C ends the search like an empty budget does, and cancels the budgets it is a part of.

    Raises:
        KeyboardInterrupt: before the start state was priced, when there is no answer yet.
        SearchError: the space broke its contract.
    """
    run = _Run(space, budget, journal or NoJournal())
    keeper = strategy.keep(run.begin(strategy))
    found: list[Scored[S]] | None = None
    stop = budget.stop()
    try:
        while stop is None:
            match run.keep(keeper, found):
                case StopReason() as stop:
                    break
                case Turn() as turn:
                    found = []
                    for batch in run.propose(turn):
                        found += run.cost(batch)
            stop = budget.stop()
    except KeyboardInterrupt:
        budget.cancel()
        stop = StopReason.INTERRUPTED
    return run.end(stop)


@dataclass(frozen=True, slots=True)
class _Draft(Generic[S]):
    """A candidate that is allowed, but has no price: its place in the search and in its round."""

    number: int
    place: int
    candidate: Candidate[S]
    fresh: bool  # false: another candidate of this search led to the same state


class _Run(Generic[S]):
    """The running search: the best so far, all prices, the counts; one method per phase."""

    def __init__(self, space: Space[S], budget: Budget, journal: Journal) -> None:
        self.space, self.budget, self.journal = space, budget, journal
        self.known: dict[S, Scored[S] | None] = {}  # None: allowed, about to be priced
        self.phases = dict.fromkeys(("propose", "check", "cost", "keep"), 0.0)
        self.rounds = self.pulled = 0
        self.proposed = self.refuted = self.scored = self.repeated = 0

    def begin(self, strategy: Strategy) -> Scored[S]:
        state = self.space.start()
        (self.start,) = self._price([Candidate(state, state, START)])
        self.best, self.known[state] = self.start, self.start
        self.journal.begin(strategy, self.start)
        return self.start

    def propose(self, turn: Turn[S]) -> Iterator[list[_Draft[S]]]:
        """Draw candidates while the budget lasts; yield the allowed ones by the batch."""
        self.rounds += 1
        self.journal.round(self.rounds, turn.kept, self.pulled)
        self.pulled = 0
        batch = []
        for place, candidate in self._drawn(turn):
            self.proposed += 1
            fresh = candidate.after not in self.known
            if not fresh or self.check(place, candidate):
                self.known.setdefault(candidate.after, None)
                batch.append(_Draft(self.proposed, place, candidate, fresh))
            if len(batch) == self.budget.batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def check(self, place: int, candidate: Candidate[S]) -> bool:
        with self._phase("check"):
            refutation = self.space.check(candidate)
        if refutation is not None:
            self.refuted += 1
            self.journal.refuted(self.proposed, place, candidate, refutation)
        return refutation is None

    def cost(self, batch: list[_Draft[S]]) -> list[Scored[S]]:
        fresh = [draft.candidate for draft in batch if draft.fresh]
        for scored in self._price(fresh) if fresh else ():
            self.known[scored.state] = scored
        found = []
        for draft in batch:
            priced = self.known[draft.candidate.after]
            assert priced is not None  # it was priced in this batch or in an earlier one
            found.append(priced)
            again = not draft.fresh
            self.journal.scored(draft.number, draft.place, draft.candidate, priced, again=again)
            if priced.cost.beats(self.best.cost):
                self.best = priced  # once it is written down, so that a journal never lacks it
        self.scored += len(fresh)
        self.repeated += len(batch) - len(fresh)
        return found

    def keep(self, keeper: Keeper[S], found: list[Scored[S]] | None) -> Turn[S] | StopReason:
        with self._phase("keep"):
            try:
                # A generator is started by sending it None.
                return next(keeper) if found is None else keeper.send(found)
            except StopIteration as end:
                return StopReason(end.value)

    def end(self, stop: StopReason) -> Outcome[S]:
        self.journal.end(stop, self.best, self.pulled)
        return Outcome(
            self.best,
            self.start,
            stop,
            self.rounds,
            self.proposed,
            self.refuted,
            self.scored,
            self.repeated,
            self.phases,
        )

    def _drawn(self, turn: Turn[S]) -> Iterator[tuple[int, Candidate[S]]]:
        with self._phase("propose"):
            drawn = iter(turn.draw(self._pull(turn)))
        while self.budget.stop() is None:
            with self._phase("propose"):
                item = next(drawn, None)
            if item is None:
                return
            self.budget.spend(candidates=1)
            yield item

    def _pull(self, turn: Turn[S]) -> Iterator[tuple[int, Candidate[S]]]:
        for place, candidate in enumerate(self.space.propose(turn.kept, self.budget)):
            self.pulled = place + 1
            yield place, candidate

    def _price(self, candidates: list[Candidate[S]]) -> list[Scored[S]]:
        with self._phase("cost"):
            priced = self.space.cost(candidates)
        if [scored.state for scored in priced] != [c.after for c in candidates]:
            raise SearchError(
                f"{type(self.space).__name__}.cost did not price what it was given",
                expected=f"{len(candidates)} states, each the `after` of its candidate, in order",
                got=f"{len(priced)} states",
                hint="return one Scored(candidate.after, ...) per candidate",
            )
        return priced

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        before = self.budget.clock()
        try:
            yield
        finally:
            self.phases[name] += self.budget.clock() - before
