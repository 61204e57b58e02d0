"""Left sides found in graphs, right sides put in their place, values unchanged."""

from __future__ import annotations

import dataclasses

import pytest

from whet.errors import GraphError
from whet.ir.graph import Graph, Node, apply, full, leaf
from whet.ir.interp import FLOAT64, evaluate, sample
from whet.ir.interp.ring import seeded
from whet.ir.types import DType, TensorType
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.pattern import Match, apply_match, apply_matches, commutes, matches
from whet.rewrite.prove import Prover


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover()


def tensor(name: str, *shape: int, kind: str = "input", dtype: DType = DType.f32) -> Node:
    return leaf(kind, name, TensorType(dtype, shape))


def graph(*outputs: Node) -> Graph:
    from whet.ir.graph import topological

    return Graph(tuple(n for n in topological(outputs) if n.op == "input"), outputs)


def found(g: Graph, name: str, prover: Prover) -> list[Match]:
    return list(matches(g, CONJECTURES[name], prover))


def same(a: Graph, b: Graph) -> bool:
    """Whether two graphs over the same leaves compute the same, on random data."""
    leaves = {n.name: n for n in (*a.nodes, *b.nodes) if n.is_leaf}
    generator = seeded(3)
    feeds = {k: sample(n.type, FLOAT64, generator).abs() + 0.1 for k, n in sorted(leaves.items())}
    pairs = zip(evaluate(a, feeds), evaluate(b, feeds), strict=True)
    return all(float((x - y).abs().max()) < 1e-9 for x, y in pairs)


