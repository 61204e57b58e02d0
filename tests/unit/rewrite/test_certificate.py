"""Rewrites are searched by the common loop, and their certificate is believed by nobody."""

from __future__ import annotations

import dataclasses
import json

import pytest

from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.interp import evaluate, sample
from whet.ir.interp.ring import FLOAT64, seeded
from whet.ir.types import DType, TensorType
from whet.rewrite.certificate import CertificateError, Step, verify_certificate
from whet.rewrite.prove import Prover
from whet.rewrite.space import RewriteSpace, grouped
from whet.search import START, Budget, Candidate, Cost, Greedy, Source, StopReason, search

HEAVY = {
    "linear": 5.0,
    "matmul": 5.0,
    "batch_norm": 3.0,
    "select": 0.1,
    "slice": 0.1,
    "concat": 0.0,
}


def price(g: Graph) -> Cost:
    return Cost(
        sum(HEAVY.get(n.op, 1.0) for n in g.nodes if not n.is_leaf), source=Source.PREDICTED
    )


def recurrence(steps: int) -> Graph:
    """tanh(W x_t + V x_t + U h), step after step."""

    def tensor(name: str, *shape: int, kind: str = "parameter") -> Node:
        return leaf(kind, name, TensorType(DType.f32, shape))

    xs, h = tensor("xs", steps, 2, 4, kind="input"), tensor("h", 2, 3, kind="input")
    w, v, u = tensor("w", 3, 4), tensor("v", 3, 4), tensor("u", 3, 3)
    y = h
    for t in range(steps):
        x = apply("select", xs, axis=0, index=t)
        inputs = apply("add", apply("linear", x, w, None), apply("linear", x, v, None))
        y = apply("tanh", apply("add", inputs, apply("linear", y, u, None)))
    return Graph((xs, h), (y,))


@pytest.fixture(scope="module")
def searched() -> tuple[RewriteSpace, Graph]:
    space = RewriteSpace(recurrence(4), price, Prover())
    outcome = search(space, Greedy(), Budget(candidates=300))
    assert outcome.stop in (StopReason.CONVERGED, StopReason.SATURATED)
    assert outcome.best.cost.seconds < 0.6 * outcome.start.cost.seconds
    return space, outcome.best.state


def test_the_search_hoists_and_merges(searched: tuple[RewriteSpace, Graph]) -> None:
    space, best = searched
    linears = [n for n in best.nodes if n.op in ("linear", "matmul")]
    assert len(linears) <= 6  # from twelve: at most two for the inputs and one a step
    feeds = {n.name: sample(n.type, FLOAT64, seeded(1))
             for n in space.graph.nodes if n.is_leaf}  # fmt: skip
    (a,), (b,) = evaluate(space.graph, feeds), evaluate(best, feeds)
    assert float((a - b).abs().max()) < 1e-12


def test_certificates_are_verified_without_the_optimizer(
    searched: tuple[RewriteSpace, Graph],
) -> None:
    space, best = searched
    lines = [str(s) for s in space.certificate(best)]
    assert lines
    assert verify_certificate(recurrence(4), lines).digest == best.digest


def test_steps_are_text(searched: tuple[RewriteSpace, Graph]) -> None:
    space, best = searched
    for step in space.certificate(best):
        line = str(step)
        assert "\n" not in line
        assert str(Step.parse(line)) == line
        assert Step.parse(line).name == step.name


def test_certificates_of_something_else_are_refused(searched: tuple[RewriteSpace, Graph]) -> None:
    space, best = searched
    steps = space.certificate(best)
    with pytest.raises(CertificateError, match="another graph"):
        verify_certificate(recurrence(3), steps)
    with pytest.raises(CertificateError, match="leads elsewhere"):
        verify_certificate(recurrence(4), [dataclasses.replace(steps[0], after="0" * 32)])
    with pytest.raises(CertificateError, match="not a step"):
        verify_certificate(recurrence(4), ["{}"])


def test_false_rules_do_not_pass_by_certificate(searched: tuple[RewriteSpace, Graph]) -> None:
    space, best = searched
    data = json.loads(str(space.certificate(best)[0]))
    first = data["statements"][0]
    first["conjecture"] = f"{first['conjecture'].partition(' == ')[0]} == x"
    with pytest.raises(CertificateError, match=r"not proven|not a step"):
        verify_certificate(recurrence(4), [json.dumps(data)])


def test_bindings_are_checked_against_the_graph(searched: tuple[RewriteSpace, Graph]) -> None:
    space, best = searched
    data = json.loads(str(space.certificate(best)[0]))
    name = next(iter(data["places"][0]["tensors"]))
    data["places"][0]["tensors"][name] = "0" * 32
    with pytest.raises(CertificateError, match="bindings"):
        verify_certificate(recurrence(4), [json.dumps(data)])


def test_matches_that_share_a_new_node_are_one_move() -> None:
    g = recurrence(3)
    space = RewriteSpace(g, price, Prover())
    start = space.cost([Candidate(g, g, START)])
    moves = [c.how for c in space.propose(start, Budget())]
    hoists = [m for m in moves if m.matches[0].rule.name == "hoist linear over select"]
    assert [len(m.matches) for m in hoists] == [6, 3, 3]  # all, then each weight's three steps
    assert len(list(grouped(g, hoists[0].matches))) == 2
    assert str(hoists[0]).startswith("hoist linear over select at ")


def test_a_result_of_another_type_is_refuted() -> None:
    g = recurrence(2)
    space = RewriteSpace(g, price, Prover())
    other = Graph(g.inputs, (g.inputs[0],))
    refutation = space.check(Candidate(g, other, START))
    assert refutation is not None
    assert "type" in refutation.reason
