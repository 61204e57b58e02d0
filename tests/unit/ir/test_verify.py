"""What is not well formed is refused, and the message shows the place."""

from __future__ import annotations

import pytest
import torch

from whet.errors import GraphError
from whet.ir.graph import Graph, Node, _make, apply, item, leaf, opaque
from whet.ir.types import DType, Poly, TensorType
from whet.ir.verify import excerpt, verify

pytestmark = pytest.mark.usefixtures("unverified")

F32 = DType.f32


def x(name: str = "x", *shape: int | Poly, kind: str = "input") -> Node:
    return leaf(kind, name, TensorType(F32, shape or (2, 3)))


def typed(node: Node, *shape: int) -> Node:
    """`node` with a type that its record does not give it."""
    return _make(node.op, node.attrs, node.args, TensorType(F32, shape))


def top(node: Node) -> Node:
    types = (TensorType(F32, (2, 2)), TensorType(DType.i64, (2, 2)))
    return opaque("aten.topk.default", (node,), "topk(%0, 2)", types)


def test_good_graphs_are_returned():
    n = Poly.symbol("N")
    a, w, c = x("a", n, 3), x("w", 5, 3, kind="parameter"), x("c", 5, kind="constant")
    y = apply("add", apply("linear", a, w, None), c)
    t = top(x("b", 2, 4))
    g = Graph(
        (a, x("b", 2, 4), x("unused")),
        (y, item(t, 1), y),
        ((w, apply("neg", w)),),
        {"c": torch.ones(5)},
    )
    assert verify(g) is g


@pytest.mark.parametrize("n", [10_000])
def test_deep_chains(n):
    y = x()
    for _ in range(n):
        y = apply("relu", apply("neg", y))
    assert len(verify(Graph((x(),), (y,))).nodes) == 2 * n + 1


def broken() -> dict[str, tuple[Graph, str, str]]:
    """name: graph, summary, and a line of the message."""
    a, w = x(), x("w", kind="parameter")
    c = x("c", kind="constant")
    y = apply("add", a, w)
    t = top(a)
    m, k = Poly.symbol("M"), Poly.symbol("K")
    wrong = typed(apply("relu", a), 3, 2)
    stray = _make("conv9d", (), (a,), a.type)
    fewer = _make("linear", (), (a, None, None), a.type)
    pair = _make("add", (), (a, x("z", 4)), a.type)
    return {
        "type": (Graph((a,), (wrong,)), "a node's type is not what its record says",
                 "expected: f32[2, 3]"),
        "kind": (Graph((a,), (stray,)), "a node of no known kind", "got:      conv9d"),
        "left out": (Graph((a,), (fewer,)), "linear does not take these operands",
                     "operand w may not be left out"),
        "shapes": (Graph((a, x("z", 4)), (pair,)), "add does not take these operands",
                   "sizes do not broadcast"),
        "name": (Graph((a, x("x", 4)), (y,)), "two leaves are called x", "got:      input f32[4]"),
        "name of two kinds": (Graph((x("w"),), (apply("add", w, x("w")),)),
                              "two leaves are called w", "got:      parameter f32[2, 3]"),
        "input": (Graph((w,), (y,)), "only input leaves are inputs", "got:      parameter"),
        "missing input": (Graph((), (y,)), "an input leaf is not among the graph's inputs", "> n0"),
        "twice": (Graph((a, a), (y,)), "an input is listed twice", "> n0"),
        "update": (Graph((a,), (y,), ((c, y),), {"c": torch.ones(2, 3)}),
                   "only inputs and parameters are updated", "got:      constant"),
        "update's type": (Graph((a,), (y,), ((w, apply("sum", w, dims=(0,))),)),
                          "w is updated with a value of another type", "got:      f32[3]"),
        "two updates": (Graph((a,), (y,), ((w, y), (w, a))), "w is updated twice", "> "),
        "data": (Graph((a,), (c,)), "constant c has no data", "> n1 = constant(name='c'"),
        "data's shape": (Graph((a,), (c,), (), {"c": torch.ones(3)}),
                         "constant c has data of another shape", "got:      [3]"),
        "item": (Graph((a,), (_make("item", (("index", 2),), (t,), a.type),)),
                 "an item's result does not exist", "expected: 0 … 1"),
        "item's source": (Graph((a,), (_make("item", (("index", 0),), (a,), a.type),)),
                          "an item takes a result of an opaque node", "got:      input"),
        "item's type": (Graph((a,), (typed(item(t, 0), 9),)),
                        "an item has its result's type", "got:      f32[9]"),
        "opaque": (Graph((a,), (opaque("f", (a,), "f(%1)", (a.type,)),)),
                   "an opaque call refers to an operand that it does not have", "got:      %1"),
        "sizes": (Graph((x("p", m), x("q", k), x("r", 4), x("s", 6)), (
                      apply("add", x("p", m), x("q", k)), apply("add", x("p", m), x("r", 4)),
                      apply("add", x("q", k), x("s", 6)))),
                  "sizes contradict each other", "> "),
        "size": (Graph((x("p", m + 3), x("q", 4)), (apply("add", x("p", m + 3), x("q", 4)),)),
                 "size M would have to be 1", "a symbolic size is at least 2"),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(broken()))
def test_faults(name):
    graph, summary, line = broken()[name]
    with pytest.raises(GraphError) as fault:
        verify(graph)
    assert fault.value.summary.startswith(summary)
    assert line in str(fault.value)
    assert "> n" in str(fault.value)


def test_a_graph_read_from_text_may_be_without_data():
    g = Graph((), (x("c", kind="constant"),))
    assert verify(g, data=False) is g


def test_the_ten_lines_around_a_fault():
    y = x()
    for _ in range(20):
        y = apply("neg", y)
    g = Graph((x(),), (y,))
    assert excerpt(g, g.nodes[10]).splitlines() == [
        "  … 5 more above",
        *(f"  n{k} = neg(n{k - 1})  # f32[2, 3]" for k in range(5, 10)),
        "> n10 = neg(n9)  # f32[2, 3]",
        *(f"  n{k} = neg(n{k - 1})  # f32[2, 3]" for k in range(11, 16)),
        "  … 6 more below",
    ]
