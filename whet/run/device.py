"""What runs each group of a graph on a device: a generated kernel, or library calls.

    group → candidates by predicted time → compiled, held to the library's results, raced → Decision
    heavy ones → a search led by the cost model, while there is time → Decision

Without a device decisions are predictions. With one they are measured, as recordings in turns, and
kept in the store; groups that no time is left for run through the library.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from whet.backend import aten
from whet.backend.cluster import LIBRARY
from whet.backend.triton_text import Module, module
from whet.errors import WhetError
from whet.fuse.partition import Cluster
from whet.ir.cost import node_cost
from whet.kernel.block import launch_of
from whet.kernel.legal import Illegal
from whet.kernel.lower import lower
from whet.kernel.model import Ranker
from whet.kernel.price import Candidate, candidates
from whet.kernel.schedule import apply, read, show
from whet.machine.gpu import Gpu
from whet.run.cuda import ROUNDS, Cuda, quartile
from whet.run.cutting import BATCH, CutSpace, cutting, keep, learned
from whet.run.cutting import described as features_of
from whet.run.cutting import digest as cut_digest
from whet.run.farm import Failed, Farm
from whet.run.launch import Group, Launch, launches
from whet.run.recipe import held
from whet.search import Budget
from whet.store import Store

KIND = "tiles-4"
TRIED = 4  # candidates that are compiled and timed
SEARCH_S = 10.0  # seconds that the search for a group's cut may take


@dataclass(frozen=True, slots=True)
class Decision:
    """What runs a group.

    Attributes:
        schedule: its kernel's, as text, or `LIBRARY`.
        seconds: of one run.
        source: "measured" or "predicted".
        library: seconds of the library's calls.
        kernel: seconds of the quickest generated kernel, whether it is taken or not.
        searched: whether more than the first few cuts were tried.
    """

    schedule: str
    seconds: float
    source: str
    library: float = math.inf
    kernel: float = math.inf
    searched: bool = False


@dataclass
class Tuned:
    """Decides what runs each group of a graph.

    Attributes:
        gpu: what for.
        store: where measured decisions are kept.
        cuda: where to measure; None predicts only.
        precision: of float32 products: "ieee" or "tf32".
        until: a moment of `time.monotonic` after which nothing more is measured.
        failed: by group and cut, why a trial failed; none is tried twice.
    """

    gpu: Gpu
    store: Store
    cuda: Cuda | None = None
    precision: str = "ieee"
    until: float = math.inf
    failures: Counter[str] = field(default_factory=Counter)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    decided: dict[str, Decision] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def __call__(self, closed: Cluster) -> Module | None:
        found = self.decision(closed)
        return None if found.schedule == LIBRARY else self.made(closed, found.schedule)

    def made(self, closed: Cluster, schedule: str) -> Module:
        """A group's kernel by a schedule."""
        return made(closed, schedule)

    def decision(self, closed: Cluster) -> Decision:
        """What was decided for a group: now, unless it is known."""
        if closed.digest not in self.decided:
            place = self._place(closed)
            row = self.store.get(KIND, place) if self.cuda is not None else None
            if isinstance(row, dict) and isinstance(row.get("schedule"), str):
                known = (row[name] for name in ("library", "kernel", "searched"))
                self.decided[closed.digest] = Decision(
                    row["schedule"], row["seconds"], "measured", *known
                )  # fmt: skip
            else:
                self._decided(closed, self._decide(closed))
            self.names[closed.digest] = "+".join(
                n.op for n in closed.graph.nodes if not n.is_leaf and n.args
            )
        return self.decided[closed.digest]

    def _place(self, closed: Cluster) -> str:
        return f"{closed.digest}/{self.gpu.fingerprint()}/{self.precision}/{torch.__version__}"

    def _decided(self, closed: Cluster, made: Decision) -> None:
        """Takes a decision, and files it where it was measured."""
        self.decided[closed.digest] = made
        if made.source == "measured":
            self.store.put(KIND, self._place(closed), {
                "schedule": made.schedule, "seconds": made.seconds, "library": made.library,
                "kernel": min(made.kernel, 1e9), "searched": made.searched,
            })  # fmt: skip

    @cached_property
    def prior(self) -> Ranker | None:
        """What trials of other groups on such a device have taught, if there were any."""
        return learned(self.store, self.gpu)

    def prepare(self, clusters: Sequence[Cluster]) -> None:
        """Decides groups, those first in which libraries should spend the most time."""
        times: dict[str, float] = {}
        for c in clusters:
            times[c.digest] = times.get(c.digest, 0.0) + library_seconds(c, self.gpu)
        for c in sorted(clusters, key=lambda c: -times[c.digest]):
            self.decision(c)

    def _decide(self, closed: Cluster) -> Decision:
        library = library_seconds(closed, self.gpu)
        if self.cuda is not None and time.monotonic() > self.until:
            return Decision(LIBRARY, library, "predicted", library)
        found = self._candidates(closed, 1 if self.cuda is None else TRIED)
        if self.cuda is not None and found:
            return self._measured(self.cuda, closed, found)
        if found and found[0].seconds < library:
            return Decision(show(found[0].draft.schedule), found[0].seconds, "predicted", library)
        return Decision(LIBRARY, library, "predicted", library)

    def _candidates(self, closed: Cluster, most: int) -> list[Candidate]:
        """The most promising schedules that can be said in Triton."""
        found: list[Candidate] = []
        try:
            ranked, refused = candidates(
                lower(closed.graph), self.gpu, self.precision, measured=self.cuda is not None
            )  # fmt: skip
        except WhetError as fault:
            self.failures[f"{fault.summary}: {fault.got}"] += 1
            return found
        self.failures.update(f"refused: {r.kind}" for r in refused)
        if self.prior is not None and len(ranked) > 1:
            scores = self.prior.score(np.stack([features_of(c, self.gpu) for c in ranked]))
            ranked = [ranked[k] for k in np.argsort(scores, kind="stable")]
        for c in ranked:
            try:
                module("f", c.draft.kernel, c.launch)
                found.append(c)
            except WhetError as fault:
                self.failures[f"{fault.summary}: {fault.got}"] += 1
            if len(found) == most:
                break
        return found

    def search(self, clusters: Sequence[Cluster]) -> None:
        """Goes on with the groups that take most, while there is time: cuts near the best."""
        if self.cuda is None or not self.cuda.tuning:
            return
        often = Counter(c.digest for c in clusters)
        groups = {c.digest: c for c in clusters}
        for digest in sorted(groups, key=lambda d: -often[d] * self.decided[d].seconds):
            if time.monotonic() > self.until:
                return
            if self.decided[digest].source == "measured" and not self.decided[digest].searched:
                self._further(self.cuda, groups[digest])

    def _further(self, cuda: Cuda, closed: Cluster) -> None:
        """A search around what was tried, led by the model; its best is the decision."""
        found = self._candidates(closed, TRIED)
        before = self.decided[closed.digest]
        if not found or math.isinf(before.library):
            return
        rivals = _Rivals(self, cuda, closed)
        if math.isinf(rivals.library):
            return
        space = CutSpace(lower(closed.graph), self.gpu, rivals.price, found)
        left = max(self.until - time.monotonic(), 0.0)
        share = SEARCH_S if math.isinf(left) else min(SEARCH_S, cuda.tuning * left)
        best = cutting(space, self.prior, Budget(seconds=share, batch=BATCH))
        text, seconds = show(best.draft.schedule), rivals.seconds.get(cut_digest(best), math.inf)
        taken = text if seconds < before.library else LIBRARY
        now = replace(
            before, schedule=taken, seconds=min(seconds, before.library), kernel=seconds,
            searched=True,
        )  # fmt: skip
        self._decided(closed, now if seconds < before.kernel else replace(before, searched=True))

    def _measured(self, cuda: Cuda, closed: Cluster, found: Sequence[Candidate]) -> Decision:
        rivals = _Rivals(self, cuda, closed)
        if math.isinf(rivals.library):  # nothing to hold kernels to: it is called as it is
            return Decision(LIBRARY, math.inf, "predicted")
        times = rivals.price(found)
        kernel = min(times)
        best = found[times.index(kernel)]
        if kernel < rivals.library:
            text = show(best.draft.schedule)
            return Decision(text, kernel, "measured", rivals.library, kernel)
        return Decision(LIBRARY, rivals.library, "measured", rivals.library, kernel)

    @cached_property
    def farm(self) -> Farm:
        """Where kernels are tried."""
        return launches()

    def close(self) -> None:
        """Ends the process that kernels are tried in, and its hold on the device."""
        self.farm.close()


