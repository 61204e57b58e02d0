"""Which cluster is tuned next, and when to stop: where the whole model gains most for the time.

    rate of a cluster = calls in a run x seconds of a call x share its next batch may take off
                        / seconds that a batch takes

The cluster of the highest rate has the next batch. Clusters of the same operators in other shapes
are a group: what one of them has gained, the others may expect, for the guess that they begin with
is its schedule. A batch that costs more time than it can save in `runs` runs of the model is not
begun.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whet.backend.cluster import LIBRARY
from whet.errors import WhetError
from whet.kernel.prior import pretrained
from whet.run.contest import Contest
from whet.run.farm import Farm
from whet.run.record import Tuned
from whet.run.trials import skeleton
from whet.run.tuned import Tuner
from whet.run.tuning import Tuning
from whet.search import Budget, StopReason

RUNS = 1_000_000  # runs of the model that tuning it may count on
LEAST = 0.002  # of the model's time: what a batch may gain at least, or it is not worth a look


@dataclass
class Entry:
    """A cluster on the timetable.

    Attributes:
        name: for people.
        calls: of it, in a run of the model.
        group: the same for clusters of the same operators.
        tuning: its search.
        library_s: seconds of what runs it now, if that is no schedule.
    """

    name: str
    calls: int
    group: str
    tuning: Tuning
    library_s: float = math.inf

    @property
    def seconds(self) -> float:
        """Of all its calls in a run, by the best that is known."""
        known = self.tuning.best.seconds if self.tuning.count else self.library_s
        return self.calls * min(known, self.library_s)

    def expected(self, gains: Sequence[float]) -> float:
        """Seconds of a run that the next batch may save.

        Args:
            gains: shares that others of its group have gained so far.
        """
        share = self.tuning.gain
        if self.tuning.batches <= 1 and gains:
            share = max(share, *gains)
        found = self.seconds * share
        if self.tuning.count and self.tuning.best.seconds > self.library_s:
            # It must first come up to what runs now.
            found *= self.library_s / self.tuning.best.seconds
        return found


@dataclass
class Timetable:
    """See the module's docstring.

    Args:
        entries: what may be tuned.
        budget: of the whole.
        runs: runs of the model that what is saved is counted over.
        progress: called with a line after every batch.

    Attributes:
        order: names, in the order of the batches.
    """

    entries: Sequence[Entry]
    budget: Budget
    runs: float = RUNS
    progress: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        self.order: list[str] = []

    def run(self) -> StopReason:
        """Tunes until the time is over or not worth it; Ctrl-C ends it with the best so far."""
        try:
            while (stop := self.budget.stop()) is None:
                entry = self.next()
                if entry is None:
                    return StopReason.CONVERGED
                self.order.append(entry.name)
                entry.tuning.step()
                best = entry.tuning.best.seconds
                self.progress(f"{entry.name}: {best * 1e6:.1f} us after {entry.tuning.count}")
        except KeyboardInterrupt:
            return StopReason.INTERRUPTED
        return stop

    def next(self) -> Entry | None:
        """The cluster to work on; None where no batch saves more than it costs."""
        whole = sum(e.seconds for e in self.entries if e.seconds < math.inf)
        best: tuple[float, Entry | None] = (0.0, None)
        for e in self.entries:
            saved = e.expected(self._gains(e))
            worth = saved * self.runs > e.tuning.step_s and saved > LEAST * whole
            if (worth or not e.tuning.batches) and (rate := saved / e.tuning.step_s) > best[0]:
                best = (rate, e)
        return best[1]

    def _gains(self, e: Entry) -> list[float]:
        others = [o.tuning for o in self.entries if o is not e and o.group == e.group]
        return [1 - t.best.seconds / t.first_s for t in others if t.count and t.first_s > 0]


def improved(
    tuner: Tuner,
    budget: Budget,
    *,
    runs: float = RUNS,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[list[Tuned], StopReason]:
    """Tunes the groups of the programs that a tuner has made pieces for, and decides anew those
    for which something faster was found.

    Args:
        tuner: has decided them once.
        budget: of it all.
        runs: see `Timetable`.
        progress: called with a line now and then.

    Returns:
        A row for each group that was tuned, the one that takes most first; and why it ended.
    """
    found: list[Tuned] = []
    with Farm(tuner.threads) as farm:
        entries = {p: e for p in tuner.asked if (e := _entry(tuner, p, farm)) is not None}
        stop = Timetable(list(entries.values()), budget, runs, progress).run()
    for place, e in entries.items():
        if not e.tuning.count:
            continue
        before, scored = tuner.decided[place], e.tuning.scored.values()
        after = before
        if e.tuning.best.seconds < before.seconds and stop is not StopReason.INTERRUPTED:
            progress(f"{e.name}: decided again")
            after = tuner.reconsider(place)
        found.append(Tuned(
            e.name, e.calls, before.seconds, after.seconds, e.tuning.count,
            sum(math.isinf(s.seconds) for s in scored),
            "library" if after.schedule == LIBRARY else "schedule",
        ))  # fmt: skip
    return sorted(found, key=lambda t: -t.calls * t.before_s), stop


def _entry(tuner: Tuner, place: str, farm: Farm) -> Entry | None:
    """A group on the timetable; None where it has no kernels, or was not decided."""
    decided = tuner.decided.get(place)
    if decided is None or not math.isfinite(decided.seconds):
        return None
    closed, operands, results = tuner.groups[place]
    contest = Contest(closed, operands, results, tuner.target)
    try:
        assert contest.variations.known
    except WhetError:
        return None
    name = "+".join(n.op for n in closed.graph.nodes if not n.is_leaf)
    tuning = Tuning(contest, place, tuner.trials, farm, tuner.machine, pretrained())
    shape = "x".join(map(str, closed.graph.results[0].shape))
    return Entry(
        f"{name} {shape}", tuner.asked[place], skeleton(closed.graph), tuning, decided.seconds
    )
