"""Gradients of random graphs: well formed, of their leaves' types, and in bounds."""

from __future__ import annotations

from hypothesis import given

from tests.strategies import feeds, graphs
from whet.ir.gradient import grad
from whet.ir.graph import Graph, Node
from whet.ir.interp import evaluate
from whet.ir.text import parse_graph, print_graph
from whet.ir.verify import verify
from whet.rewrite.bounds import bounds


def smooth(g: Graph) -> tuple[Node, ...]:
    return tuple(n for n in g.nodes if n.op in ("input", "parameter") and n.dtype.is_float)


@given(graphs(opaque=False, most=8))
def test_joint_graphs_are_graphs(g):
    joint = verify(grad(g, smooth(g)))
    assert joint.outputs[: len(g.outputs)] == g.outputs
    gradients = joint.outputs[len(g.outputs) :]
    assert [n.type for n in gradients] == [n.type for n in smooth(g)]
    assert parse_graph(print_graph(joint), joint.constants) == joint
    values = evaluate(joint, feeds(joint))
    assert [tuple(v.shape) for v in values] == [n.shape for n in joint.outputs]


@given(graphs(opaque=False, symbolic=True, most=5))
def test_no_gradient_reads_outside_its_operands(g):
    for n in grad(g, smooth(g)).nodes:
        if not n.is_leaf:
            assert not bounds(n.instance).unproven, n
