"""Parts of rewrites: cut out, timed, chosen by time; modules by the names of parameters; and the
rewrite that makes a program inexact is named."""

from __future__ import annotations

import json
import math

import pytest

from whet.errors import SearchError
from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, TensorType
from whet.rewrite.certificate import verify_certificate
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.egraph import EGraph
from whet.rewrite.ematch import ways
from whet.rewrite.pattern import matches
from whet.rewrite.prove import Prover
from whet.rewrite.saturate import Saturation
from whet.rewrite.solve import saturation
from whet.run import gains, rewriting
from whet.run.gains import Stopwatch, fastest, is_slower, parts
from whet.run.guilty import acquitted
from whet.run.measure import Timing
from whet.run.modules import module_of, pattern
from whet.run.record import Report
from whet.run.rewriting import Rules, generated, rewritten
from whet.search import Budget
from whet.store import Store

PROVER = Prover()
STORE = Store.memory()  # what one test has proven, the next one need not


def tensor(kind, name, *shape):
    return leaf(kind, name, TensorType(DType.f32, shape))


def recurrence(steps=4):
    """Steps that multiply their part of the input by one weight, their state by another."""
    x, w, u = (
        tensor("input", "x", steps, 2, 8),
        tensor("parameter", "cells.0.input.weight", 8, 8),
        tensor("parameter", "cells.0.state.weight", 8, 8),
    )
    h = apply("linear", apply("select", x, axis=0, index=0), w, None)
    for t in range(1, steps):
        step = apply("linear", apply("select", x, axis=0, index=t), w, None)
        h = apply("tanh", apply("add", step, apply("linear", h, u, None)))
    return Graph((x,), (h,))


class Fixed(Stopwatch):
    """A stopwatch that says what it is told."""

    def __init__(self, *seconds):
        super().__init__(lambda cluster, kernels: kernels[0], 1e9)
        self.told = seconds

    def times(self, *graphs):
        return [Timing((self.told[min(k, len(self.told) - 1)],) * 9) for k in range(len(graphs))]


def test_a_part_is_closed_and_counted():
    x, w, s = tensor("input", "x", 2, 4), tensor("parameter", "a.w", 4, 4), tensor("parameter", "s")
    v = tensor("parameter", "b.w", 4, 4)
    first = apply("mul", apply("linear", x, w, None), s)
    graph = Graph((x,), (apply("mul", apply("linear", first, v, None), s),))
    found = list(matches(graph, CONJECTURES["fold scale after linear"], PROVER))
    (part,) = parts(graph, found, ["a", "b"])
    assert part.places == ("a", "b")
    assert [n.op for n in part.before.inputs] == ["input"]
    assert {n.op for n in part.after.nodes if n.is_leaf} == {"input", "parameter"}
    watch = Stopwatch(lambda cluster, kernels: kernels[0], 60)
    before, after = watch.times(part.before, part.after)
    assert before.rounds == after.rounds >= gains.ROUNDS
    assert watch.times(part.before, part.after)[0] is before  # once


def test_no_seconds_no_times():
    watch = Stopwatch(lambda cluster, kernels: kernels[0], 0)
    assert watch.times(recurrence()) is None


def test_the_expected_answer_stays_unless_another_is_surely_faster():
    base, near, far = Timing((1.0,) * 9), Timing((1.01,) * 9), Timing((2.0,) * 9)
    wild = Timing((9.0, 0.5, 9.0, 0.5, 9.0, 0.5, 9.0, 0.5, 9.0))
    assert not is_slower(near, base)
    assert is_slower(far, base)
    assert not is_slower(wild, base)
    assert fastest([base, near], 1) == 1
    assert fastest([base, far], 1) == 0
    assert fastest([far, far, base], 1) == 2


def test_what_is_measured_slower_is_not_taken():
    graph = recurrence()
    slow = rewritten(graph, STORE, Budget(seconds=60), watch=Fixed(1.0, 2.0))
    assert [r.graph for r in slow] == [graph]
    (gain,) = [g for g in slow[0].gains if g.rules]
    assert not gain.kept
    assert gain.before < gain.after
    fast = rewritten(graph, STORE, Budget(seconds=60), watch=Fixed(2.0, 1.0))
    assert fast[0].graph != graph
    assert all(g.kept for g in fast[0].gains)
    assert {r.module for r in fast[0].rows} == {"cells.0.input"}


def test_generated_rules_alone_hoist():
    best = rewritten(recurrence(), STORE, Budget(seconds=60), rules=generated())[0]
    products = [n for n in best.graph.nodes if n.op == "linear" and n.args[0].op != "tanh"]
    assert not {r.rule for r in best.rows} & CONJECTURES.keys()
    assert len(products) < 4
    assert verify_certificate(recurrence(), best.certificate, PROVER) == best.graph


