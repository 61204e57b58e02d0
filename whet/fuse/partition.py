"""Partitions: which kernel computes which operators.

    Partition = graph, body, (Group, …)     in an order in which they can run
    Group     = nodes, copies               nodes it owns; copies it computes again for itself
    Cluster   = a group as a small closed Graph: leaves that it reads, results that others read

A body's node has one owner, or none where every reader computes it for itself. The text form has a
line for each group, nodes by their place in `graph.nodes`, copies behind a bar:

    12 13 14
    15 16 | 13

What does not belong to the body (it depends on no input) is a parameter to clusters. A literal
number is part of whatever reads it. Clusters name their leaves in the order of first use, so that
repeated blocks of a model have equal clusters.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from whet.errors import WhetError
from whet.ir.graph import Graph, Node, leaf, rebuilt


class PartitionError(WhetError):
    """Groups that are no partition of a graph."""


@dataclass(frozen=True, slots=True)
class Group:
    """What one kernel computes.

    Attributes:
        nodes: those it owns, in the graph's order.
        copies: those it computes again, in the graph's order.
    """

    nodes: tuple[Node, ...]
    copies: tuple[Node, ...] = ()

    @property
    def members(self) -> frozenset[Node]:
        return frozenset((*self.nodes, *self.copies))

    @property
    def name(self) -> str:
        """A short word for it, unique in a partition."""
        return self.nodes[-1].digest[:6]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A group, cut out of its graph.

    Attributes:
        graph: over leaves of its own; equal for groups that compute the same.
        leaves: the outer graph's nodes that stand behind its leaves: inputs, then parameters.
        results: the outer graph's nodes that stand behind its outputs.
    """

    graph: Graph
    leaves: tuple[Node, ...]
    results: tuple[Node, ...]

    @property
    def digest(self) -> str:
        return self.graph.digest


@dataclass(frozen=True)
class Partition:
    """See the module's docstring. Make one with `partition`, which checks and orders the groups."""

    graph: Graph
    body: frozenset[Node]
    groups: tuple[Group, ...]

    @cached_property
    def owner(self) -> Mapping[Node, int]:
        """Which group owns a node."""
        return {n: k for k, g in enumerate(self.groups) for n in g.nodes}

    @cached_property
    def results(self) -> tuple[tuple[Node, ...], ...]:
        """What each group has to write, in the graph's order."""
        read = set(self.graph.results)
        for g in self.groups:
            members = g.members
            read.update(a for n in members for a in n.operands if a not in members)
        return tuple(tuple(n for n in g.nodes if n in read) for g in self.groups)

    @cached_property
    def edges(self) -> tuple[tuple[int, ...], ...]:
        """Groups whose results each group reads, in order."""
        return _edges(self.groups, self.owner)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """Groups that read each group's results, in order."""
        found: list[list[int]] = [[] for _ in self.groups]
        for k, sources in enumerate(self.edges):
            for s in sources:
                found[s].append(k)
        return tuple(map(tuple, found))

    @cached_property
    def clusters(self) -> tuple[Cluster, ...]:
        """Each group as a graph of its own."""
        rows = zip(self.groups, self.results, strict=True)
        return tuple(cluster(g, results, self.body) for g, results in rows)

    @cached_property
    def digest(self) -> str:
        """Equal across processes for equal partitions of equal graphs."""
        return hashlib.blake2b(f"{self.graph.digest}\n{self}".encode(), digest_size=16).hexdigest()

    def __hash__(self) -> int:
        return hash(self.groups)

    def __str__(self) -> str:
        place = {n: str(k) for k, n in enumerate(self.graph.nodes)}
        lines = []
        for g in self.groups:
            line = " ".join(place[n] for n in g.nodes)
            lines.append(f"{line} | {' '.join(place[n] for n in g.copies)}" if g.copies else line)
        return "\n".join(lines)


def partition(graph: Graph, body: frozenset[Node], groups: Iterable[Group]) -> Partition:
    """Groups as a partition, in an order in which they can run.

    Args:
        graph: whose nodes are grouped.
        body: nodes that depend on an input; leaves and literals among them need no group.
        groups: in any order; empty ones are dropped.

    Raises:
        PartitionError: a node with two owners, one that is read and computed nowhere, or groups
            that wait for each other.
    """
    kept = [g for g in groups if g.nodes]
    owner: dict[Node, int] = {}
    for k, g in enumerate(kept):
        for n in g.nodes:
            if n in owner:
                raise PartitionError("two groups own a node", got=n)
            owner[n] = k
    known = {n for n in graph.nodes if not grouped(n, body)}
    needed = set(graph.results)
    for g in kept:
        members = g.members
        needed.update(a for n in members for a in n.operands if a not in members)
    for n in needed:
        if n not in owner and n not in known:
            raise PartitionError("a value is read that no group computes", got=n)
    order = ordered(_edges(kept, owner))
    if order is None:
        text = str(Partition(graph, body, tuple(kept)))
        raise PartitionError("groups wait for each other", got=text)
    return Partition(graph, body, tuple(kept[k] for k in order))


