"""The two searches that rewriting is, their certificates and their journals."""

from __future__ import annotations

import pytest

from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, TensorType
from whet.rewrite.certificate import verify_certificate
from whet.rewrite.region import regions
from whet.run.rewriting import SURE, rewritten, space_of
from whet.search import Budget, replay
from whet.store import Store


def tensor(kind, name, *shape):
    return leaf(kind, name, TensorType(DType.f32, shape))


@pytest.fixture
def recurrence():
    """Four steps that each multiply their part of the input by the same weight."""
    x, w, u = (
        tensor("input", "x", 4, 2, 8),
        tensor("parameter", "w", 8, 8),
        tensor("parameter", "u", 8, 8),
    )
    h = apply("linear", apply("select", x, axis=0, index=0), w, None)
    for t in range(1, 4):
        step = apply("linear", apply("select", x, axis=0, index=t), w, None)
        h = apply("tanh", apply("add", step, apply("linear", h, u, None)))
    return Graph((x,), (h,))


def test_products_of_a_recurrence_are_hoisted(recurrence):
    best, *others = rewritten(recurrence, Store.memory(), Budget(seconds=60))
    products = [n for n in best.graph.nodes if n.op == "linear" and n.args[0].op == "input"]
    assert len(products) == 1
    assert [o.graph for o in others] == [recurrence]


def test_certificates_lead_there(recurrence):
    best = rewritten(recurrence, Store.memory(), Budget(seconds=60))[0]
    assert best.certificate
    assert verify_certificate(recurrence, best.certificate) == best.graph
    assert len(best.rows) == sum(len(s.places) for s in best.steps)


def test_the_journal_of_the_best_first_search_is_replayed(recurrence, tmp_path):
    folded = rewritten(recurrence, Store.memory(), Budget(seconds=60))[-1]
    (text,) = folded.journals
    (tmp_path / "0.jsonl").write_text(text)
    assert replay(tmp_path / "0.jsonl", space_of(recurrence, SURE)).state == folded.graph


def test_proofs_come_from_the_store(recurrence):
    store = Store.memory()
    first = rewritten(recurrence, store, Budget(seconds=60))[0]
    assert store.keys("proof")
    assert rewritten(recurrence, store, Budget(seconds=60))[0].graph == first.graph


def test_no_budget_no_rewrites(recurrence):
    best = rewritten(recurrence, Store.memory(), Budget(candidates=0))
    assert [b.graph for b in best] == [recurrence]
    assert best[0].stop == "Budget"


def test_an_interrupt_ends_all_of_it(recurrence, monkeypatch):
    """Ctrl-C while a region is solved: what is done is kept, and nothing more is begun."""

    def interrupting(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("whet.rewrite.growth.extract", interrupting)
    (best,) = rewritten(recurrence, Store.memory(), Budget(seconds=60))
    assert best.stop == "Interrupted"
    assert verify_certificate(recurrence, best.certificate) == best.graph


def blocks(count):
    """Residual blocks of eleven operators each, with weights of their own, whose gate is scaled."""
    x = h = tensor("input", "x", 8, 64)
    for k in range(count):
        g, b = (tensor("parameter", f"{k}.norm.{n}", 64) for n in "gb")
        s, q, v, o, u, d = (
            tensor("parameter", f"{k}.{n}", *shape)
            for n, shape in zip("sqvoud", ((), *[(64, 64)] * 3, (128, 64), (64, 128)), strict=True)
        )
        n = apply("layer_norm", h, g, b, size=(64,), eps=1e-5)
        gate = apply("silu", apply("mul", apply("linear", n, q, None), s))
        h = apply(
            "add", h, apply("linear", apply("mul", gate, apply("linear", n, v, None)), o, None)
        )
        h = apply("add", h, apply("linear", apply("relu", apply("linear", h, u, None)), d, None))
    return Graph((x,), (h,))


@pytest.mark.full
def test_ten_thousand_operators_in_repeated_blocks():
    """Blocks that are alike are searched once, and changed wherever they stand."""
    graph = blocks(910)
    assert sum(not n.is_leaf for n in graph.nodes) > 10_000
    assert len(regions(graph)) <= 3
    best = rewritten(graph, Store.memory(), Budget())[0]
    scaled = [n for n in best.graph.nodes if n.op == "mul" and n.operands[0].op == "linear"]
    assert not [n for n in scaled if n.operands[1].op == "parameter"]
    assert len({r.module for r in best.rows}) == 910
