"""What may be one kernel.

acyclic     no group waits for itself through others (so every group is convex)
apart       a library call without a record is alone, with the items of its results elsewhere
takes       some backend can compute the cluster; whoever knows says why not
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from whet.fuse.partition import Group, Partition
from whet.ir.graph import Node
from whet.ir.ops import exists
from whet.search.reason import Reason
from whet.search.space import Refutation


def opaque(nodes: Iterable[Node]) -> Node | None:
    """A node among them that must be alone, as nothing is known of what it does."""
    return next((n for n in nodes if not exists(n.op)), None)


def mergeable(p: Partition, chosen: Sequence[int]) -> Refutation | None:
    """Why some groups cannot be one; None where they can.

    >>> from whet.fuse.partition import apart
    >>> from whet.ir.graph import Graph, apply, leaf
    >>> from whet.ir.types import DType, TensorType
    >>> x = leaf("input", "x", TensorType(DType.f32, (8,)))
    >>> a = apply("exp", x); b = apply("tanh", a); c = apply("add", a, b)
    >>> g = Graph((x,), (c,))
    >>> p = apart(g, frozenset(g.nodes))
    >>> mergeable(p, (0, 1)), mergeable(p, (0, 2)).reason
    (None, 'illegal move: a group would wait for itself')
    """
    for k in chosen:
        lone = opaque(p.groups[k].nodes)
        if lone is not None:
            return Refutation(f"{Reason.UNSUPPORTED}: a library call stays alone", lone)
    between = _between(p, chosen)
    if between is not None:
        return Refutation(f"{Reason.ILLEGAL}: a group would wait for itself", p.groups[between])
    return None


def _between(p: Partition, chosen: Sequence[int]) -> int | None:
    """A group between chosen ones: it reads from one and is read by one, through any others."""
    first, last, inside = min(chosen), max(chosen), set(chosen)
    below: set[int] = set()
    for k in range(first + 1, last):
        if k not in inside and any(s in inside or s in below for s in p.edges[k]):
            below.add(k)
    return next((s for k in chosen for s in p.edges[k] if s in below), None)


def united(p: Partition, chosen: Sequence[int]) -> Group:
    """Several groups as one; what one owns, no other one computes again."""
    place = {n: k for k, n in enumerate(p.graph.nodes)}
    own = {n for k in chosen for n in p.groups[k].nodes}
    again = {n for k in chosen for n in p.groups[k].copies} - own
    return Group(
        tuple(sorted(own, key=place.__getitem__)), tuple(sorted(again, key=place.__getitem__))
    )
