"""Rewriting where sizes are open, where parameters are trained, and in half precision."""

from __future__ import annotations

import json

import pytest

from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, Poly, TensorType
from whet.rewrite.certificate import CertificateError, verify_certificate
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.pattern import matches
from whet.rewrite.prove import Prover
from whet.rewrite.rule import Floating
from whet.rewrite.saturate import is_safe
from whet.run.admission import Admission
from whet.run.rewriting import rewritten
from whet.search import Budget
from whet.store import Store

N = Poly.symbol("n")


def tensor(kind, name, *shape, dtype=DType.f32):
    return leaf(kind, name, TensorType(dtype, shape))


def test_a_guard_on_an_open_size_is_written_and_checked():
    x = tensor("input", "x", N, 2)
    cut = [apply("slice", x, axis=0, start=a, stop=b, step=1) for a, b in ((0, 3), (3, N))]
    graph = Graph((x,), (apply("tanh", apply("concat", *cut, axis=0)),))
    best = rewritten(graph, Store.memory(), Budget(seconds=60))[0]
    assert "concat" not in {n.op for n in best.graph.nodes}
    assert best.guards == ("3 <= n",)
    assert verify_certificate(graph, best.certificate) == best.graph
    data = json.loads(best.certificate[0])
    data["places"][0]["assumes"] = []
    with pytest.raises(CertificateError, match="assumption"):
        verify_certificate(graph, [json.dumps(data)])


def test_products_of_an_open_batch_are_merged():
    x, w, v = (
        tensor("input", "x", N, 8), tensor("parameter", "w", 4, 8), tensor("parameter", "v", 6, 8)
    )  # fmt: skip
    graph = Graph((x,), (apply("linear", x, w, None), apply("linear", x, v, None)))
    best = rewritten(graph, Store.memory(), Budget(seconds=60))[0]
    assert sum(n.op == "linear" for n in best.graph.nodes) == 1
    assert best.guards == ()
    assert verify_certificate(graph, best.certificate) == best.graph


def test_nothing_of_a_trained_parameter_is_free():
    x, w, s = tensor("input", "x", 2, 4), tensor("parameter", "w", 4, 4), tensor("parameter", "s")
    graph = Graph((x,), (apply("mul", apply("linear", x, w, None), s),))
    folded = rewritten(graph, Store.memory(), Budget(seconds=60))[0]
    assert folded.graph != graph
    trained = rewritten(graph, Store.memory(), Budget(seconds=60), training=True)
    assert [t.graph for t in trained] == [graph]


def risky(text, graph, floating):
    (match,) = list(matches(graph, Conjecture(text), Prover()))[:1]
    assert match.rule.proof.floating is floating
    assert not is_safe(match)
    return match


def test_in_half_precision_what_overflows_is_refused_and_what_does_not_is_admitted():
    x, y = (tensor("input", n, 64, dtype=DType.f16) for n in "xy")
    admit = Admission()
    graph = Graph((x, y), (apply("exp", apply("add", x, y)),))
    overflows = risky("apart: exp(x[*B] + y[*B]) == exp(x) * exp(y)", graph,
                      Floating.OVERFLOW_RISK)  # fmt: skip
    assert not admit(overflows)
    graph = Graph((x, y), (apply("mul", apply("neg", x), y),))
    harmless = risky("turned: -x[*B] * y[*B] == (0 - x) * y", graph, Floating.CANCELLING)
    assert admit(harmless)
    assert len(admit.known) == 2
