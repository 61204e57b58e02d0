"""Nodes are hash-consed and immutable; graphs are walked and rebuilt without recursion."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest

from whet.errors import GraphError, RecordError
from whet.ir.graph import (
    Graph,
    Node,
    apply,
    attr_text,
    full,
    item,
    leaf,
    opaque,
    rebuilt,
    topological,
)
from whet.ir.types import DType, Poly, TensorType

F32 = DType.f32


def x(name: str = "x", *shape: int | Poly) -> Node:
    return leaf("input", name, TensorType(F32, shape or (2, 3)))


# -- nodes -----------------------------------------------------------------------------------------
def test_equal_nodes_are_the_same_object():
    assert apply("relu", x()) is apply("relu", x())
    assert apply("softmax", x(), axis=1) is not apply("softmax", x(), axis=0)
    assert apply("add", x("a"), x("b")) is not apply("add", x("b"), x("a"))
    assert leaf("input", "x", TensorType(F32, (2,))) is not leaf(
        "parameter", "x", TensorType(F32, (2,))
    )
    assert x("x", 2) is not x("x", 3)


def test_attributes_of_different_types_stay_apart():
    assert full(1, DType.f32) is not full(1.0, DType.f32)
    assert full(0.0, DType.f32) is not full(-0.0, DType.f32)
    assert full(1.0, DType.f32) is not full(1.0, DType.f64)
    assert full(True, DType.bool) is not full(1, DType.bool)


def test_nodes_survive_pickling_and_copying():
    y = apply("linear", x(), x("w", 4, 3), None)
    assert pickle.loads(pickle.dumps(y)) is y
    assert copy.deepcopy(y) is y


def test_nodes_that_nobody_holds_are_forgotten():
    ref = weakref.ref(apply("exp", x("only_here", 5, 7)))
    gc.collect()
    assert ref() is None


def test_nodes_are_made_by_functions():
    with pytest.raises(TypeError, match="make nodes with apply"):
        Node("relu", (), (), TensorType(F32, ()))
    with pytest.raises(GraphError, match="unknown kind of leaf\n  expected: input, parameter"):
        leaf("buffer", "b", TensorType(F32, ()))


def test_digests_are_the_same_in_another_process():
    program = """
