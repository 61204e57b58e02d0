"""Numbers show what a proof would have missed."""

from __future__ import annotations

from whet.ir.graph import Graph, apply, full, leaf
from whet.ir.types import DType, TensorType
from whet.run.validate import TOLERANCE, WORK, compare

X = leaf("input", "x", TensorType(DType.f32, (3, 4)))
W = leaf("parameter", "w", TensorType(DType.f32, (5, 4)))


def _graph(scale: float, *, after: bool) -> Graph:
    s = full(scale, DType.f32)
    if after:
        return Graph((X,), (apply("mul", apply("linear", X, W, None), s),))
    return Graph((X,), (apply("linear", X, apply("mul", W, s), None),))


def test_equal_graphs_agree_far_beyond_single_precision():
    assert compare(_graph(3.0, after=True), _graph(3.0, after=False)) < TOLERANCE


def test_a_wrong_number_is_seen():
    error = compare(_graph(3.0, after=True), _graph(3.0001, after=False))
    assert 1e-5 < error < 1e-3


def test_what_would_take_long_is_left_out():
    size = 4096
    x = leaf("input", "x", TensorType(DType.f32, (size, size)))
    graph = Graph((x,), (apply("matmul", x, x),))
    assert 2 * size**3 > WORK
    assert compare(graph, graph) is None
