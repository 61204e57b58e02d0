"""The partition that libraries can run: convex, nothing computed twice, exact keys."""

from __future__ import annotations

import pytest

from whet.backend.cluster import Cluster, clusters
from whet.backend.lowered import body_nodes
from whet.ir.graph import Graph, Node, apply, leaf, topological
from whet.ir.types import DType, TensorType


def at(kind: str, name: str, *shape: int, dtype: DType = DType.f32) -> Node:
    return leaf(kind, name, TensorType(dtype, shape))


X, W, B = at("input", "x", 3, 5), at("parameter", "w", 5, 5), at("parameter", "b", 5)
Y = at("input", "y", 3, 5)
LINEAR = apply("linear", X, W, B)


def partition(*outputs: Node) -> list[list[str]]:
    """Operators of each cluster."""
    return [[n.op for n in c.nodes] for c in found(*outputs)]


def found(*outputs: Node) -> list[Cluster]:
    graph = Graph(tuple(n for n in topological(outputs) if n.op == "input"), outputs)
    return list(clusters(graph, body_nodes(graph)).values())


def test_one_binary_then_one_unary() -> None:
    total = apply("add", LINEAR, Y)
    assert partition(LINEAR) == [["linear"]]
    assert partition(apply("relu", LINEAR)) == [["linear", "relu"]]
    assert partition(apply("relu", total)) == [["linear", "add", "relu"]]
    assert partition(apply("add", apply("relu", LINEAR), Y)) == [["linear", "relu"]]
    assert partition(apply("gelu", apply("relu", LINEAR))) == [["linear", "relu"]]
    assert partition(apply("mul", total, Y)) == [["linear", "add"]]


def test_what_others_read_is_not_swallowed() -> None:
    relu = apply("relu", LINEAR)
    assert partition(relu, LINEAR) == [["linear"]]
    assert partition(relu, apply("gelu", LINEAR)) == [["linear"]]
    assert partition(apply("add", LINEAR, LINEAR)) == [["linear"]]
    assert partition(apply("relu", apply("add", LINEAR, Y)), apply("relu", LINEAR)) == [["linear"]]


def test_an_operand_that_broadcasts_is_not_fused() -> None:
    row = at("parameter", "row", 5)
    assert partition(apply("add", LINEAR, row)) == [["linear"]]


def test_two_anchors_do_not_share_an_epilogue() -> None:
    other = apply("linear", Y, W, None)
    both = partition(apply("relu", apply("add", LINEAR, other)))
    assert sorted(both) == [["linear"], ["linear", "add", "relu"]]


def test_clusters_have_no_cycles() -> None:
    """The other operand may depend on the same inputs, never on the cluster itself."""
    deep = apply("add", LINEAR, apply("exp", LINEAR))
    assert partition(deep) == [["linear"]]


def test_operands_and_places() -> None:
    (c,) = found(apply("relu", apply("add", Y, LINEAR)))
    assert c.operands == (X, W, B, Y)
    assert c.fixed == {1, 2}
    assert (c.other(0), c.other(1)) == (Y, None)
    assert (c.anchor, c.root.op) == (LINEAR, "relu")
    assert repr(c).startswith("linear+add+relu(")


def test_prologues_are_not_clustered() -> None:
    assert partition(apply("add", apply("linear", at("parameter", "v", 3, 5), W, B), X)) == []


DOUBLE = (at("input", "x", 3, 5, dtype=DType.f64), at("parameter", "w", 5, 5, dtype=DType.f64))
OTHERS = {
    "operands": apply("linear", Y, W, None),
    "epilogue": apply("relu", LINEAR),
    "shape": apply("linear", X, at("parameter", "v", 4, 5), at("parameter", "c", 4)),
    "what is fixed": apply("linear", X, at("input", "z", 5, 5), B),
    "operator": apply("matmul", X, W),
    "element type": apply("linear", *DOUBLE, at("parameter", "b", 5, dtype=DType.f64)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_keys_differ_where_times_may(other: Node) -> None:
    (one,), (two,) = found(LINEAR), found(other)
    assert one.key != two.key


def test_keys_do_not_hold_names() -> None:
    (one,) = found(LINEAR)
    again = apply("linear", Y, at("parameter", "other", 5, 5), at("parameter", "bias", 5))
    (two,) = found(again)
    assert one.key == two.key
    (three,) = clusters(Graph((X,), (LINEAR,)), frozenset({X, W, LINEAR})).values()
    assert three.key != one.key  # the weight is not fixed there


def test_the_order_of_operands_is_in_the_key() -> None:
    (one,) = found(apply("mul", LINEAR, Y))
    (two,) = found(apply("mul", Y, LINEAR))
    assert one.operands == two.operands
    assert one.key == two.key  # both are products: whichever comes first takes as long
