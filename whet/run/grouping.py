"""Which groups of operators become one kernel each, with their kernels tuned.

graph → groups that records suggest, decided together            "generated"
      → operators computed another way, where that is faster     "recast", by proven rules
        (groups that had a first draft only are decided again in what is left of the time for that)
      → the same, their schedules searched for                   "tuned", if asked for
      → groups that a search finds which listens to kernels      "fused", where time is left
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from whet.fuse.partition import Partition
from whet.ir.graph import Graph
from whet.rewrite.prove import Prover
from whet.run.fusing import decide, fused
from whet.run.recast import faster
from whet.run.record import Report
from whet.run.rewriting import Rewritten
from whet.run.timetable import improved
from whet.run.tuned import Tuner
from whet.search import Budget, Journal, StopReason

RESERVE_S = 28.0  # seconds that tuning leaves for what comes after it
LITTLE_S = 16.0  # seconds of that where every group is tuned: a native program, and measuring
USUAL_S = 60.0  # a walk's budget that these are for; of a shorter one they take the same share
COMPILE_S = 1.5  # seconds of that which are no shorter in a short walk
SHORTEST_S = 12.0  # budgets below have no groups tuned: there is no time to compile any
LEAST_S = 2.0  # of a search for a partition
OWN_S = 33.0  # seconds beyond a walk's budget: operators computed another way, groups in haste
TRIED = 0.65  # share of these in which it is decided what is computed so
OWN_LEAST_S = 12.0  # of them; a shorter walk has none: what it asks for is to be short


def reserves(budget_s: float) -> tuple[float, float]:
    """`RESERVE_S` and `LITTLE_S` for a walk's budget; compiling a program takes what it takes."""
    share = min(1.0, budget_s / USUAL_S)
    return share * RESERVE_S, share * LITTLE_S + (1 - share) * COMPILE_S


@dataclass
class Grouping:
    """See the module's docstring.

    Attributes:
        tuner: decides what runs a group.
        report: is told what was tuned and why groups changed.
        left: seconds of the walk's budget that are left.
        reserve_s: of these are not for the search of a partition.
        tune_s: seconds to spend on searching schedules, beyond that budget.
        progress: called with a line now and then.
        beyond_s: seconds spent so, and on all that `OWN_S` is for.
    """

    tuner: Tuner
    report: Report
    left: Callable[[], float]
    reserve_s: float
    tune_s: float
    progress: Callable[[str], None]
    beyond_s: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether every group was decided by measured time."""
        return not self.tuner.undecided

    def found(
        self,
        start: Rewritten,
        others: Sequence[tuple[str, Rewritten]] = (),
        prover: Prover | None = None,
    ) -> Iterator[tuple[str, Rewritten, Partition]]:
        """Graphs with partitions that are worth a program, by name; a search's journal is the last
        of the graph's.

        Args:
            start: what to group.
            others: graphs with fewer rewrites, by name, of which the first is grouped too while
                there is time: a merge that pays between library calls may keep kernels from
                becoming one.
            prover: of the rules that compute operators another way; without one none is.
        """
        groups, own = self.first(start.graph), self.reserve_s / RESERVE_S * OWN_S
        other = self._recast(start, groups, prover, own) if prover is not None else None
        if other is not None:
            yield "generated", start, groups
            start, groups = other
        self._settled(start.graph, groups, own)
        yield "generated" if other is None else "recast", start, groups
        for name, less in others[:1]:
            if self.tuner.budget.stop() is None:  # else its groups would be left to the library
                yield f"generated-{name}", less, self.first(less.graph)
        if self.tune_s > 0 and self._improved():
            yield "tuned", start, groups
        seconds = self.left() + self.beyond_s - self.reserve_s - LEAST_S
        if seconds <= 0:
            return
        self.progress("searching a partition")
        journal, budget = Journal(), Budget(seconds=seconds)
        found = fused(start.graph, self.tuner, budget, journal=journal, start=groups)
        told = (f"{reason} -> {move}" for reason, move in found.told)
        self.report.fusion = list(dict.fromkeys(told))
        if found.partition.groups != groups.groups:
            lines = "\n".join(journal.lines) + "\n"
            yield "fused", replace(start, journals=(*start.journals, lines)), found.partition

    def first(self, graph: Graph) -> Partition:
        """The groups that records suggest, decided."""
        found = fused(graph, self.tuner).partition
        decide(graph, found, self.tuner)
        return found

    def _recast(
        self, start: Rewritten, groups: Partition, prover: Prover, seconds: float
    ) -> tuple[Rewritten, Partition] | None:
        """`recast.faster`, in seconds of its own: what else the budget is for is not cut short."""
        if seconds < OWN_LEAST_S:
            return None
        self.progress("computing operators another way")
        with self._beyond(seconds) as whole:
            # Groups of the program may lie otherwise than those that were tried: they take time
            # too.
            self.tuner.budget = self.tuner.last = whole.part(seconds=TRIED * seconds)
            found = faster(start, groups, self.tuner, prover)
            self.tuner.budget = self.tuner.last = whole
            if found is not None:
                decide(found[0].graph, found[1], self.tuner)
        return found

    def _settled(self, graph: Graph, groups: Partition, seconds: float) -> None:
        """Decide what had too little time, in what is left of the seconds beyond the budget."""
        if seconds < OWN_LEAST_S or seconds <= self.beyond_s:
            return
        with self._beyond(seconds - self.beyond_s) as whole:
            decide(graph, groups, self.tuner)
            if self.tuner.hasty:
                self.progress("deciding groups again that had too little time")
                self.tuner.settle(whole)

    @contextlib.contextmanager
    def _beyond(self, seconds: float) -> Iterator[Budget]:
        """The tuner has seconds that are not the walk's."""
        began, tuner = time.monotonic(), self.tuner
        left, last = tuner.budget.seconds_left, (tuner.last or tuner.budget).seconds_left
        tuner.budget = tuner.last = whole = Budget(seconds=seconds)
        try:
            yield whole
        finally:
            tuner.budget, tuner.last = Budget(seconds=left), Budget(seconds=last)
            self.beyond_s += time.monotonic() - began

    def _improved(self) -> bool:
        """Searches schedules; whether that helped."""
        start = time.monotonic()
        budget = Budget(seconds=self.tune_s)
        self.report.tuned, stop = improved(self.tuner, budget, progress=self.progress)
        self.beyond_s += time.monotonic() - start
        if stop is StopReason.INTERRUPTED:
            self.report.stop = str(stop)
        return any(t.after_s < t.before_s for t in self.report.tuned)
