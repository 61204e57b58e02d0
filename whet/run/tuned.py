"""Which kernel runs a group of operators: generated ones and the library's, as measured.

    closed graph, layouts → drafts (whet.run.workshop) → checked, timed → the fastest

A group is decided once for all its occurrences, and for all later programs: what is filed under a
closed graph, the layouts of its operands and the machine is the schedule (or that the library was
faster), not code. A draft that does not compile, crashes or computes something else than the
library is never taken, and counted. Groups that a program will need are decided together, those
that take most first (`prepare`): compilers have all processors, then the clock has them. Drafts are
told apart by the best time each had: what else the machine does can only add to it. Whether the
program as a whole is faster is measured for itself.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.backend import generated
from whet.backend.cluster import ANCHORS, LIBRARY
from whet.backend.lowered import example, lower
from whet.backend.piece import Packed, Piece, Value
from whet.errors import WhetError
from whet.fuse.partition import Cluster
from whet.fuse.space import Rates
from whet.ir.cost import graph_floor
from whet.ir.graph import Node
from whet.kernel.draft import Draft, turns
from whet.kernel.loops import Kernel, Loop, walk
from whet.kernel.refit import refitted
from whet.kernel.schedule import read, show
from whet.machine import Machine
from whet.machine.target import Target
from whet.run.choice import Chooser
from whet.run.measure import interleaved
from whet.run.rehearsal import Far, Rehearsal, constants, empty, in_turn
from whet.run.spread import spread
from whet.run.trials import Trials
from whet.run.workshop import Asked, Drawn, Workshop
from whet.search import Budget
from whet.store import Store

KIND = "schedule-9"
TOGETHER = 6  # groups whose drafts are compiled before they are timed
FIRST = "no time to try several drafts: the first, or the library"
QUICK_S = 0.3  # seconds that a group's first draft takes to compile and try, until it is known
PASS_S = 0.015  # seconds of timing for each draft of a cluster and pass
HOPELESS = 1.3  # times the fastest, from which on a draft is slow
ENOUGH, PASSES = 3, 5  # passes that are made, where nothing disturbs and at most
TURN_S = 3e-3  # a turn of the scheduler, or a little less
CALL_S = 4e-6  # what Python takes for a product's library call, and a native program does not
STEP_S = 1e-6  # for any other one
POINTER_S = 1e-6  # what Python takes to call a kernel


@dataclass(frozen=True, slots=True)
class Decision:
    """What runs a group.

    Attributes:
        schedule: the text of its kernel's schedule, or `LIBRARY`.
        seconds: of one call; infinite where that is not known.
        resources: what the kernel takes; see `resources`.
    """

    schedule: str
    seconds: float
    resources: Mapping[str, float]


@dataclass
class Tuner:
    """Makes the pieces of a partition; see the module's docstring.

    Attributes:
        store: where decisions are kept.
        machine: that they hold for.
        choose: of library kernels, which compete.
        threads: that kernels may use.
        budget: when it has run out, what is not on file has its first draft, or the library.
        far: do the program's constants come from main memory at every call? Then drafts are timed
            so.
        last: when that has run out too, it is left to the library; `budget` unless given.
        measured, hits: clusters decided here, and taken from the store.
        undecided: how often a group was left to the library because the budget had run out.
        hasty: places that had a first draft for lack of time, and how often a program has each.
        groups: what was asked for, by place.
        asked: how often a program has had a piece made, by place.
        failures: reason to count, of drafts that did not run.
        seconds: by cluster digest, what each draft took.
        written: kernels in C, by place and schedule.
    """

    store: Store
    machine: Machine
    choose: Chooser
    threads: int
    budget: Budget = field(default_factory=Budget)
    last: Budget | None = None
    far: bool = False
    measured: int = 0
    hits: int = 0
    undecided: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    decided: dict[str, Decision] = field(default_factory=dict)
    hasty: Counter[str] = field(default_factory=Counter)
    groups: dict[str, Asked] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    written: dict[tuple[str, str], Piece] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.target = Target.of(self.machine, self.threads)
        self.trials = Trials(self.store, f"{self.machine.fingerprint()}|{self.threads}")
        self.memory = Far(2 * self.target.l3)
        self.workshop = Workshop(self.target, self._entrants, self.failures)

    def __call__(
        self, closed: Cluster, operands: Sequence[Value | Packed], results: Sequence[Value]
    ) -> Piece | None:
        """The group's generated kernel, or None where the library is faster or nothing runs."""
        place = self._place(closed, operands, results)
        self.asked[place] += 1
        found = self.decision(closed, operands, results)
        if found.schedule == LIBRARY:
            return None
        written = self.written.get((place, found.schedule))
        if written is not None:
            return generated.likewise(written, closed, operands, results)
        try:
            made = generated.piece(closed, operands, results, read(found.schedule), self.target)
        except WhetError as fault:
            self.failures[f"{fault.summary}: {fault.got}"] += 1
            return None
        self.written[place, found.schedule] = made
        return made

    def decision(
        self, closed: Cluster, operands: Sequence[Value | Packed], results: Sequence[Value]
    ) -> Decision:
        """What was decided for a group: measured now, unless it is known."""
        place = self._place(closed, operands, results)
        self.groups.setdefault(place, (closed, operands, results))
        if place not in self.decided:
            late = self.budget.stop() is not None
            if self._known(place):
                pass
            elif late and (self.last or self.budget).stop() is not None:
                self.undecided += 1
                self.failures["no time to tune: left to the library"] += 1
                return Decision(LIBRARY, math.inf, {})
            else:
                self._measure({place: self.groups[place]}, 1 if late else None)
        return self.decided[place]

    def prepare(self, asked: Sequence[Asked]) -> None:
        """Decide the groups of a program, those that take most first.

        Where the time (`last`) is too short to try several drafts of each, the lightest have their
        first draft, if it is not slower than the library; where it is too short for that as well,
        groups are tuned as far as `budget` goes.

        Args:
            asked: in any order; one that runs several times stands there as often.
        """
        often = Counter(self._place(*a) for a in asked)
        groups = {p: a for a in asked if (p := self._place(*a)) not in self.decided}
        left = [p for p in groups if not self._known(p)]
        left.sort(key=lambda p: -often[p] * _work(groups[p][0]))
        within = self.last or self.budget
        pace = {None: 2 * QUICK_S, 1: QUICK_S}  # seconds of a group, by how many drafts it has
        while left:
            now, later = left[:TOGETHER], left[TOGETHER:]
            rest = 1.2 * pace[1] * len(later)
            most = None if within.seconds_left > pace[None] * len(now) + rest else 1
            late = self.budget.stop() is not None
            if late and within.seconds_left < 0.8 * pace[1] * len(left):
                return
            start = within.clock()
            self._measure({p: groups[p] for p in now}, most)
            pace[most] = (within.clock() - start) / len(now)
            if most is not None:
                self.hasty.update({p: often[p] for p in now})
            left = later

    def settle(self, budget: Budget) -> None:
        """Decide those groups again that had a first draft only, what takes most first, while a
        budget lasts."""
        takes = {p: n * self.decided[p].seconds for p, n in self.hasty.items()}
        left = sorted(takes, key=lambda p: -takes[p])
        while left and budget.stop() is None:
            now, left = left[:TOGETHER], left[TOGETHER:]
            self._measure({p: self.groups[p] for p in now})
            self.failures[FIRST] -= len(now)
            for p in now:
                del self.hasty[p]
        self.failures += Counter()  # what has become none is not told

    def _known(self, place: str) -> bool:
        """Whether a group is on file, from where it is taken."""
        found = self._recall(place)
        if found is not None:
            self.decided[place] = found
        return found is not None

    def _place(
        self, closed: Cluster, operands: Sequence[Value | Packed], results: Sequence[Value]
    ) -> str:
        lie = [v.strides if isinstance(v, Value) else v.how for v in (*operands, *results)]
        rival = "" if self.choose.libraries else "|plain"
        rival += "|far" if self._far(operands) else ""
        text = f"{closed.digest}|{lie}|{self.machine.fingerprint()}|{self.threads}{rival}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _far(self, operands: Sequence[Value | Packed]) -> bool:
        return self.far and constants(operands) > 0

    def _recall(self, place: str) -> Decision | None:
        row = self.store.get(KIND, place)
        if not isinstance(row, dict) or not isinstance(row.get("schedule"), str):
            return None
        self.hits += 1
        return Decision(row["schedule"], float(row["best"]), dict(row["resources"]))

    def reconsider(self, place: str) -> Decision:
        """Decide a group again, now that there are trials of it."""
        self._measure({place: self.groups[place]})
        return self.decided[place]

    def _entrants(self, place: str, closed: Cluster, naively: Kernel) -> dict[str, Draft]:
        """What tuning has found for the group, or for the nearest shape of its operators."""
        found: dict[str, Draft] = {}
        for name, trial in (
            ("tuned", self.trials.best(place)),
            ("guess", self.trials.nearest(place, closed)),
        ):
            if trial is not None:
                found[name] = refitted(naively, read(trial.schedule))
        return found

    # -- measuring ---------------------------------------------------------------------------------
    def _measure(self, groups: Mapping[str, Asked], most: int | None = None) -> None:
        """Decides groups: their drafts are compiled together, then timed group by group."""
        made, code = self.workshop.made(groups, most)
        for place, asked in groups.items():
            self.groups.setdefault(place, asked)
            self.decided[place] = self._fastest(place, asked, made[place], code, most)

    def _fastest(
        self,
        place: str,
        asked: Asked,
        drawn: Mapping[str, Drawn],
        code: ctypes.CDLL | None,
        most: int | None,
    ) -> Decision:
        self.measured += 1
        closed, operands, _ = asked
        seconds: dict[str, float] = {}
        calm = True
        try:
            passes = ENOUGH if most is None else 1
            seconds, calm = self._timed(closed, operands, drawn if code else {}, code, passes)
        except WhetError as fault:
            self.failures[f"{fault.summary}: {fault.got}"] += 1
        self.seconds[closed.digest] = seconds
        best = min(seconds, key=seconds.__getitem__, default=LIBRARY)
        generates = best in drawn
        found = Decision(
            show(drawn[best].drafted.schedule) if generates else LIBRARY,
            seconds.get(best, math.inf),
            resources(drawn[best].drafted.kernel) if generates else {},
        )
        if generates:
            self.written[place, found.schedule] = drawn[best].piece
        if most is not None:
            self.failures[FIRST] += 1
        elif calm:  # else it is good enough for this program, not for all later ones
            self.store.put(KIND, place, {
                "schedule": found.schedule, "best": found.seconds,
                "resources": dict(found.resources), "draft": best, "seconds": seconds,
                "cluster": "+".join(n.op for n in closed.graph.nodes if not n.is_leaf),
            })  # fmt: skip
        return found

    def _timed(
        self,
        closed: Cluster,
        operands: Sequence[Value | Packed],
        drawn: Mapping[str, Drawn],
        code: ctypes.CDLL | None,
        passes: int,
    ) -> tuple[dict[str, float], bool]:
        """Seconds of every draft that is right, and of the library where it competes; and whether
        these are to be trusted."""
        values = _example(closed, operands)
        competes = any(n.op in ANCHORS for n in closed.graph.nodes)
        far = self.memory if self._far(operands) else None
        call, python = self._library(closed, values, far)
        want = call()
        calls: dict[str, Callable[[], object]] = {}
        if competes or not drawn:
            calls[LIBRARY] = call
        for name, d in drawn.items():
            assert code is not None
            trial = Rehearsal(code, closed, d.piece, values)
            trial()
            if trial.wrong(want) is None:
                calls[name] = trial.over(far) if far else trial
            else:
                self.failures[f"wrong: {name}"] += 1
        best, calm = best_times(calls, passes)
        taken = {LIBRARY: python}
        return {n: max(0.2 * t, t - taken.get(n, POINTER_S)) for n, t in best.items()}, calm

    def _library(
        self, closed: Cluster, values: Mapping[Node, Tensor], far: Far | None
    ) -> tuple[Callable[[], Sequence[Tensor]], float]:
        """The cluster as library calls, on operands as they lie; and what Python takes of them."""
        lowered = lower(closed.graph, self.choose)
        named = {n.name: values[o] for n, o in zip(_leaves(closed), closed.leaves, strict=True)}
        inputs = [values[o] for o in closed.leaves[: len(closed.graph.inputs)]]
        function = lowered.function()
        derived = in_turn(lowered.derive, named, far)
        python = sum(CALL_S if s.node.op in ANCHORS else STEP_S for s in lowered.body)
        return lambda: function(*inputs, *next(derived)), python


