"""Groups that wait for nothing of one another, in one launch, where that is the faster way.

    level    groups that all their sources come before, none of which reads from another
    short    a group that a device spends less time on than `SHORT_S`: a launch counts, and few
             programs leave multiprocessors idle

Short groups of a level are tried together, then in halves; what is kept took less time as one
(measured, or predicted where no device is there) than they take one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from whet.backend.cluster import LIBRARY
from whet.backend.lowered import body_nodes
from whet.fuse.legality import mergeable, united
from whet.fuse.partition import Partition, cluster
from whet.fuse.seed import merged, seed
from whet.ir.graph import Graph
from whet.run.device import Tuned

SHORT_S = 20e-6
MOST = 6  # groups that one launch takes
TRIED = 12  # unlike sets of groups that are tried


def grouped(graph: Graph, tuned: Tuned) -> Partition:
    """A graph's groups, those that take most decided first, short ones side by side."""
    p = seed(graph, body_nodes(graph))
    tuned.prepare(p.clusters)
    return abreast(p, tuned)


def abreast(p: Partition, tuned: Tuned) -> Partition:
    """The partition with groups put side by side, each decided by `tuned`.

    Deterministic for equal decisions; alike sets of groups are decided once.
    """
    known: dict[tuple[str, ...], bool] = {}
    for level in range(max(_levels(p), default=-1) + 1):
        names = [p.groups[k].name for k, n in enumerate(_levels(p)) if n == level]
        here = [n for n in names if _is_short(p, _place(p, n), tuned)]
        for start in range(0, len(here), MOST):
            for chosen in _parted(here[start : start + MOST]):
                places = [_place(p, n) for n in chosen if n is not None]
                if len(places) < 2 or any(k < 0 for k in places):
                    continue  # some of them are in a launch already
                key = tuple(sorted(p.clusters[k].digest for k in places))
                if key not in known and len(known) < TRIED:
                    known[key] = _pays(p, places, tuned)
                if known.get(key):
                    p = merged(p, places, united(p, places))
    return p


def _levels(p: Partition) -> list[int]:
    """How many groups come before each, one after the other, at least."""
    found: list[int] = []
    for sources in p.edges:
        found.append(1 + max((found[s] for s in sources), default=-1))
    return found


def _place(p: Partition, name: str) -> int:
    """Where a group of that name is; -1 where none is called so any more."""
    return next((k for k, g in enumerate(p.groups) if g.name == name), -1)


def _parted(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """All of them, then both halves, and so on: each only while its groups are still single."""
    yield names
    if len(names) > 2:
        half = len(names) // 2
        yield from _parted(names[:half])
        yield from _parted(names[half:])


def _is_short(p: Partition, k: int, tuned: Tuned) -> bool:
    return k >= 0 and tuned.decision(p.clusters[k]).seconds < SHORT_S


def _pays(p: Partition, places: Sequence[int], tuned: Tuned) -> bool:
    """Whether some groups take less time in one launch."""
    if mergeable(p, places) is not None:
        return False
    apart = sum(tuned.decision(p.clusters[k]).seconds for k in places)
    group = united(p, places)
    own = {n for k in places for n in p.results[k]}
    results = tuple(n for n in p.graph.nodes if n in own)
    together = tuned.decision(cluster(group, results, p.body))
    return together.schedule != LIBRARY and together.seconds < apart