def test_a_module_is_what_the_names_of_its_parameters_share():
    graph = recurrence()
    (root,) = graph.outputs
    assert module_of([root]) == "cells.0"
    _, product = root.operands[0].operands
    assert module_of([product]) == "cells.0"
    assert module_of([product], product.operands[:1]) == "cells.0.state"
    assert module_of([root], root.operands) == "cells.0.input"  # the nearest, first by name
    assert pattern(["blocks.0.a", "blocks.1.a", "head"]) == "blocks.*.a, head"
    assert pattern(["a", "b", "c", "d"]) == "a, b, c and 1 more"


def test_the_guilty_rule_is_named_and_the_others_stay():
    """A judge that minds products of states: the hoist, and nothing else, is left out."""
    x, w, v, s = (
        tensor("input", "x", 2, 4), tensor("parameter", "a.w", 4, 4),
        tensor("parameter", "b.w", 4, 4), tensor("parameter", "s"),
    )  # fmt: skip
    scaled = apply("mul", apply("linear", x, w, None), s)
    graph = Graph((x,), (apply("neg", apply("neg", apply("linear", scaled, v, None))),))
    store = STORE

    def again(names):
        return rewritten(graph, store, Budget(seconds=60), rules=Rules().without(names))[0]

    def judge(g):
        folded = not any(n.op == "mul" and n.args[0].op == "linear" for n in g.nodes)
        return (1.0, False) if folded else (1e-8, True)

    found, blames = acquitted(again(frozenset()), judge, 1e-6, again)
    assert judge(found.graph)[1]
    named = ("scale", "linear(mul)", "mul(linear)")  # by hand, then those that were generated
    assert all(any(n in b.rules for n in named) for b in blames)
    assert blames[0].error == 1.0
    assert not any(n.op == "neg" for n in found.graph.nodes)
    assert verify_certificate(graph, found.certificate, PROVER) == found.graph


def test_a_region_loses_the_guilty_rule_alone():
    graph, store = recurrence(), STORE
    best = rewritten(graph, store, Budget(seconds=60))[0]
    assert best.answer is not None

    def judge(g):
        hoisted = any(n.op == "linear" and n.args[0].op == "input" for n in g.nodes)
        return (1.0, False) if hoisted else (0.0, True)

    found, blames = acquitted(best, judge, 1e-6, lambda names: pytest.fail("searched again"))
    assert [b.module for b in blames] == ["cells.0.input"]
    assert found.graph == graph
    assert best.graph != graph


def test_a_start_that_is_wrong_itself_blames_nobody():
    best = rewritten(recurrence(), STORE, Budget(seconds=60))[0]
    found, blames = acquitted(best, lambda g: (1.0, False), 1e-6, lambda names: best)
    assert (found.graph, blames) == (best.graph, [])


def test_saturation_is_replayed_from_its_journal():
    graph = recurrence()
    used = ways([c for n, c in CONJECTURES.items() if n.startswith(("hoist", "merge", "no "))])
    grown = Saturation(EGraph(graph.nodes), used, PROVER)
    grown.run(Budget(nodes=60), rounds=3)
    again = Saturation(EGraph(graph.nodes), used, Prover())
    again.replay(grown.journal)
    assert len(again.classes) == len(grown.classes)
    assert [str(m) for m in again.equations] == [str(m) for m in grown.equations]
    row = json.loads(grown.journal[0])
    with pytest.raises(SearchError, match="another"):
        Saturation(EGraph(graph.nodes), used, PROVER).replay(
            [json.dumps(row | {"nodes": row["nodes"] + 1})]
        )
    with pytest.raises(SearchError, match="not a round"):
        Saturation(EGraph(graph.nodes), (), PROVER).replay(grown.journal)


def test_what_saves_comes_first_and_the_rest_is_found_later():
    graph = recurrence()
    grown = saturation(graph, CONJECTURES, PROVER, both=CONJECTURES.keys())
    grown.run(Budget(nodes=400), rounds=2, first=True)
    begun = dict(grown.counts)
    assert "hoist linear over select" in begun
    grown.run(Budget(nodes=400), rounds=2)
    assert set(begun) < set(grown.counts)
    again = saturation(graph, CONJECTURES, PROVER, both=CONJECTURES.keys())
    again.replay(grown.journal)
    assert [str(m) for m in again.equations] == [str(m) for m in grown.equations]


def test_a_search_is_grown_again_from_the_saved_journal():
    graph = recurrence()
    best = rewritten(graph, STORE, Budget(seconds=60))[0]
    assert len(best.journals) == 2
    region, answer = rewriting.regrown(best.journals[-1], Prover())
    assert region == best.answer.region.graph
    assert len(answer.classes) == best.answer.nodes
    for a, b in zip(region.outputs, best.answer.becomes.outputs, strict=True):
        answer.classes.add(b)
        assert answer.classes.equal(a, b)


def test_gains_and_blames_are_data():
    report = Report("m", gains=[rewriting.Gain("hoist", "cells.0", 1, math.nan, 1.0)])
    back = Report.from_json(json.loads(json.dumps(report.to_json())))
    assert back.gains[0].rules == "hoist"
    assert math.isnan(back.gains[0].before)