class _Rivals:
    """What may run one group, timed in turns with the library's calls on the same tensors, in a
    process that a kernel may take down.

    Attributes:
        library: seconds of its calls, the least that was seen; infinite where they do not run.
        seconds: by cut; infinite for what does not run, or is wrong.
    """

    def __init__(self, tuned: Tuned, cuda: Cuda, closed: Cluster) -> None:
        self.tuned, self.closed = tuned, closed
        self.group = Group(closed.graph, cuda)
        self.failed = tuned.failed.setdefault(closed.digest, {})
        self.seconds: dict[str, float] = {}
        self.library = math.inf
        self._measured({LIBRARY: Launch()}, rounds=1)

    def price(self, found: Sequence[Candidate]) -> list[float]:
        """Seconds of each cut; infinite for what does not run, or is wrong."""
        known = self.seconds.keys() | self.failed.keys()
        fresh = {d: c for c in found if (d := cut_digest(c)) not in known}
        asked = {LIBRARY: Launch()}
        for name, c in fresh.items():
            try:
                asked[name] = Launch(self.tuned.made(self.closed, show(c.draft.schedule)))
            except WhetError as fault:
                self._failed(name, fault.summary, f"{fault.got}")
        self._measured(asked, ROUNDS)
        for name, c in fresh.items():
            seconds, why = self.seconds.get(name, math.inf), self.failed.get(name, "")
            keep(self.tuned.store, self.closed.digest, c, self.tuned.gpu, seconds, why)
        return [self.seconds.get(cut_digest(c), math.inf) for c in found]

    def _measured(self, asked: Mapping[str, Launch], rounds: int) -> None:
        for name, verdict in self.tuned.farm.measure(self.group, asked, rounds=rounds).items():
            if isinstance(verdict, Failed):
                self._failed(name, verdict.kind, verdict.reason)
            elif name == LIBRARY:
                self.library = min(self.library, quartile(verdict.samples))
            else:
                self.seconds[name] = quartile(verdict.samples)

    def _failed(self, name: str, kind: str, reason: str) -> None:
        # One count for all that are wrong: by how much each is, the store says.
        self.tuned.failures[kind if kind == "wrong" else f"{kind}: {reason}"] += 1
        if name != LIBRARY:
            self.failed[name] = f"{kind}: {reason}"


