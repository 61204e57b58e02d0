"""The search for a partition, steered by what kernels say of themselves.

    propose  merge neighbours, put siblings side by side, split, shift a border, recompute; the most
             promising first, by a guess at what is saved and by the reasons for what is slow
    check    a partition, none of whose clusters contains what was refused for a reason that grows
    cost     the sum over clusters; each is priced once, wherever and however often it occurs

The price of a cluster arrives as an argument, and with it a reason (`whet.search.reason`):

    refused, spill, scratch    nothing around it is tried again; its border is shifted, it is split
    too little parallelism     it is put beside its siblings, or split
    mostly overhead            it is merged with anything near
    bandwidth-bound            it is merged with who reads and who writes what it moves
    compute-bound              it is left alone: little is saved around it

Whatever is proposed because of a reason says so, in the move's text, and so in the journal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.fuse import moves
from whet.fuse.legality import united
from whet.fuse.moves import Move
from whet.fuse.partition import Cluster, Group, Partition, cluster
from whet.ir.cost import graph_cost
from whet.ir.graph import Node
from whet.search.budget import Budget
from whet.search.reason import GROWS, Reason
from whet.search.space import Candidate, Cost, Refutation, Scored

Price = Callable[[Sequence[Cluster]], Sequence[Scored[str]]]
"""What clusters cost: states are their digests."""

# What a reason at one of its groups does to the guessed gain of a move.
# fmt: off
WEIGHT: Mapping[tuple[str, Reason], float] = {
    ("merge",     Reason.BANDWIDTH):   2.0,
    ("merge",     Reason.OVERHEAD):    3.0,
    ("merge",     Reason.COMPUTE):     0.3,
    ("merge",     Reason.PARALLELISM): 0.5,
    ("beside",    Reason.PARALLELISM): 4.0,
    ("beside",    Reason.OVERHEAD):    2.0,
    ("beside",    Reason.BANDWIDTH):   0.2,
    ("beside",    Reason.COMPUTE):     0.2,
    ("split",     Reason.PARALLELISM): 2.0,
    ("split",     Reason.SPILL):       4.0,
    ("split",     Reason.SCRATCH):     4.0,
    ("recompute", Reason.BANDWIDTH):   2.0,
    ("recompute", Reason.COMPUTE):     0.2,
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Rates:
    """What a guess at a kernel's time is made of."""

    flops: float = 2e11  # operations a second
    bytes: float = 3e10  # bytes a second
    call: float = 2e-6  # seconds

    def guess(self, c: Cluster) -> float:
        """Seconds that a cluster takes if it moves its leaves and results once (roofline)."""
        moved = sum(_bytes(n) for n in (*c.leaves, *c.results))
        work = graph_cost(c.graph).flops
        flops = work if isinstance(work, int) else 0
        return self.call + max(flops / self.flops, moved / self.bytes)