def conv(x: Node, w: Node, bias: Node | None = None, groups: int = 1) -> Node:
    return apply(
        "conv2d", x, w, bias, groups=groups, stride=(2, 1), padding=(1, 0), dilation=(1, 1)
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_is_folded(groups: int, bias: bool, prover: Prover) -> None:
    x, w = tensor("x", 2, 4, 7, 6), tensor("w", 6, 4 // groups, 3, 2, kind="parameter")
    m, v, g, b, c = (tensor(n, 6, kind="parameter") for n in "mvgbc")
    before = graph(
        apply("batch_norm", conv(x, w, c if bias else None, groups), m, v, g, b, eps=1e-5)
    )
    name = "fold batch norm into conv" + (" with bias" if bias else "")
    (match,) = found(before, name, prover)
    after = apply_match(before, match)
    assert "batch_norm" not in {n.op for n in after.nodes}
    assert after.outputs[0].type == before.outputs[0].type
    assert same(before, after)


def test_families_are_gathered_by_what_they_share(prover: Prover) -> None:
    x, y = tensor("x", 5, 8), tensor("y", 5, 8)
    ws = [tensor(f"w{k}", 3 + k, 8, kind="parameter") for k in range(4)]
    before = graph(*(apply("linear", x, w, None) for w in ws[:3]), apply("linear", y, ws[3], None))
    (match,) = found(before, "merge linears", prover)
    assert match.rule.statement.form.width == 3
    after = apply_match(before, match)
    assert sum(n.op == "linear" for n in after.nodes) == 2
    assert same(before, after)


def test_members_that_depend_on_each_other_are_not_merged(prover: Prover) -> None:
    x, w = tensor("x", 4, 4), tensor("w", 4, 4)
    first = apply("linear", x, w, None)
    second = apply("linear", x, first, None)  # its weight is the first one's result
    assert found(graph(first, second), "merge linears", prover) == []


def test_all_steps_of_a_recurrence_are_hoisted_at_once(prover: Prover) -> None:
    xs, w = tensor("xs", 6, 2, 4), tensor("w", 3, 4, kind="parameter")
    steps = [apply("linear", apply("select", xs, axis=0, index=t), w, None) for t in range(6)]
    before = graph(*steps)
    group = found(before, "hoist linear over select", prover)
    assert len(group) == 6
    after = apply_matches(before, group)
    assert sum(n.op == "linear" for n in after.nodes) == 1
    assert same(before, after)


def test_commutative_operands_stand_either_way(prover: Prover) -> None:
    x, w, c = tensor("x", 5, 4), tensor("w", 3, 4), tensor("c", 3)
    for args in ((apply("linear", x, w, None), c), (c, apply("linear", x, w, None))):
        before = graph(apply("add", *args))
        (match,) = found(before, "bias of linear", prover)
        assert same(before, apply_match(before, match))
    assert commutes("add")
    assert commutes("maximum")
    assert not commutes("sub")
    assert not commutes("matmul")


def test_literals_match_at_their_own_precision(prover: Prover) -> None:
    x = tensor("x", 3, 4)
    half, root, one = (full(v, DType.f32) for v in (0.5, 0.70710677, 1.0))
    erf = apply("erf", apply("mul", x, root))
    before = graph(apply("mul", apply("mul", half, x), apply("add", erf, one)))
    (match,) = found(before, "gelu from pieces", prover)
    assert [n.op for n in apply_match(before, match).nodes if not n.is_leaf] == ["gelu"]
    wrong = graph(apply("mul", apply("mul", full(0.25, DType.f32), x), apply("add", erf, one)))
    assert found(wrong, "gelu from pieces", prover) == []


def test_a_literal_that_stretches_the_result_is_no_match(prover: Prover) -> None:
    x, ones = tensor("x", 4), full(1.0, DType.f32, (3, 4))
    assert found(graph(apply("mul", x, ones)), "times one", prover) == []


@pytest.mark.parametrize("mask", [None, (1, 1, 1, 7), (2, 3, 5, 7)])
def test_attention_is_recognised(mask: tuple[int, ...] | None, prover: Prover) -> None:
    q, k, v = tensor("q", 2, 3, 5, 4), tensor("k", 2, 3, 7, 4), tensor("v", 2, 3, 7, 6)
    scores = apply("matmul", q, apply("permute", k, dims=(0, 1, 3, 2)))
    scores = apply("mul", scores, full(0.5, DType.f32))
    name = "attention"
    if mask is not None:
        name += " with mask"
        scores = apply("add", scores, tensor("mask", *mask))
    before = graph(apply("matmul", apply("softmax", scores, axis=3), v))
    (match,) = found(before, name, prover)
    after = apply_match(before, match)
    assert after.outputs[0].op == "attention"
    assert same(before, after)


def test_numbers_of_any_shape_are_bound(prover: Prover) -> None:
    q, k = tensor("q", 2, 3, 4, 4), tensor("k", 2, 3, 4, 4)
    scores = apply("matmul", q, apply("permute", k, dims=(0, 1, 3, 2)))
    scores = apply("div", scores, full(8.0, DType.f32, (1, 1)))
    before = graph(apply("matmul", apply("softmax", scores, axis=3), k))
    (match,) = found(before, "attention by division", prover)
    after = apply_match(before, match)
    assert after.outputs[0].attr("scale") == 0.125
    assert same(before, after)


def test_a_division_that_is_not_exact_is_no_scale(prover: Prover) -> None:
    q = tensor("q", 2, 3, 4, 4)
    scores = apply("matmul", q, apply("permute", q, dims=(0, 1, 3, 2)))
    scores = apply("div", scores, full(2.8284271247461903, DType.f32))
    before = graph(apply("matmul", apply("softmax", scores, axis=3), q))
    assert found(before, "attention by division", prover) == []
    (match,) = found(before, "attention by tensor", prover)  # divides the queries instead
    assert same(before, apply_match(before, match))


def test_another_axis_is_no_match(prover: Prover) -> None:
    q, k = tensor("q", 2, 3, 4, 4), tensor("k", 2, 3, 4, 4)
    scores = apply("mul", apply("matmul", q, apply("permute", k, dims=(0, 1, 3, 2))),
                   full(0.5, DType.f32))  # fmt: skip
    before = graph(apply("matmul", apply("softmax", scores, axis=2), k))
    assert found(before, "attention", prover) == []


def test_proofs_at_these_sizes_stand_in_for_all_sizes(prover: Prover) -> None:
    x = tensor("x", 4, 12)
    before = graph(apply("reshape", apply("reshape", x, size=(12, 4)), size=(4, 6, 2)))
    (match,) = found(before, "reshape of reshape", prover)
    assert match.rule.proof.coverage == "bounded(B = (4, 12))"
    assert same(before, apply_match(before, match))


def test_precisions_are_not_mixed(prover: Prover) -> None:
    x, w = tensor("x", 5, 4), tensor("w", 3, 4, dtype=DType.f64)
    c = tensor("c", 3)
    assert (
        found(graph(apply("add", apply("linear", x, w, None), c)), "bias of linear", prover) == []
    )


@pytest.mark.parametrize("dtype", [DType.i64, DType.bf16])
def test_movement_is_rewritten_in_every_element_type(dtype: DType, prover: Prover) -> None:
    x = tensor("x", 2, 3, 4, dtype=dtype)
    once = apply("permute", x, dims=(1, 2, 0))
    before = graph(apply("permute", once, dims=(2, 0, 1)))
    (match,) = found(before, "permute of permute", prover)
    assert apply_match(before, match).outputs[0].attr("dims") == (0, 1, 2)


def test_new_nodes_keep_the_source_line(prover: Prover) -> None:
    x, w, c = tensor("x", 5, 4), tensor("w", 3, 4), tensor("c", 3)
    y = apply("add", apply("linear", x, w, None), c)
    before = Graph((x, w, c), (y,), where={y: "model.py:3: y = x @ w + c"})
    (match,) = found(before, "bias of linear", prover)
    after = apply_match(before, match)
    assert after.where[after.outputs[0]] == "model.py:3: y = x @ w + c"


def test_a_forged_match_is_refused(prover: Prover) -> None:
    x, w, v, c = (
        tensor(n, *s) for n, s in [("x", (5, 4)), ("w", (3, 4)), ("v", (3, 4)), ("c", (3,))]
    )
    before = graph(apply("add", apply("linear", x, w, None), c), apply("linear", x, v, None))
    (match,) = found(before, "bias of linear", prover)
    forged = dataclasses.replace(match, tensors={**match.tensors, "w": v})
    with pytest.raises(GraphError, match="cannot apply"):
        apply_match(before, forged)
    elsewhere = graph(apply("linear", x, v, None))
    with pytest.raises(GraphError, match="cannot apply"):
        apply_match(elsewhere, match)


def test_what_cannot_be_proven_is_never_matched(prover: Prover) -> None:
    x, y = tensor("x", 4, 4), tensor("y", 4, 4)
    wrong = Conjecture("wrong: matmul(x[K, K], y[K, K]) == matmul(y, x)")
    assert list(matches(graph(apply("matmul", x, y)), wrong, prover)) == []


def test_updates_are_rewritten_too(prover: Prover) -> None:
    x, w, c = tensor("x", 5, 4), tensor("w", 3, 4), tensor("c", 3)
    state = tensor("state", 5, 3)
    y = apply("add", apply("linear", x, w, None), c)
    before = Graph((x, w, c, state), (), updates=((state, y),))
    (match,) = found(before, "bias of linear", prover)
    assert apply_match(before, match).updates[0][1].op == "linear"
