"""Texts that cannot be read are refused with their line. See property/test_text.py for the rest."""

from __future__ import annotations

import math

import pytest

from whet.errors import GraphError
from whet.ir.graph import Graph, apply, full, item, leaf, opaque
from whet.ir.text import parse_graph, parse_size, print_graph
from whet.ir.types import DType, Poly, TensorType, floordiv

X = leaf("input", "x", TensorType(DType.f32, (2, 3)))
GRADIENT = apply("linear~x", X, X, None, apply("matmul", X, apply("permute", X, dims=(1, 0))))
UNREADABLE = "a line of a graph cannot be read"

GOOD = """\
n0 = input(name='x', type=type('f32', (2, 3)))\t# f32[2, 3]
n1 = softmax(n0, axis=1)\t# f32[2, 3]\t@ model.py:7: y.softmax(1)
return graph(inputs=(n0,), outputs=(n1,), updates=())
"""


def test_the_form():
    y = apply("softmax", X, axis=1)
    g = Graph((X,), (y,), where={y: "model.py:7: y.softmax(1)"})
    assert print_graph(g) == GOOD
    assert repr(g) == GOOD
    back = parse_graph(GOOD)
    assert (back, dict(back.where)) == (g, dict(g.where))


def test_notes_may_be_left_out():
    text = "\n".join(line.partition("\t")[0] for line in GOOD.splitlines())
    assert parse_graph(text + "\n\n") == parse_graph(GOOD)


@pytest.mark.parametrize(
    "node",
    [
        full(math.inf, DType.f64), full(-math.inf, DType.f32), full(-0.0, DType.f32),
        full(1e-300, DType.f64), full(True, DType.bool), full(-3, DType.i64),
        full(2.0, DType.f32, (Poly.symbol("N"), floordiv(Poly.symbol("N") + 1, 2))),
        item(opaque("aten.f", (X,), "f(%0, 'a # b\\t@ c', [1, None])", (X.type, X.type)), 1),
        apply("linear", X, X, None), GRADIENT,
        apply("cast", X, dtype=DType.bf16), leaf("input", "a 'quoted' # name", X.type),
    ],
    ids=lambda n: n.op,
)  # fmt: skip
def test_every_kind_of_node_and_attribute(node):
    inputs = (
        tuple(n for n in Graph((), (node,)).nodes if n.op == "input") if node.op != "full" else ()
    )
    g = Graph(inputs, (node, node))
    assert parse_graph(print_graph(g)) == g


@pytest.fixture(autouse=True)
def loose(unverified):
    """Some of these graphs do not list their inputs."""


BAD = [
    (GOOD.replace("softmax(", "softmux("), UNREADABLE, "line 2: n1 = softmux("),
    (GOOD.replace("(n0, axis", "(n9, axis"), UNREADABLE, "line 2"),
    (GOOD.replace("axis=1)", "axis=1"), UNREADABLE, "line 2"),
    (GOOD.replace("axis=1", "axis=print(1)"), UNREADABLE,
     "not an attribute value: print(1)"),
    (GOOD.replace("axis=1", "axes=1"), UNREADABLE, "attribute axis is missing"),
    (GOOD.replace("# f32[2, 3]\t@", "# f64[2, 3]\t@"), "a node's type is not what its record says",
     "expected: f64[2, 3]"),
    (GOOD.partition("return")[0], "the text of a graph ends early", "return graph("),
    (GOOD.replace("outputs=(n1,)", "outputs=(n2,)"), UNREADABLE, "line 3"),
    (GOOD.replace("type('f32'", "type('f33'"), UNREADABLE, "f33"),
    ("", "the text of a graph ends early", "return graph("),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda b: f"{b[1]}, {b[2]}")
def test_faults_show_the_line(bad):
    text, summary, shown = bad
    with pytest.raises(GraphError) as fault:
        parse_graph(text)
    assert fault.value.summary == summary
    assert shown in str(fault.value)


@pytest.mark.parametrize("text", ["N.real", "f(N)", "1.5", "N ** 2", "'N'"])
def test_what_is_not_a_size(text):
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)
