"""Regions, and the cheapest program of an e-graph: kernels, layouts, recomputation, weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.rewrite.columns import ROWS, Columns, Offer
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.egraph import EGraph
from whet.rewrite.extract import Extraction, extract
from whet.rewrite.growth import saturation
from whet.rewrite.prove import Prover
from whet.rewrite.region import LEAST, MOST, is_known, placed, regions
from whet.search import Budget, Cost, Source, StopReason


def _leaf(kind: str, name: str, *shape: int) -> Node:
    return leaf(kind, name, TensorType(DType.f32, shape))


def _cost(seconds: float) -> Cost:
    return Cost(seconds, 0.0, Source.PREDICTED)


def _best(
    graph: Graph,
    price: Callable[[Graph], Sequence[Offer]],
    *unions: tuple[Node, Node],
    convert: float = 0.0,
    border: str = ROWS,
) -> list[Extraction]:
    """Answers for a graph whose e-graph holds that these nodes are equal."""
    classes = EGraph((*graph.nodes, *(n for pair in unions for n in pair)))
    for number, (a, b) in enumerate(unions):
        classes.union(a, b, number)
    columns = Columns(classes, price, is_known, graph.results)
    change = _cost(convert)
    return extract(columns, [graph.nodes], graph.results, border=lambda _: border,
                   convert=lambda type, before, after: change, seconds=5.0, count=2)  # fmt: skip


def _ops(cluster: Graph) -> list[str]:
    return [n.op for n in cluster.nodes if not n.is_leaf]


def _chain(x: Node, *ops: str) -> Node:
    for op in ops:
        x = apply(op, x)
    return x


# -- regions ---------------------------------------------------------------------------------------
def test_a_graph_is_cut_where_one_value_that_several_read_is_all_that_is_alive() -> None:
    first = x = _leaf("input", "x", 4)
    blocks = 5
    for _ in range(blocks):  # a residual block: its input is read twice, at its end
        x = apply("add", x, _chain(x, *["tanh", "exp", "neg"] * LEAST))
    found = regions(Graph((first,), (x,)))
    assert sum(len(r.places) for r in found) == blocks
    assert {len(r.graph.inputs) for r in found} == {1}
    assert {len(r.graph.results) for r in found} == {1}
    assert len(found[0].places) >= blocks - 1, "blocks that are alike are one region"
    for r in found:
        for place, roots in zip(r.places, r.roots, strict=True):
            assert placed(r.graph, place) == roots


def test_what_nowhere_is_thin_is_cut_all_the_same() -> None:
    x, y = _leaf("input", "x", 4), _leaf("input", "y", 4)
    a, b = x, y
    for _ in range(MOST):  # two values are alive throughout
        a, b = apply("add", a, b), apply("mul", b, a)
    found = regions(Graph((x, y), (apply("sub", a, b),)))
    sizes = [sum(not n.is_leaf for n in r.graph.nodes) * len(r.places) for r in found]
    assert sum(sizes) == 2 * MOST + 1
    assert max(sum(not n.is_leaf for n in r.graph.nodes) for r in found) <= MOST


# -- budgets ---------------------------------------------------------------------------------------
def _grown(budget: Budget) -> tuple[StopReason, int]:
    w = _leaf("parameter", "w", 4, 4)
    rows = [apply("linear", _leaf("input", f"x{k}", 2, 4), w, None) for k in range(12)]
    graph = Graph(tuple(n.args[0] for n in rows if n.args[0]), (apply("concat", *rows, axis=0),))
    run = saturation(graph, CONJECTURES, Prover(), both=True)
    return run.run(budget, rounds=30), len(run.classes)


def test_saturation_ends_for_what_runs_out_first() -> None:
    seconds, held = [0.0], [0.0]

    def tick() -> float:
        seconds[0] += 1
        return seconds[0]

    def fill() -> float:
        held[0] += 1
        return held[0]

    stop, nodes = _grown(Budget(nodes=40))
    assert stop is StopReason.NODE_LIMIT
    assert _grown(Budget(seconds=4, clock=tick))[0] is StopReason.BUDGET
    stop, fewer = _grown(Budget(memory=2, gauge=fill))
    assert stop is StopReason.BUDGET
    assert 0 < fewer < nodes + 200


# -- extraction ------------------------------------------------------------------------------------
def test_a_kernel_of_several_operators_is_one_column() -> None:
    """Two kernels are dearer than the one that does both."""
    x = _leaf("input", "x", 8)
    graph = Graph((x,), (_chain(x, "exp", "neg"),))
    best, *_ = _best(graph, lambda c: [Offer(_cost(1.0))])
    assert (best.cost.seconds, len(best.columns), best.gap) == (1.0, 1, 0.0)
    alone = _best(graph, lambda c: [Offer(_cost(1.0))] if len(_ops(c)) == 1 else [])[0]
    assert (alone.cost.seconds, len(alone.columns)) == (2.0, 2)


@pytest.mark.parametrize(("again", "seconds"), [(0.1, 2.2), (5.0, 3.0)])
def test_a_value_is_computed_twice_where_that_is_cheaper(again: float, seconds: float) -> None:
    """exp is read by two: inside both kernels, or by a kernel of its own."""
    x = _leaf("input", "x", 8)
    e = apply("exp", x)
    graph = Graph((x,), (apply("neg", e), apply("tanh", e)))

    def price(cluster: Graph) -> list[Offer]:
        ops = _ops(cluster)
        if len(ops) > 2 or len(cluster.results) > 1:
            return []
        return [Offer(_cost(1.0 if len(ops) == 1 else 1.0 + again))]

    best, *_ = _best(graph, price)
    assert best.cost.seconds == pytest.approx(seconds)
    assert sum("exp" in _ops(c.cluster) for c in best.columns) == (2 if again < 1 else 1)


@pytest.mark.parametrize(("convert", "out"), [(0.1, "columns"), (2.0, "rows")])
def test_a_layout_is_a_choice_and_its_conversion_is_paid_for(convert: float, out: str) -> None:
    x = _leaf("input", "x", 4, 8)
    graph = Graph((x,), (apply("exp", x),))
    offers = [Offer(_cost(3.0)), Offer(_cost(1.0), ("columns",), "columns")]
    best, *_ = _best(graph, lambda c: offers, convert=convert)
    (column,) = best.columns
    assert column.offer.out == out
    assert best.cost.seconds == pytest.approx(min(3.0, 1.0 + 2 * convert))
    there, *_ = _best(graph, lambda c: offers, convert=convert, border="columns")
    assert there.cost.seconds == pytest.approx(1.0), "what is wanted that way needs no conversion"


def test_weight_only_work_is_free_at_run_time_and_counted_in_memory() -> None:
    x, w = _leaf("input", "x", 2, 4), _leaf("parameter", "w", 4, 4)
    s = _leaf("parameter", "s")
    late = apply("mul", apply("linear", x, w, None), s)
    early = apply("linear", x, apply("mul", w, s), None)
    graph = Graph((x,), (late,))

    def price(cluster: Graph) -> list[Offer]:
        return [Offer(_cost(float(len(_ops(cluster)))))]

    assert _best(graph, price)[0].memory == 0
    best, *_ = _best(graph, price, (late, early))
    assert best.made == (early,)
    assert best.memory == 4 * 4 * 4
    assert 1.0 <= best.cost.seconds < 1.001


def test_the_gap_to_the_bound_is_told() -> None:
    x = _leaf("input", "x", 8)
    slow, quick = _chain(x, "exp", "neg"), apply("tanh", x)  # taken to be equal
    graph = Graph((x,), (slow,))
    found = _best(graph, lambda c: [Offer(_cost(1.0 + len(_ops(c))))], (slow, quick))
    assert (found[0].made, found[0].gap) == ((quick,), 0.0)
    assert found[0].bound <= found[0].cost.seconds == 2.0
