"""What a graph would cost, before it is measured: a roofline for each call, or for each kernel.

    predicted(graph)     every operator a library call of its own
    offers(cluster)      a cluster of operators as one kernel, for `whet.rewrite.extract`

A call costs the larger of its operations at the library's rate and its bytes at memory's rate, plus
a constant for the call. Of a cluster only what crosses its border is moved. Views are free, and so
is what depends on no input: it is computed once. The estimate ranks rewrites; what is kept is
decided by measured time.
"""

from __future__ import annotations

import functools

from whet.backend.aten import VIEWS
from whet.backend.lowered import body_nodes
from whet.ir.cost import node_cost, traffic
from whet.ir.graph import Graph, Node
from whet.ir.types import Poly, TensorType
from whet.rewrite.columns import ROWS, Offer, Role, role
from whet.rewrite.solve import Pricing
from whet.search import Cost, Source

FLOPS = 4e11  # operations a second that libraries reach
BYTES = 6e10  # bytes a second of main memory
CALL_S = 2e-6  # seconds of one library call, its work aside


def predicted(graph: Graph, training: bool = False) -> Cost:
    """Predicted cost of one run of `graph`.

    Args:
        training: parameters change with every run, so that nothing is computed ahead of time but
            what constants alone decide.
    """
    body = _trained(graph) if training else body_nodes(graph)
    seconds = moved = 0.0
    for node in graph.nodes:
        if node in body and not node.is_leaf and node.op not in VIEWS and node.op != "item":
            s, b = _node(node)
            seconds, moved = seconds + s, moved + b
    return Cost(seconds, moved, Source.PREDICTED)


@functools.lru_cache(maxsize=65536)
def _node(node: Node) -> tuple[float, float]:
    cost = node_cost(node)
    flops, moved = _number(cost.flops), _number(cost.bytes)
    return max(flops / FLOPS, moved / BYTES) + CALL_S, moved


def _trained(graph: Graph) -> frozenset[Node]:
    """Nodes that depend on an input or a parameter."""
    found: set[Node] = set()
    for n in graph.nodes:
        if n.op in ("input", "parameter", "opaque") or any(a in found for a in n.operands):
            found.add(n)
    return frozenset(found)


CHANNELS_LAST = "channels-last"
"""Layout of images between convolutions, which libraries compute with the channels innermost."""

IMAGES = frozenset({"conv2d"})


def offers(cluster: Graph) -> list[Offer]:
    """How libraries, and compilers that fuse what is computed element by element, run a cluster.

    One contraction with what is computed of each of its results; or one reduction with what is
    computed element by element around it.
    """
    nodes = [n for n in cluster.nodes if not n.is_leaf and not _is_number(n)]
    working = [n for n in nodes if n.op not in VIEWS and n.op != "item"]
    root = cluster.results[0]
    images = all(len(n.shape) == 4 for n in (root, *cluster.inputs))
    last = Offer(Cost.NONE, (CHANNELS_LAST,) * len(cluster.inputs), CHANNELS_LAST)
    if not working:
        free = Cost(0.0, 0.0, Source.PREDICTED)
        same = images and {n.op for n in nodes} == {"slice"}
        return [Offer(free), Offer(free, last.reads, last.out)] if same else [Offer(free)]
    if not _fits(cluster, working):
        return []
    cost = _kernel(cluster, working)
    anchor = next((n for n in working if role(n) is Role.CONTRACTS), None)
    if not images or (anchor is not None and anchor.op not in IMAGES):
        return [Offer(cost)]
    moved = cost
    if anchor is not None:  # a library brings images from rows to channels last, and back
        for n in (root, *cluster.inputs):
            moved = moved + converted(n.type, ROWS, CHANNELS_LAST)
    return [Offer(moved), Offer(cost, last.reads, last.out)]


def pricing(graph: Graph, training: bool = False) -> Pricing:
    """Prices for the regions of a graph: between them images lie as its convolutions want them.

    Args:
        training: as in `predicted`.
    """
    convolves = any(n.op in IMAGES for n in graph.nodes)

    def border(type: TensorType) -> str:
        image = convolves and len(type.shape) == 4 and type.dtype.is_float
        return CHANNELS_LAST if image else ROWS

    whole = functools.partial(predicted, training=training)
    return Pricing(offers, whole, border, converted)


def converted(type: TensorType, before: str, after: str) -> Cost:
    """What it costs to copy a value from one layout to another."""
    size = _number(type.nbytes)
    return Cost(2 * size / BYTES + CALL_S, 2 * size, Source.PREDICTED)


def _fits(cluster: Graph, working: list[Node]) -> bool:
    """Whether all of it can be one kernel."""
    heavy = [n for n in working if role(n) >= Role.REDUCES]
    if len(working) == 1:
        return True
    if len(heavy) > 1 or any(role(n) is Role.ALONE for n in working):
        return False
    if not heavy or role(heavy[0]) is Role.REDUCES:
        return True
    (anchor,) = heavy
    after = [n for n in working if n is not anchor]
    binary = [n for n in after if len(set(n.operands)) > 1 and not any(map(_is_number, n.operands))]
    return len(binary) <= 1 and len(after) - len(binary) <= 1 and _follow(anchor, after)


def _follow(anchor: Node, after: list[Node]) -> bool:
    """Whether each computes on the result of the one before, of one type, with no views between."""
    return all(
        last in n.operands and n.type == last.type
        for last, n in zip((anchor, *after), after, strict=False)
    )


def _kernel(cluster: Graph, working: list[Node]) -> Cost:
    flops = moved = 0.0
    reads: dict[Node, float] = {}
    for n in working:
        flops += _number(node_cost(n).flops)
        for a, size in zip(n.operands, traffic(n)[0], strict=True):
            source = _viewed(a)
            reads[source] = reads.get(source, 0.0) + _number(size)
    for source, read in reads.items():
        if source.is_leaf:
            moved += min(read, _number(source.type.nbytes))
    moved += sum(_number(n.type.nbytes) for n in cluster.results)
    return Cost(max(flops / FLOPS, moved / BYTES) + CALL_S, moved, Source.PREDICTED)


def _viewed(node: Node) -> Node:
    """What a view looks at."""
    while node.op in VIEWS and node.op != "cast":
        (node,) = node.operands[:1]
    return node


def _is_number(node: Node) -> bool:
    return node.op == "full" and node.shape == ()


def _number(size: object) -> float:
    """A size as a number; what is symbolic counts as if each symbol were 64."""
    if isinstance(size, Poly):
        size = size.substitute(dict.fromkeys(size.symbols(), 64))
    assert isinstance(size, (int, float))
    return float(size)
