"""Moves between partitions. Each knows the partition it leads to, or gives up (None).

    Merge      groups become one; `beside` says that neither reads from the other
    Split      a group becomes two: its first nodes, and the rest
    Shift      nodes at a border go over to the neighbour
    Recompute  whoever reads a value computes it for itself

A move is said for one place and made in all places like it, as far as they do not overlap and the
result stays a partition: a model's repeated blocks are decided once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from whet.fuse.legality import mergeable, opaque, united
from whet.fuse.partition import Group, Partition, PartitionError, partition
from whet.ir.graph import Node


@dataclass(frozen=True, slots=True)
class Move:
    """What to do to some groups, by their names, in one or several places.

    Attributes:
        kind: merge, beside, split, shift or recompute.
        places: for each place the names of its groups.
        at: how many nodes a split's first part has, or a shift moves (negative: from the second).
        why: what a kernel said that led to it; empty where nothing did.
    """

    kind: str
    places: tuple[tuple[str, ...], ...]
    at: int = 0
    why: str = ""

    def __str__(self) -> str:
        where = " ".join("+".join(names) for names in self.places[:3])
        more = f" and {len(self.places) - 3} more" if len(self.places) > 3 else ""
        why = f" because of {self.why}" if self.why else ""
        return f"{self.kind}{f' {self.at}' if self.at else ''} {where}{more}{why}"


def made(p: Partition, move: Move) -> tuple[Partition, Move] | None:
    """The partition after a move, and the move as far as it could be made; None if nowhere."""
    done: list[tuple[str, ...]] = []
    for names in move.places:
        numbers = {g.name: k for k, g in enumerate(p.groups)}
        if not all(n in numbers for n in names):
            continue
        groups = _changed(p, move, tuple(sorted(numbers[n] for n in names)))
        if groups is None:
            continue
        try:
            p = partition(p.graph, p.body, groups)
        except PartitionError:
            continue
        done.append(names)
    return (p, Move(move.kind, tuple(done), move.at, move.why)) if done else None


def _changed(p: Partition, move: Move, chosen: tuple[int, ...]) -> list[Group] | None:
    kept = [g for k, g in enumerate(p.groups) if k not in chosen]
    match move.kind:
        case "merge" | "beside":
            return None if mergeable(p, chosen) else [*kept, united(p, chosen)]
        case "split":
            (group,) = (p.groups[k] for k in chosen)
            parts = halves(group, move.at)
            return None if parts is None else [*kept, *parts]
        case "shift":
            first, second = (p.groups[k] for k in chosen)
            return [*kept, *shifted(first, second, move.at)]
        case "recompute":
            (k,) = chosen
            return recomputed(p, k)
    return None


def halves(group: Group, at: int) -> tuple[Group, Group] | None:
    """The first `at` nodes, and the rest; copies go where they are read."""
    if not 0 < at < len(group.nodes):
        return None
    return _with(group.nodes[:at], group.copies), _with(group.nodes[at:], group.copies)


def shifted(first: Group, second: Group, at: int) -> tuple[Group, Group]:
    """The last `at` nodes of the first go to the second, or the first -at of the second over."""
    if at > 0:
        own, other = first.nodes[:-at], (*first.nodes[-at:], *second.nodes)
    else:
        own, other = (*first.nodes, *second.nodes[:-at]), second.nodes[-at:]
    return _with(own, first.copies), _with(other, second.copies)


def _with(nodes: tuple[Node, ...], copies: Iterable[Node]) -> Group:
    """Nodes as a group, with those copies that they need."""
    needed: set[Node] = set(nodes)
    kept: list[Node] = []
    for c in reversed([c for c in copies if c not in needed]):
        if any(c in n.operands for n in (*nodes, *kept)):
            kept.append(c)
    return Group(nodes, tuple(reversed(kept)))


def recomputed(p: Partition, k: int) -> list[Group] | None:
    """Every reader of a group computes it for itself, and the group goes. With one reader that
    would be a merge; a result of the graph has to stay."""
    group, readers = p.groups[k], p.readers[k]
    if len(readers) < 2 or opaque(group.nodes) or any(opaque(p.groups[r].nodes) for r in readers):
        return None
    if any(n in p.graph.results for n in group.nodes):
        return None
    place = {n: i for i, n in enumerate(p.graph.nodes)}
    found = []
    for j, g in enumerate(p.groups):
        if j in readers:
            extra = {*g.copies, *group.nodes, *group.copies} - set(g.nodes)
            copies = tuple(sorted(extra, key=place.__getitem__))
            found.append(_with(g.nodes, copies))
        elif j != k:
            found.append(g)
    return found


def neighbours(p: Partition) -> Iterator[tuple[int, int]]:
    """Pairs of groups of which the second reads from the first."""
    for k, sources in enumerate(p.edges):
        for s in sources:
            yield s, k


def siblings(p: Partition) -> Iterator[tuple[int, int]]:
    """Pairs of groups that could run at once: they read the same value, or are read by the same
    group, and neither is below the other."""
    near: dict[Node, list[int]] = {}
    for k, g in enumerate(p.groups):
        members = g.members
        for a in dict.fromkeys(a for n in (*g.nodes, *g.copies) for a in n.operands):
            if a in p.body and a not in members:
                near.setdefault(a, []).append(k)
    seen: set[tuple[int, int]] = set()
    for ks in (*near.values(), *map(sorted, p.edges)):
        for i, j in pairwise(ks):
            if (i, j) not in seen and not _below(p, i, j):
                seen.add((i, j))
                yield i, j


def _below(p: Partition, a: int, b: int) -> bool:
    """Does b, which comes later, read from a, perhaps through others?"""
    reached = {a}
    for k in range(a + 1, b + 1):
        if any(s in reached for s in p.edges[k]):
            reached.add(k)
    return b in reached


def grouped_like(p: Partition, pairs: Iterable[Sequence[int]]) -> list[list[tuple[int, ...]]]:
    """Places with equal clusters, together, in the order of the first of each."""
    found: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for chosen in pairs:
        key = tuple(p.clusters[k].digest for k in chosen)
        found.setdefault(key, []).append(tuple(chosen))
    return list(found.values())
