"""Printing and parsing are inverse, for any graph; and so are the things that texts are made of."""

from __future__ import annotations

import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import feeds, graphs
from whet.ir.graph import Graph, Node
from whet.ir.interp import evaluate
from whet.ir.text import parse_graph, parse_size, print_graph
from whet.ir.types import Poly, Size, floordiv


def same(a: Graph, b: Graph) -> None:
    assert a == b
    assert a.digest == b.digest
    assert a.nodes == b.nodes
    assert places(a) == places(b)


def places(g: Graph) -> dict[Node, str]:
    """Source lines; a text keeps no more than one blank of several."""
    return {n: " ".join(line.split()) for n, line in g.where.items()}


@given(graphs())
def test_graphs_survive_their_text(g):
    text = print_graph(g)
    back = parse_graph(text, g.constants)
    same(g, back)
    assert print_graph(back) == text


@given(graphs(symbolic=True))
def test_symbolic_graphs_too(g):
    same(g, parse_graph(print_graph(g), g.constants))


@given(graphs(opaque=False, most=6))
def test_what_is_read_computes_the_same(g):
    data = feeds(g)
    back = parse_graph(print_graph(g), g.constants)
    for a, b in zip(evaluate(g, data), evaluate(back, data), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@given(graphs())
def test_nodes_survive_pickling(g):
    assert pickle.loads(pickle.dumps(g.outputs)) == g.outputs


@given(graphs())
def test_rebuilding_without_a_change_changes_nothing(g):
    same(g, g.rewrite(lambda node, _: None))


def sizes() -> st.SearchStrategy[Size]:
    atoms = st.sampled_from(["N", "C", "H"]).map(Poly.symbol) | st.integers(-5, 9)

    def grow(inner: st.SearchStrategy[Size]) -> st.SearchStrategy[Size]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            pairs.map(lambda p: p[0] + p[1]),
            pairs.map(lambda p: p[0] - p[1]),
            pairs.map(lambda p: p[0] * p[1]),
            st.tuples(inner, st.integers(2, 5)).map(lambda p: floordiv(p[0], p[1])),
        )

    return st.recursive(atoms, grow, max_leaves=6)


@given(sizes())
def test_sizes_survive_their_text(size):
    assert parse_size(str(size)) == size


@given(sizes(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_sizes_compute_what_their_text_says(size, n, c, h):
    values = {"N": n, "C": c, "H": h}
    concrete = size.substitute(values) if isinstance(size, Poly) else size
    assert concrete == eval(str(size), {}, values)


def test_random_graphs_reach_most_of_the_table():
    """The strategy is worth as much as what it draws."""
    seen: set[str] = set()

    @settings(max_examples=400, database=None)
    @given(graphs(most=20))
    def draw(g):
        seen.update(n.op for n in g.nodes)

    draw()
    assert len(seen) > 50
    assert {"input", "parameter", "constant", "opaque", "item", "softmax~x"} <= seen
    assert seen >= {"conv2d", "linear", "reshape", "embedding", "layer_norm"}
