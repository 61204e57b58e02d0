"""Texts that people read and other programs keep: a change in them is seen, and meant.

`--update-golden` writes them anew.
"""

from __future__ import annotations

import pytest

from tests.unit.ir.symbolic import row
from whet.errors import GraphError
from whet.ir.adjoint import adjoint
from whet.ir.gradient import grad
from whet.ir.graph import Graph, Node, _make, apply, item, leaf, opaque
from whet.ir.ops import TABLE
from whet.ir.text import print_graph
from whet.ir.types import DType, Poly, TensorType
from whet.ir.verify import verify


def f32(name: str, *shape: int | Poly, kind: str = "input") -> Node:
    return leaf(kind, name, TensorType(DType.f32, shape))


def block() -> Graph:
    """A transformer block's half at a symbolic batch, with source lines."""
    n = Poly.symbol("N")
    x = f32("x", n, 5, 6)
    weights = [f32(f"attn.{w}", 6, 6, kind="parameter") for w in ("q", "k", "v", "o")]
    gamma = f32("norm.weight", 6, kind="parameter")
    y = apply("layer_norm", x, gamma, None, size=(6,), eps=1e-05)
    heads = []
    for w in weights[:3]:
        split = apply("reshape", apply("linear", y, w, None), size=(n, 5, 3, 2))
        heads.append(apply("permute", split, dims=(0, 2, 1, 3)))
    a = apply("attention", *heads, None, scale=0.5, causal=True, group=1)
    merged = apply("reshape", apply("permute", a, dims=(0, 2, 1, 3)), size=(n, 5, 6))
    out = apply("add", apply("linear", merged, weights[3], None), x)
    where = {y: "model.py:12: y = self.norm(x)", out: "model.py:19: return x + self.o(a)"}
    return Graph((x,), (out,), where=where)


def test_records_at_symbolic_sizes(golden):
    """Every operator, bound: axes, extents and atomic indices."""
    golden("records.txt", "\n\n".join(repr(row(name)) for name in sorted(TABLE)))


def test_backward_records(golden):
    """The gradient of every operand of every operator that is not a plain function."""
    texts = []
    for name in sorted(TABLE):
        i = row(name)
        plain = len(i.lets) == 1 and {*i.operands} <= {"x", "z"} and name not in ("matmul", "pad")
        for operand in () if plain and not i.extents.keys() - {"b0", "b1", "b2"} else i.operands:
            back = adjoint(i, operand)
            texts.append("\n".join([back.name, *(f"  {let!r}" for let in back.lets)]))
    golden("backward.txt", "\n\n".join(texts))


def test_graphs(golden):
    golden("attention_block.txt", print_graph(verify(block())))


def test_joint_graphs(golden):
    g = block()
    golden("attention_block_joint.txt", print_graph(verify(grad(g, g.parameters))))


def test_library_calls(golden):
    x = f32("x", 2, 8)
    top = opaque(
        "aten.topk.default", (x,), "topk(%0, 3, dim=-1)",
        (TensorType(DType.f32, (2, 3)), TensorType(DType.i64, (2, 3))),
    )  # fmt: skip
    g = Graph((x,), (item(top, 0), item(top, 1)), where={top: "router.py:8: x.topk(3)"})
    golden("topk.txt", print_graph(verify(g)))


@pytest.mark.usefixtures("unverified")
def test_the_message_of_a_fault(golden):
    """Ten lines around, the node marked, expected and got."""
    g = block()
    wrong = next(n for n in g.nodes if n.op == "attention")
    bent = _make(wrong.op, wrong.attrs, wrong.args, TensorType(DType.f32, (7, 3, 5, 2)))
    with pytest.raises(GraphError) as fault:
        verify(g.replace({wrong: bent}))
    golden("fault.txt", str(fault.value))