def best_times(
    calls: Mapping[str, Callable[[], object]], passes: int = ENOUGH
) -> tuple[dict[str, float], bool]:
    """The best time each call had, in seconds, and whether nothing seems to have disturbed; those
    near the front are looked at longer.

    Threads that wait for one which does not get to run, because something else has its processor,
    wait for whole turns of the scheduler. A call that takes as long as a few of these where others
    take a small part of one has probably met that, and is tried again.
    """
    best = dict.fromkeys(calls, math.inf)
    front, doubtful = calls, set[str]()
    for k in range(PASSES):
        # All of them share one pool of threads: there is none to wait for between them, but two
        # of it may have to share a processor.
        timings = interleaved(
            front, budget_s=PASS_S * len(front), min_rounds=3, warmup=1,
            settle=spread, collect=False,
        )  # fmt: skip
        best |= {n: min(best[n], t.best_s) for n, t in timings.items()}
        least = min(best.values(), default=0.0)
        doubtful = {n for n, t in best.items() if max(TURN_S, 10 * least) < t < 12 * TURN_S}
        if k + 1 >= passes and not doubtful:
            break
        front = {n: calls[n] for n, t in best.items() if n in doubtful or t <= HOPELESS * least}
    return best, not doubtful


def resources(k: Kernel) -> dict[str, float]:
    """What a kernel takes: bytes of scratch, and iterations for threads to share."""
    shared = [turns(s) for s in walk(k.body) if isinstance(s, Loop) and s.kind == "parallel"]
    return {
        "scratch": float(sum(b.bytes for b in k.scratch if b.role != "register")),
        "parallel": float(max(shared, default=1)),
    }


def _example(closed: Cluster, operands: Sequence[Value | Packed]) -> dict[Node, Tensor]:
    """Tensors of the leaves' types, as they lie."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for n, v in zip(closed.leaves, operands, strict=True):
        value = example(n, generator)
        if isinstance(v, Value):
            value = empty(v).copy_(value)
        found[n] = value
    return found


def _work(closed: Cluster) -> float:
    """Seconds that a group takes at least, for telling the heavy from the light."""
    floor, rates = graph_floor(closed.graph), Rates()
    return max(float(floor.flops) / rates.flops, float(floor.bytes) / rates.bytes)  # type: ignore[arg-type]


def _leaves(closed: Cluster) -> tuple[Node, ...]:
    return (*closed.graph.inputs, *closed.graph.parameters)
