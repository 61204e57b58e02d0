"""What a graph would cost, before it is measured: a roofline for each library call.

A node costs the larger of its operations at the library's rate and its bytes at memory's rate, plus
a constant for the call. Views are free, and so is what depends on no input: it is computed once.
The estimate ranks rewrites; what is kept is decided by measured time.
"""

from __future__ import annotations

import functools

from whet.backend.aten import VIEWS
from whet.backend.lowered import body_nodes
from whet.ir.cost import node_cost
from whet.ir.graph import Graph, Node
from whet.search import Cost, Source

FLOPS = 4e11  # operations a second that libraries reach
BYTES = 6e10  # bytes a second of main memory
CALL_S = 2e-6  # seconds of one library call, its work aside


def predicted(graph: Graph) -> Cost:
    """Predicted cost of one run of `graph`, which must be of concrete shapes."""
    body = body_nodes(graph)
    seconds = moved = 0.0
    for node in graph.nodes:
        if node in body and not node.is_leaf and node.op not in VIEWS and node.op != "item":
            s, b = _node(node)
            seconds, moved = seconds + s, moved + b
    return Cost(seconds, moved, Source.PREDICTED)


@functools.lru_cache(maxsize=65536)
def _node(node: Node) -> tuple[float, float]:
    cost = node_cost(node)
    assert isinstance(cost.flops, int)
    assert isinstance(cost.bytes, int)
    return max(cost.flops / FLOPS, cost.bytes / BYTES) + CALL_S, float(cost.bytes)