from whet.ir.graph import apply, leaf
from whet.ir.types import DType, TensorType
x = leaf("input", "x", TensorType(DType.f32, (2, 3)))
print(apply("softmax", apply("linear", x, leaf("parameter", "w", x.type), None), axis=-1).digest)
"""
    w = leaf("parameter", "w", x().type)
    here = apply("softmax", apply("linear", x(), w, None), axis=-1).digest
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=".",
        env={"PYTHONHASHSEED": "17", "PATH": ""},
    )  # fmt: skip
    assert there.stdout.strip() == here
    assert len(here) == 32


def test_types_are_inferred():
    n = Poly.symbol("N")
    assert apply("linear", x("x", n, 3), x("w", 4, 3), None).type == TensorType(F32, (n, 4))
    assert apply("lt", x(), x()).dtype is DType.bool
    assert apply("argmax", x(), axis=0).type == TensorType(DType.i64, (3,))
    assert apply("cast", x(), dtype=DType.f16).dtype is DType.f16
    assert apply("add", x(), full(2, DType.i64)).dtype is F32
    cell = (x("x", 2, 3), x("h", 2, 4), x("c", 2, 4), x("w", 16, 3), x("u", 16, 4), None)
    assert apply("lstm_cell", *cell, out="c1").shape == (2, 4)
    with pytest.raises(RecordError, match="has no result c2"):
        apply("lstm_cell", *cell, out="c2")


def test_what_a_node_shows():
    w = x("w", 4, 3)
    y = apply("linear", x(), w, None)
    assert repr(y).endswith(f": f32[2, 4] = linear({x().digest[:6]}, {w.digest[:6]}, None)")
    assert repr(x()).endswith(": f32[2, 3] = input(name='x')")
    assert (x().name, x().is_leaf, y.is_leaf, y.attr("axis", 7)) == ("x", True, False, 7)
    assert y.operands == (x(), x("w", 4, 3))
    with pytest.raises(RecordError, match="a node of kind input has no record"):
        _ = x().instance


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"), (True, "True"), (1.0, "1.0"), (float("inf"), "inf"), ("a'b", '"a\'b"'),
        (None, "None"),
        ((1,), "(1,)"), ((1, (2, 3)), "(1, (2, 3))"), ((), "()"), (DType.f16, "dtype.f16"),
        (Poly.symbol("N") * 2, "size('2*N')"), (TensorType(F32, (2,)), "type('f32', (2,))"),
    ],
)  # fmt: skip
def test_attributes_as_text(value, text):
    assert attr_text(value) == text


def test_attributes_are_plain_data():
    with pytest.raises(GraphError) as fault:
        apply("sum", x(), dims=[0])
    assert "an attribute must be plain data" in str(fault.value)
    assert "got:      [0] of type list" in str(fault.value)


def test_opaque_calls_and_their_results():
    types = (TensorType(F32, (2, 1)), TensorType(DType.i64, (2, 1)))
    top = opaque("aten.topk.default", (x(),), "topk(%0, 1)", types)
    assert (top.type, item(top, 1).type) == types
    other = x("other")
    assert rebuilt(item(top, 1), [rebuilt(top, [other])]).operands[0].operands == (other,)


# -- graphs ----------------------------------------------------------------------------------------
def chain(n: int) -> Graph:
    y = x()
    for k in range(n):
        y = apply("add", apply("neg", y), full(k % 7, F32))
    return Graph((x(),), (y,))


def test_operands_stand_before_users():
    a, b = x("a"), x("b")
    y = apply("add", apply("neg", a), apply("mul", a, b))
    order = topological((y,))
    assert order == (a, apply("neg", a), b, apply("mul", a, b), y)
    assert topological((y, a, y)) == order
    g = Graph((b, a), (y,))
    assert g.nodes[:2] == (b, a)
    assert g.users[a] == (apply("neg", a), apply("mul", a, b))
    assert g.users[y] == ()
    square = Graph((a,), (apply("mul", a, a),))
    assert square.users[a] == square.outputs


def test_chains_of_ten_thousand():
    g = chain(10_000)
    assert len(g.nodes) == 20_008
    negated = g.rewrite(lambda n, args: apply("abs", *args) if n.op == "neg" else None)
    assert sum(n.op == "abs" for n in negated.nodes) == 10_000
    assert negated.digest != g.digest
    assert pickle.loads(pickle.dumps(g.digest)) == g.digest


def test_replacing_is_everywhere_at_once():
    a, b = x("a"), x("b")
    neg = apply("neg", a)
    g = Graph((a, b), (apply("add", neg, neg), neg), ((b, neg),))
    h = g.replace({neg: b})
    assert h.outputs == (apply("add", b, b), b)
    assert h.updates == ((b, b),)
    assert h.inputs == g.inputs
    swapped = Graph((a, b), (apply("sub", a, b),)).replace({a: b, b: a})
    assert swapped.outputs == (apply("sub", b, a),)


def test_replacing_infers_types_again():
    a = x("a", 2, 3)
    g = Graph((a,), (apply("sum", apply("neg", a), dims=(0,)),))
    h = g.replace({apply("neg", a): apply("concat", a, a, axis=1)})
    assert h.outputs[0].shape == (6,)


def test_new_nodes_inherit_source_lines():
    a = x("a")
    neg = apply("neg", a)
    g = Graph((a,), (apply("exp", neg),), where={neg: "model.py:3: -a"})
    h = g.replace({neg: apply("mul", apply("abs", a), full(-1.0, F32))})
    assert h.where[apply("abs", a)] == h.where[h.outputs[0].operands[0]] == "model.py:3: -a"
    assert h.outputs[0] not in h.where


def test_equality_is_of_what_is_computed():
    a = x("a")
    g = Graph((a,), (apply("neg", a),), where={a: "model.py:1"})
    assert g == Graph((a,), (apply("neg", a),))
    assert g.digest == Graph((a,), (apply("neg", a),)).digest
    assert g != Graph((a,), (apply("abs", a),))
    assert g.digest != Graph((a,), (apply("neg", a), apply("neg", a))).digest
    assert Graph((a,), (a,), ((a, apply("neg", a)),)).digest != Graph((a,), (a,)).digest


def test_leaves_by_kind_and_updated_ones():
    a, w = x("a"), leaf("parameter", "w", TensorType(F32, (2, 3)))
    count = leaf("parameter", "count", TensorType(DType.i64, ()))
    g = Graph((a,), (apply("add", a, w),), ((count, full(1, DType.i64)),))
    assert g.parameters == (w, count)
    assert g.leaves("input") == (a,)
    assert g.results == (apply("add", a, w), full(1, DType.i64))
    assert "count" in repr(g)