@dataclass
class FuseSpace:
    """See the module's docstring.

    Attributes:
        seed: where the search begins.
        price: of clusters.
        rates: what guesses are made of.
        width: moves proposed in a round.
        kinds: of moves; leave some out for ablations.
        feedback: False neither listens to reasons nor learns from refusals.
        prices: every cluster's price so far, by digest.
        refused: groups that were refused for a reason that grows.
        told: what reasons led to: (reason, move) in order.
    """

    seed: Partition
    price: Price
    rates: Rates = field(default_factory=Rates)
    width: int = 4
    kinds: frozenset[str] = frozenset({"merge", "beside", "split", "shift", "recompute"})
    feedback: bool = True
    prices: dict[str, Scored[str]] = field(default_factory=dict)
    refused: dict[frozenset[Node], str] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)

    def start(self) -> Partition:
        return self.seed

    # -- propose -----------------------------------------------------------------------------------
    def propose(
        self, kept: Sequence[Scored[Partition]], budget: Budget
    ) -> Iterable[Candidate[Partition]]:
        """The `width` most promising moves that lead to clusters without a price, and every move
        that is known to pay."""
        for scored in kept:
            p, given = scored.state, 0
            for gain, move in self._ranked(p):
                if budget.stop() is not None or given >= self.width:
                    break
                result = moves.made(p, move)
                if result is None:
                    continue
                after, done = result
                known = self._known(after)
                if known is not None and known >= scored.seconds:
                    continue
                if known is None and gain <= 0:
                    break
                given += 1
                if done.why:
                    self.told.append((done.why, str(replace(done, why=""))))
                yield Candidate(p, after, done)

    def _known(self, p: Partition) -> float | None:
        """Seconds of a partition all of whose clusters have a price."""
        found = [self.prices.get(c.digest) for c in p.clusters]
        if any(s is None for s in found):
            return None
        return sum(s.seconds for s in found if s is not None)

    def _ranked(self, p: Partition) -> list[tuple[float, Move]]:
        """Moves with what they are guessed to save in all their places, the best first."""
        found: list[tuple[float, Move]] = []
        for kind, pairs in (("merge", moves.neighbours(p)), ("beside", moves.siblings(p))):
            if kind not in self.kinds:
                continue
            found += (
                self._judged(p, kind, places, self._union_gain(p, places[0]))
                for places in moves.grouped_like(p, pairs)
            )
        for places in moves.grouped_like(p, ((k,) for k in range(len(p.groups)))):
            found += self._within(p, places)
        found += self._shifts(p)
        return sorted(found, key=lambda gm: (-gm[0], str(gm[1])))

    def _judged(
        self, p: Partition, kind: str, places: list[tuple[int, ...]], gain: float, at: int = 0
    ) -> tuple[float, Move]:
        why = ""
        if self.feedback:
            for k in places[0]:
                reason = self._reason(p, k)
                weight = WEIGHT.get((kind, reason), 1.0) if reason is not None else 1.0
                gain *= weight
                if weight > 1 and not why:
                    why = self.prices[p.clusters[k].digest].reason
        names = tuple(tuple(p.groups[k].name for k in chosen) for chosen in places)
        return gain * len(places), Move(kind, names, at, why)

    def _within(self, p: Partition, places: list[tuple[int, ...]]) -> Iterator[tuple[float, Move]]:
        """Moves that take a group apart."""
        (k,) = places[0]
        group = p.groups[k]
        if "split" in self.kinds and len(group.nodes) > 1:
            reason = self._reason(p, k) if self.feedback else None
            hurts = reason in (Reason.SPILL, Reason.SCRATCH, Reason.PARALLELISM)
            share = self._seconds(p, k) * (0.2 if hurts else 0.01)
            for at in self._cuts(p, group):
                yield self._judged(p, "split", places, share, at)
        if "recompute" in self.kinds:
            after = moves.recomputed(p, k)
            if after is not None:
                yield self._judged(p, "recompute", places, self._recompute_gain(p, k))

    def _shifts(self, p: Partition) -> Iterator[tuple[float, Move]]:
        """Where a union was refused, its border may still be moved."""
        if "shift" not in self.kinds or (self.feedback and not self.refused):
            return
        for places in moves.grouped_like(p, moves.neighbours(p)):
            a, b = (p.groups[k] for k in places[0])
            if self.feedback and a.members | b.members not in self.refused:
                continue
            for at in (1, -1):
                side = a if at > 0 else b
                if len(side.nodes) > 1:
                    share = 0.05 * (self._seconds(p, places[0][0]) + self._seconds(p, places[0][1]))
                    yield self._judged(p, "shift", places, share, at)

    # -- guesses -----------------------------------------------------------------------------------
    def _seconds(self, p: Partition, k: int) -> float:
        """Price of a group, or a guess at it."""
        known = self.prices.get(p.clusters[k].digest)
        return known.seconds if known is not None else self.rates.guess(p.clusters[k])

    def _union_gain(self, p: Partition, chosen: tuple[int, ...]) -> float:
        """Seconds saved, guessed: bytes that need not be moved, and calls."""
        whole = united(p, chosen)
        union = cluster(whole, _seen(p, whole), p.body)
        parts = sum(self._guess(p.clusters[k]) for k in chosen)
        return parts - self.rates.guess(union)

    def _guess(self, c: Cluster) -> float:
        """A guess at a cluster, but nothing for what is known to be free."""
        known = self.prices.get(c.digest)
        return 0.0 if known is not None and not known.seconds else self.rates.guess(c)

    def _recompute_gain(self, p: Partition, k: int) -> float:
        c, readers = p.clusters[k], len(p.readers[k])
        work = graph_cost(c.graph).flops
        flops = work if isinstance(work, int) else 0
        moved = sum(map(_bytes, c.results)) * (1 + readers)
        again = sum(map(_bytes, c.leaves)) * (readers - 1)
        return (
            self.rates.call
            + (moved - again) / self.rates.bytes
            - readers * flops / self.rates.flops
        )

    def _cuts(self, p: Partition, group: Group) -> list[int]:
        """Where a group may be cut: where the fewest bytes cross, then in the middle."""
        nodes = group.nodes
        crossing = {}
        for at in range(1, len(nodes)):
            first, rest = set(nodes[:at]), nodes[at:]
            crossing[at] = sum(_bytes(a) for a in {a for n in rest for a in n.operands} & first)
        middle = len(nodes) / 2
        return sorted(crossing, key=lambda at: (crossing[at], abs(at - middle)))[:2]

    def _reason(self, p: Partition, k: int) -> Reason | None:
        known = self.prices.get(p.clusters[k].digest)
        return Reason.of(known.reason) if known is not None else None

    # -- check and cost ----------------------------------------------------------------------------
    def check(self, c: Candidate[Partition]) -> Refutation | None:
        """None unless a new group contains one that was refused for a reason that grows."""
        if not self.feedback:
            return None
        before = {g.members for g in c.before.groups}
        for g in c.after.groups:
            members = g.members
            if members in before:
                continue
            for core, reason in self.refused.items():
                if core <= members:
                    self.told.append((reason, f"not {c.how}"))
                    return Refutation(f"it contains what was refused: {reason}", g.name)
        return None

    def cost(self, cs: Sequence[Candidate[Partition]]) -> list[Scored[Partition]]:
        """Clusters that have no price yet are priced together."""
        wanted = {x.digest: x for c in cs for x in c.after.clusters if x.digest not in self.prices}
        for scored in self.price(list(wanted.values())) if wanted else ():
            self.prices[scored.state] = scored
        return [self._sum(c) for c in cs]

    def _sum(self, c: Candidate[Partition]) -> Scored[Partition]:
        total, worst, reason = Cost.NONE, 0.0, ""
        resources: dict[str, float] = {"kernels": len(c.after.groups)}
        known = {g.members for g in c.before.groups}
        for g, x in zip(c.after.groups, c.after.clusters, strict=True):
            priced = self.prices[x.digest]
            total += priced.cost
            if priced.reason and priced.seconds > worst:
                worst, reason = priced.seconds, f"{priced.reason} ({g.name})"
            if math.isinf(priced.seconds) and g.members not in known:
                self._learn(g, priced.reason, c)
        return Scored(c.after, total, reason, resources)

    def _learn(self, g: Group, reason: str, c: Candidate[Partition]) -> None:
        if self.feedback and Reason.of(reason) in GROWS:
            self.refused[g.members] = reason
            self.told.append((reason, str(c.how)))


def _seen(p: Partition, whole: Group) -> tuple[Node, ...]:
    """What a union of groups has to write."""
    members = whole.members
    read = set(p.graph.results)
    for g in p.groups:
        if not g.members <= members:
            own = g.members
            read.update(a for n in own for a in n.operands if a not in own)
    return tuple(n for n in whole.nodes if n in read)


def _bytes(n: Node) -> int:
    size = n.type.nbytes
    return size if isinstance(size, int) else 0
