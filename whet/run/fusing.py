"""Fusing a graph for this machine: the search for a partition, over measured kernels.

    graph → seed → search (whet.fuse.space), priced by Tuner → Partition

A cluster is priced as it will lie in most programs: images with their channels last, everything
else row-major. What a kernel's time and resources say about it becomes the reason that the search
acts on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.backend import generated
from whet.backend.cluster import LIBRARY
from whet.backend.cut import WITHOUT, cut
from whet.backend.lowered import body_nodes
from whet.backend.piece import Generated, Packed, Piece, Value, channels_last, dense
from whet.errors import WhetError
from whet.fuse.partition import Cluster, Partition
from whet.fuse.seed import seed
from whet.fuse.space import FuseSpace, Rates
from whet.ir.cost import graph_floor
from whet.ir.graph import Graph, Node
from whet.run.tuned import Decision, Tuner
from whet.run.workshop import Asked
from whet.search import Annealing, Budget, Cost, Journal, Outcome, Scored, search
from whet.search.reason import Reason

WIDTH = 4  # partitions priced in a round
CLIMB = Annealing(temperature=0, sample=WIDTH, window=WIDTH, rounds=200)
KINDS = frozenset({"merge", "beside", "split", "shift", "recompute"})


@dataclass
class Priced:
    """Prices clusters by what the tuner measures, with the reason for what they cost."""

    tuner: Tuner
    rates: Rates
    body: frozenset[Node]

    def __call__(self, clusters: Sequence[Cluster]) -> list[Scored[str]]:
        self.tuner.prepare([self._asked(c) for c in clusters if not _free(c)])
        return [self._priced(c) for c in clusters]

    def _asked(self, c: Cluster) -> Asked:
        operands = [_lying(n) if n in self.body else Packed(n) for n in c.leaves]
        return c, operands, [_lying(n) for n in c.results]

    def _priced(self, c: Cluster) -> Scored[str]:
        if _free(c):
            return Scored(c.digest, Cost.NONE)
        found = self.tuner.decision(*self._asked(c))
        resources: Mapping[str, float] = found.resources
        if math.isinf(found.seconds):
            return Scored(c.digest, Cost.IMPOSSIBLE, str(Reason.UNSUPPORTED), resources)
        seconds = found.seconds + self.rates.call
        return Scored(c.digest, Cost(seconds), self.reason(c, found), resources)

    def reason(self, c: Cluster, found: Decision) -> str:
        """What holds a cluster's kernel."""
        floor = graph_floor(c.graph)
        flops, moved = _number(floor.flops), _number(floor.bytes)
        target = self.tuner.target
        if found.seconds < 2 * self.rates.call:
            return f"{Reason.OVERHEAD}: {found.seconds * 1e6:.1f} us"
        if found.schedule != LIBRARY and found.resources.get("parallel", 1) < target.threads:
            return f"{Reason.PARALLELISM}: {found.resources.get('parallel', 1):.0f} iterations"
        if found.resources.get("scratch", 0) > target.l2:
            return f"{Reason.SCRATCH}: {found.resources['scratch']:.0f} of {target.l2} bytes"
        if flops / self.rates.flops > moved / self.rates.bytes:
            return f"{Reason.COMPUTE}: {flops / found.seconds / 1e9:.0f} GFLOP/s"
        return f"{Reason.BANDWIDTH}: {moved / found.seconds / 1e9:.1f} GB/s"


@dataclass(frozen=True, slots=True)
class Fused:
    """A partition, and how it was found.

    Attributes:
        partition: the best one.
        outcome: of the search.
        told: what kernels said, and what that led to.
    """

    partition: Partition
    outcome: Outcome[Partition] | None = None
    told: tuple[tuple[str, str], ...] = field(default=())


def fused(
    graph: Graph,
    tuner: Tuner,
    budget: Budget | None = None,
    *,
    kinds: frozenset[str] = KINDS,
    feedback: bool = True,
    journal: Journal | None = None,
    start: Partition | None = None,
) -> Fused:
    """The best partition found within a budget.

    Args:
        graph: over concrete shapes.
        tuner: decides what runs a cluster.
        budget: of the search; without one the start is the answer.
        kinds: of moves, for ablations.
        feedback: False does not listen to what kernels say.
        journal: where the search is written down.
        start: where it begins; what records suggest unless given.
    """
    body = body_nodes(graph)
    start = start or seed(graph, body)
    if budget is None or budget.stop() is not None:
        return Fused(start)
    rates = Rates()
    space = FuseSpace(start, Priced(tuner, rates, body), rates, WIDTH, kinds, feedback)
    outcome = search(space, CLIMB, budget, journal)
    return Fused(outcome.best.state, outcome, tuple(space.told))


def decide(graph: Graph, partition: Partition, tuner: Tuner) -> None:
    """Decide the groups of a partition together, as far as it is known how they will lie: as if
    each had a kernel of its own."""
    asked: list[Asked] = []

    def make(
        closed: Cluster, operands: Sequence[Value | Packed], results: Sequence[Value]
    ) -> Piece | None:
        try:
            generated.naive(closed, operands, results)
        except WhetError:
            return None
        asked.append((closed, operands, results))
        return Piece(closed.results, tuple(operands), tuple(results), Generated("", "", 0))

    with contextlib.suppress(WhetError):  # whoever cuts it for good will say so
        cut(graph, tuner.choose, partition, make)
    tuner.prepare(asked)


def _free(c: Cluster) -> bool:
    """Memory seen otherwise, or written where it belongs."""
    (first, *more) = (n for n in c.graph.nodes if not n.is_leaf and n.args)
    return not more and first.op in WITHOUT


def _lying(n: Node) -> Value:
    shape = Value(n).shape
    return Value(n, channels_last(shape) if len(shape) == 4 else dense(shape))


def _number(size: object) -> float:
    return float(size) if isinstance(size, int) else 0.0
