"""Clusters of library kernels: an expensive operator, and the cheap ones that libraries fuse to it.

    cluster := anchor [epilogue …]        the last node is the root, the only value seen outside

A Cluster is a small closed part of a Graph. This partition is the one that libraries can run;
`whet.fuse` searches the others. An epilogue is absorbed when the node before it has no other user,
so that a cluster is always convex and computes nothing twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from whet.ir.graph import Graph, Node, attr_text

# What library kernels can start with, and what they can end with.
LIBRARY = "library"  # in the place of a schedule: a group is left to its kernels
ANCHORS = frozenset({"linear", "matmul", "conv1d", "conv2d", "conv3d", "attention"})
UNARY = frozenset("relu gelu gelu_tanh silu sigmoid tanh hardswish hardsigmoid leaky_relu".split())
BINARY = frozenset({"add", "mul"})


@dataclass(frozen=True, slots=True)
class Cluster:
    """An anchor and what follows it, in order; `nodes[-1]` is the root.

    Attributes:
        nodes: in order.
        fixed: positions of the operands that depend on no input: a kernel may transform these
            ahead of time.
    """

    nodes: tuple[Node, ...]
    fixed: frozenset[int] = frozenset()

    @property
    def anchor(self) -> Node:
        return self.nodes[0]

    @property
    def root(self) -> Node:
        return self.nodes[-1]

    @property
    def epilogue(self) -> tuple[Node, ...]:
        return self.nodes[1:]

    @property
    def operands(self) -> tuple[Node | None, ...]:
        """What the cluster reads: the anchor's operands, then each epilogue's other operand."""
        found = list(self.anchor.args)
        for before, node in zip(self.nodes, self.epilogue, strict=False):
            found += [a for a in node.args if a is not before]
        return tuple(found)

    def other(self, place: int) -> Node | None:
        """The operand of epilogue `place` that does not come from inside, if it takes two."""
        node, before = self.epilogue[place], self.nodes[place]
        rest = [a for a in node.args if a is not before]
        return rest[0] if rest else None

    @property
    def key(self) -> str:
        """What measured times are remembered by: operators, attributes and types, not names."""
        parts = []
        for node in self.nodes:
            attrs = ",".join(f"{k}={attr_text(v)}" for k, v in node.attrs)
            parts.append(f"{node.op}({attrs})")
        for k, a in enumerate(self.operands):
            parts.append("-" if a is None else f"{a.type!r}{'*' if k in self.fixed else ''}")
        return hashlib.blake2b("|".join(parts).encode(), digest_size=16).hexdigest()

    def __repr__(self) -> str:
        shapes = ", ".join("-" if a is None else repr(a.type) for a in self.operands)
        return f"{'+'.join(n.op for n in self.nodes)}({shapes}) -> {self.root.type!r}"


def clusters(graph: Graph, body: frozenset[Node]) -> Mapping[Node, Cluster]:
    """The library partition of a graph: root node to its cluster, for every anchor in `body`."""
    found: dict[Node, Cluster] = {}
    taken: set[Node] = set()
    results = frozenset(graph.results)
    for node in graph.nodes:
        if node.op not in ANCHORS or node not in body:
            continue
        chain = [node]
        if node.op != "attention":
            while (step := _absorbed(graph, chain, results, taken)) is not None:
                chain.append(step)
        operands = Cluster(tuple(chain)).operands
        fixed = frozenset(k for k, a in enumerate(operands) if a is not None and a not in body)
        cluster = Cluster(tuple(chain), fixed)
        taken.update(chain)
        found[cluster.root] = cluster
    return found


def _absorbed(
    graph: Graph, chain: list[Node], results: frozenset[Node], taken: set[Node]
) -> Node | None:
    """The next epilogue: one binary at most, then one unary at most."""
    last = chain[-1]
    users = graph.users[last]
    if last in results or len(users) != 1 or users[0] in taken:
        return None
    (user,) = users
    kinds = [n.op in UNARY for n in chain[1:]]
    if user.op in UNARY and True not in kinds:
        return user
    others = [a for a in user.args if a is not last]
    fits = (
        user.op in BINARY
        and not kinds
        and len(others) == 1
        and others[0] is not None
        and others[0].type == last.type == user.type
    )
    return user if fits else None