def grouped(n: Node, body: frozenset[Node]) -> bool:
    """Whether a node has to be computed by a group."""
    return n in body and not n.is_leaf and bool(n.args)


def apart(graph: Graph, body: frozenset[Node]) -> Partition:
    """Every node a group of its own."""
    groups = tuple(Group((n,)) for n in graph.nodes if grouped(n, body))
    return Partition(graph, body, groups)


def ordered(edges: Sequence[Sequence[int]]) -> list[int] | None:
    """An order of groups, sources first and otherwise as they stand; None where they wait for each
    other (Kahn, CACM 1962)."""
    waiting = [len(sources) for sources in edges]
    readers: list[list[int]] = [[] for _ in edges]
    for k, sources in enumerate(edges):
        for s in sources:
            readers[s].append(k)
    ready = [k for k, n in enumerate(waiting) if not n]  # sorted, so a heap
    order = []
    while ready:
        k = heapq.heappop(ready)
        order.append(k)
        for r in readers[k]:
            waiting[r] -= 1
            if not waiting[r]:
                heapq.heappush(ready, r)
    return order if len(order) == len(edges) else None


def cluster(group: Group, results: Sequence[Node], body: frozenset[Node]) -> Cluster:
    """A group as a closed graph that computes `results`, which it owns."""
    inside: dict[Node, Node] = {}
    outer: dict[Node, Node] = {}

    def read(a: Node) -> None:
        if a in inside or (not a.args and not a.is_leaf):
            return  # a literal goes along
        kind = "input" if a in body else "parameter"
        inside[a] = leaf(kind, f"{kind[0]}{len(outer)}", a.type)
        outer[inside[a]] = a

    for n in _in_order(group.members, results):
        if n.op == "item" and n.operands[0] not in inside:  # of a call: not a value by itself
            call = n.operands[0]
            for a in call.operands:
                read(a)
            inside[call] = rebuilt(
                call, [None if a is None else inside.get(a, a) for a in call.args]
            )
        for a in n.operands:
            read(a)
        inside[n] = rebuilt(n, [None if a is None else inside.get(a, a) for a in n.args])
    inputs = tuple(n for n in outer if n.op == "input")
    graph = Graph(inputs, tuple(inside[n] for n in results))
    leaves = (*graph.inputs, *graph.parameters)
    return Cluster(graph, tuple(outer[n] for n in leaves), tuple(results))


def parse(graph: Graph, body: frozenset[Node], text: str) -> Partition:
    """Inverse of `str`.

    Raises:
        PartitionError: a word that is no place in `graph.nodes`, or no partition.
    """
    groups = []
    for line in text.splitlines():
        own, _, copies = line.partition("|")
        try:
            nodes = tuple(graph.nodes[int(word)] for word in own.split())
            again = tuple(graph.nodes[int(word)] for word in copies.split())
        except (ValueError, IndexError) as fault:
            raise PartitionError("not the text of a partition", got=line) from fault
        groups.append(Group(nodes, again))
    return partition(graph, body, groups)


def _edges(groups: Sequence[Group], owner: Mapping[Node, int]) -> tuple[tuple[int, ...], ...]:
    found = []
    for g in groups:
        members = g.members
        read = (a for n in (*g.nodes, *g.copies) for a in n.operands if a not in members)
        found.append(tuple(dict.fromkeys(owner[a] for a in read if a in owner)))
    return tuple(found)


def _in_order(members: frozenset[Node], results: Iterable[Node]) -> list[Node]:
    """The members that results need, operands first, in an order that structure alone gives."""
    done: dict[Node, None] = {}
    for root in results:
        stack = [(root, False)]
        while stack:
            n, ready = stack.pop()
            if n in done or n not in members:
                continue
            if ready:
                done[n] = None
                continue
            stack.append((n, True))
            stack.extend((a, False) for a in reversed(n.operands))
    return list(done)
