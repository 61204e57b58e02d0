"""Gradients of a whole graph: reverse mode over its nodes.

    before:  y = f(x, w)
    after:   y = f(x, w); dx = f~x(x, w, dy); dw = f~w(x, w, dy)

Each operator passes its cotangent on by the operators derived from its record (`adjoint`); what
reaches a value over several ways is added up. The result is an ordinary graph, forward and backward
together, and has gradients itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.errors import GraphError
from whet.ir.graph import Graph, Node, apply, full, leaf, topological
from whet.ir.ops import exists

Cotangents = Sequence[Node | None]


def grad(graph: Graph, wrt: Sequence[Node], cotangents: Cotangents | None = None) -> Graph:
    """The graph that also computes the gradients of some values.

    Args:
        graph: any graph; opaque nodes may not lie between `wrt` and the outputs.
        wrt: values of the graph, often its inputs or parameters; of a float type.
        cotangents: one node of each output's type, or None for an output that does not count;
            inputs that are new in them are added to the graph's. By default each float output
            has an input `d_<position>` for it.

    Returns:
        A graph with the outputs of `graph`, then one gradient for each of `wrt`, of its type; zeros
        where no output depends on it.

    Raises:
        GraphError: a gradient would have to pass an opaque node; or types do not fit.
    """
    inputs = graph.inputs
    if cotangents is None:
        cotangents = [
            leaf("input", f"d_{k}", o.type) if o.dtype.is_float else None
            for k, o in enumerate(graph.outputs)
        ]
        inputs += tuple(c for c in cotangents if c is not None)
    _check(graph, wrt, cotangents)
    sums: dict[Node, Node] = {}
    for output, cotangent in zip(graph.outputs, cotangents, strict=True):
        if cotangent is not None:
            _add(sums, output, cotangent)
    wanted = _above(graph, wrt)
    siblings = _siblings(graph)
    for node in reversed(graph.nodes):
        if node in wanted and not node.is_leaf:
            group = siblings.get(node, (node,))
            if node is group[0] and any(n in sums for n in group):
                _pass(node, group, wanted, sums, graph)
    gradients = tuple(sums.get(n) or full(0, n.dtype, n.shape) for n in wrt)
    new = [n for n in topological(gradients) if n.op == "input" and n not in inputs]
    return Graph(
        (*inputs, *new), (*graph.outputs, *gradients), graph.updates, graph.constants,
        dict(graph.where),
    )  # fmt: skip


def _pass(
    node: Node, group: Sequence[Node], wanted: set[Node], sums: dict[Node, Node], graph: Graph
) -> None:
    """Add what the cotangents of one operator's results contribute to its operands."""
    if not exists(node.op):
        raise GraphError(
            f"no gradient passes a node of kind {node.op}",
            expected="operators of the table between the outputs and what they are derived by",
            got=node, where=graph.where.get(node),
        )  # fmt: skip
    instance = node.instance
    found = {str(n.attr("out", instance.outs[0])): sums[n] for n in group if n in sums}
    attrs = {k: v for k, v in node.attrs if k != "out"}
    names = iter(instance.operands)
    for operand in node.args:
        if operand is None:
            continue
        name = next(names)
        if operand in wanted and operand.dtype.is_float:
            given = [found.get(o) for o in instance.outs]
            _add(sums, operand, apply(f"{node.op}~{name}", *node.args, *given, **attrs))


def _siblings(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """Nodes that are results of the same call, in topological order; only where several are."""
    calls: dict[object, list[Node]] = {}
    for n in graph.nodes:
        if n.attr("out") is not None:
            attrs = tuple(p for p in n.attrs if p[0] != "out")
            calls.setdefault((n.op, n.args, attrs), []).append(n)
    return {n: tuple(group) for group in calls.values() for n in group}


def _above(graph: Graph, wrt: Sequence[Node]) -> set[Node]:
    """Everything that depends on one of `wrt`, themselves included."""
    found = set(wrt)
    for node in graph.nodes:
        if any(a in found for a in node.operands):
            found.add(node)
    return found


def _add(sums: dict[Node, Node], node: Node, share: Node) -> None:
    sums[node] = apply("add", sums[node], share) if node in sums else share


def _check(graph: Graph, wrt: Sequence[Node], cotangents: Cotangents) -> None:
    if len(cotangents) != len(graph.outputs):
        raise GraphError(
            "one cotangent for each output", expected=len(graph.outputs), got=len(cotangents)
        )
    for output, cotangent in zip(graph.outputs, cotangents, strict=True):
        if cotangent is not None and cotangent.type != output.type:
            raise GraphError(
                "a cotangent has its output's type", expected=output.type, got=cotangent.type
            )
    for n in wrt:
        if not n.dtype.is_float:
            raise GraphError("gradients are of float values", got=n)
