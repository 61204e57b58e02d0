"""Regions: parts of a graph that are searched on their own.

    Region := closed Graph, leaves, results, places      equal closed graphs are one region

A graph is cut where few values are alive: at articulation tensors, through which all that follows
depends on what came before, and among these where several read the value, as blocks begin there.
A region names its leaves in the order of their use, so the repeated blocks of a model are equal
regions, solved once. What depends on no input belongs to whoever reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.ir.graph import Graph, Node, leaf, rebuilt, topological

LEAST, USUAL, MOST = 6, 64, 1500  # body nodes: of a block, of a chain of them, of any region


@dataclass(frozen=True)
class Region:
    """A part of a graph, and everywhere it occurs.

    Attributes:
        graph: closed; inputs are called x0, x1, …, what is known ahead of time p0, p1, ….
        places: for each occurrence, the outer node of every leaf by name.
        roots: for each occurrence, the outer nodes that the region's results are.
    """

    graph: Graph
    places: tuple[Mapping[str, Node], ...]
    roots: tuple[tuple[Node, ...], ...]


def is_known(leaf: Node) -> bool:
    """Whether a region's leaf is known ahead of time."""
    return leaf.op in ("parameter", "constant")


class Ahead:
    """Says of nodes over a region's leaves whether they are computed ahead of time: from no input.

    Which of several ways to compute such a value is taken costs nothing at run time.
    """

    def __init__(self) -> None:
        self._known: dict[Node, bool] = {}

    def __call__(self, node: Node) -> bool:
        known = self._known
        if node not in known:
            for n in topological((node,)):
                if n not in known:
                    known[n] = n.op != "input" if n.is_leaf else all(known[a] for a in n.operands)
        return known[node]


def regions(graph: Graph, known: Callable[[Node], bool] = is_known) -> list[Region]:
    """The regions of a graph, in the order of their first occurrence.

    Args:
        known: whether a leaf is known ahead of time. In a joint training graph parameters are not.
    """
    fixed: set[Node] = set()
    for n in graph.nodes:
        if n.is_leaf:
            if known(n):
                fixed.add(n)
        elif n.op not in ("opaque", "item") and all(a in fixed for a in n.operands):
            fixed.add(n)
    for changed, _ in graph.updates:
        fixed.discard(changed)
    body = [n for n in graph.nodes if not n.is_leaf and n not in fixed]
    found: dict[str, tuple[Graph, list[Mapping[str, Node]], list[tuple[Node, ...]]]] = {}
    for part in _cut(graph, body):
        closed, leaves, roots = _closed(graph, part, fixed)
        _, places, all_roots = found.setdefault(closed.digest, (closed, [], []))
        places.append(leaves)
        all_roots.append(roots)
    return [Region(g, tuple(p), tuple(r)) for g, p, r in found.values()]


def _cut(graph: Graph, body: Sequence[Node]) -> Iterator[list[Node]]:
    place = {n: k for k, n in enumerate(body)}
    last = [max((place[u] for u in graph.users[n] if u in place), default=k)
            for k, n in enumerate(body)]  # fmt: skip
    ending = [0] * len(body)
    alive, counts = 0, []
    for k in range(len(body)):
        if last[k] > k:
            alive += 1
            ending[last[k]] += 1
        alive -= ending[k]
        counts.append(alive)
    start = 0
    while start < len(body):
        stop = _end(graph, body, counts, start)
        yield list(body[start:stop])
        start = stop


def _end(graph: Graph, body: Sequence[Node], counts: Sequence[int], start: int) -> int:
    limit = min(len(body), start + MOST)
    chain = None
    for k in range(start, limit):
        size = k + 1 - start
        if counts[k] != 1 or size < LEAST:
            continue
        if len(graph.users[body[k]]) > 1:
            return k + 1
        if size >= USUAL:
            return k + 1
        chain = k + 1
    if limit == len(body):
        return limit
    if chain is not None:
        return chain
    half = range(start + MOST // 2, limit)
    return min(half, key=lambda k: (counts[k], -k)) + 1


def _closed(
    graph: Graph, part: Sequence[Node], fixed: set[Node]
) -> tuple[Graph, Mapping[str, Node], tuple[Node, ...]]:
    inside = set(part)
    new: dict[Node, Node] = {}
    leaves: dict[str, Node] = {}
    inputs: list[Node] = []
    counts = {"x": 0, "p": 0}

    def named(outer: Node, kind: str, letter: str) -> Node:
        name = f"{letter}{counts[letter]}"
        counts[letter] += 1
        leaves[name] = outer
        return leaf(kind, name, outer.type)

    def enter(root: Node) -> None:
        stack = [(root, False)]
        while stack:
            n, ready = stack.pop()
            if n in new:
                continue
            if n not in inside and n not in fixed:
                new[n] = named(n, "input", "x")
                inputs.append(new[n])
            elif n.is_leaf:
                new[n] = named(n, "parameter", "p")
            elif ready:
                new[n] = rebuilt(n, [None if a is None else new[a] for a in n.args])
            else:
                stack.append((n, True))
                stack.extend((a, False) for a in reversed(n.operands))

    for n in part:
        enter(n)
    results = frozenset(graph.results)
    roots = tuple(n for n in part if n in results or any(u not in inside for u in graph.users[n]))
    return Graph(tuple(inputs), tuple(new[r] for r in roots)), leaves, roots


def instances(closed: Graph, place: Mapping[str, Node]) -> Mapping[Node, Node]:
    """For every node of a region the node that it is at one occurrence.

    Raises:
        KeyError: a leaf is not in `place`.
    """
    new: dict[Node, Node] = {}
    for n in closed.nodes:
        if n.is_leaf:
            new[n] = place[n.name]
        else:
            new[n] = rebuilt(n, [None if a is None else new[a] for a in n.args])
    return new


def placed(closed: Graph, place: Mapping[str, Node]) -> tuple[Node, ...]:
    """A region's results over the outer nodes of one occurrence.

    Raises:
        KeyError: a leaf is not in `place`.
    """
    new = instances(closed, place)
    return tuple(new[r] for r in closed.results)