def made(closed: Cluster, schedule: str, gpu: Gpu | None = None) -> Module:
    """A group's kernel by a schedule.

    Args:
        gpu: that it must fit, where it was decided elsewhere.

    Raises:
        WhetError: the schedule does not apply, or the kernel does not fit.
    """
    moves = read(schedule)
    k = apply(lower(closed.graph), moves)
    if isinstance(k, Illegal):
        raise WhetError("a schedule that does not apply", got=str(k))
    if gpu is not None:
        held(k, moves, gpu)
    digest = hashlib.blake2b(f"{k}{launch_of(moves)}".encode(), digest_size=6).hexdigest()
    return module(f"whet_{digest}", k, launch_of(moves))


def library_seconds(closed: Cluster, gpu: Gpu) -> float:
    """What library calls should take: each operator by itself, by the roofline, at 85%; views of
    memory, and what is picked from a call with several results, nothing."""
    total = 0.0
    for n in closed.graph.nodes:
        if n.is_leaf or not n.args or n.op in aten.VIEWS or n.op == "item":
            continue
        cost = node_cost(n)
        flops = float(cost.flops) if isinstance(cost.flops, int) else 0.0
        moved = float(cost.bytes) if isinstance(cost.bytes, int) else 0.0
        kind = n.dtype.value
        total += gpu.launch + max(flops / gpu.rate(kind), moved / gpu.bandwidth) / 0.85
    return total
