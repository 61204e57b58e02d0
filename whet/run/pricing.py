"""What a graph would cost, before it is measured: a roofline at each cluster's boundary.

A node costs the larger of its operations at the library's rate and its bytes at memory's rate, plus
a constant for the call. Views are free, and so is what depends on no input: it is computed once.
A pointwise operator right behind another node costs little, since compilers fuse it. The estimate
ranks rewrites; what is kept is decided by measured time.
"""

from __future__ import annotations

from whet.backend.aten import VIEWS
from whet.backend.lowered import body_nodes
from whet.ir.cost import node_cost
from whet.ir.graph import Graph
from whet.search import Cost, Source

FLOPS = 4e11  # operations a second that libraries reach
BYTES = 6e10  # bytes a second of main memory
CALL_S = 2e-6  # seconds of one library call, its work aside


def predicted(graph: Graph) -> Cost:
    """Predicted cost of one run of `graph`, which must be of concrete shapes."""
    body = body_nodes(graph)
    seconds = moved = 0.0
    for node in graph.nodes:
        if node not in body or node.is_leaf or node.op in VIEWS or node.op == "item":
            continue
        cost = node_cost(node)
        bytes = float(str(cost.bytes))
        moved += bytes
        seconds += max(float(str(cost.flops)) / FLOPS, bytes / BYTES) + CALL_S
    return Cost(seconds, moved, Source.PREDICTED)
