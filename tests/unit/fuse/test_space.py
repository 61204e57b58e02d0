"""The search for a partition, over injected prices: nothing here compiles anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.unit.fuse.test_partition import body, model, tensor
from whet.fuse.partition import Cluster, apart
from whet.fuse.seed import seed
from whet.fuse.space import FuseSpace, Rates
from whet.ir.graph import Graph, apply
from whet.search import START, Annealing, Budget, Candidate, Cost, Scored, Source, search
from whet.search.reason import Reason

RATES = Rates()
CLIMB = Annealing(temperature=0, sample=4, window=4, rounds=60)


def priced(
    judge: Callable[[Cluster], tuple[float, str]], asked: list[Cluster] | None = None
) -> Callable[[Sequence[Cluster]], list[Scored[str]]]:
    def price(clusters: Sequence[Cluster]) -> list[Scored[str]]:
        if asked is not None:
            asked.extend(clusters)
        found = []
        for c in clusters:
            seconds, reason = judge(c)
            found.append(Scored(c.digest, Cost(seconds, source=Source.PREDICTED), reason))
        return found

    return price


def roofline(c: Cluster) -> tuple[float, str]:
    return RATES.guess(c), str(Reason.BANDWIDTH)


def operators(c: Cluster) -> int:
    return sum(not n.is_leaf for n in c.graph.nodes)


def test_what_saves_memory_is_merged_until_nothing_is_left() -> None:
    graph = model(3)
    space = FuseSpace(apart(graph, body(graph)), priced(roofline))
    found = search(space, CLIMB, Budget(candidates=500))
    assert len(found.best.state.groups) == 1
    assert found.best.seconds < found.start.seconds / 2


def test_repeated_blocks_are_priced_once() -> None:
    asked: list[Cluster] = []
    graph = model(8)
    p = seed(graph, body(graph))
    FuseSpace(p, priced(roofline, asked)).cost([Candidate(p, p, START)])
    assert len(asked) == len({c.digest for c in p.clusters}) < len(p.groups)


def chain(*ops: str) -> Graph:
    x = tensor("input", "x", 256, 256)
    y = x
    for op in ops:
        y = apply(op, y)
    return Graph((x,), (y,))


def test_a_refusal_is_learned_from() -> None:
    """More than three operators spill: nothing that contains a refused group is priced again."""
    asked: list[Cluster] = []

    def judge(c: Cluster) -> tuple[float, str]:
        if operators(c) > 3:
            return float("inf"), f"{Reason.SPILL}: {operators(c)} operators"
        return roofline(c)

    def run(feedback: bool) -> tuple[float, int]:
        asked.clear()
        graph = chain("exp", "tanh", "relu", "sigmoid", "silu", "gelu", "abs", "sqrt")
        space = FuseSpace(apart(graph, body(graph)), priced(judge, asked), feedback=feedback)
        best = search(space, CLIMB, Budget(candidates=60)).best
        assert all(operators(c) <= 3 for c in best.state.clusters)
        return best.seconds, sum(operators(c) > 3 for c in asked)

    with_reasons, refused = run(True)
    without, wasted = run(False)
    assert with_reasons <= without
    assert refused < wasted


def test_too_little_parallelism_puts_siblings_side_by_side() -> None:
    x = tensor("input", "x", 4, 64)
    ys = [
        apply("softmax", apply("mul", x, tensor("parameter", f"w{k}", 64)), axis=1)
        for k in range(4)
    ]
    graph = Graph((x,), tuple(ys))

    def judge(c: Cluster) -> tuple[float, str]:
        return 1e-5 * max(1, operators(c) / 4), str(Reason.PARALLELISM)

    space = FuseSpace(seed(graph, body(graph)), priced(judge))
    best = search(space, CLIMB, Budget(candidates=100)).best
    assert len(best.state.groups) < len(space.seed.groups)
    assert any(len(r) > 1 for r in best.state.results)


def test_cheap_producers_are_recomputed() -> None:
    x = tensor("input", "x", 1 << 10, 1 << 10)
    a = apply("relu", x)
    rows = apply("softmax", a, axis=1)
    columns = apply("softmax", a, axis=0)
    graph = Graph((x,), (rows, columns))

    def judge(c: Cluster) -> tuple[float, str]:
        if len(c.results) > 1 or operators(c) > 2:
            return float("inf"), str(Reason.UNSUPPORTED)
        return roofline(c)

    space = FuseSpace(apart(graph, body(graph)), priced(judge))
    best = search(space, CLIMB, Budget(candidates=100)).best.state
    assert [len(g.copies) for g in best.groups] == [1, 1]


def test_a_better_border_is_found_where_a_union_is_refused() -> None:
    graph = chain("exp", "tanh", "relu", "sigmoid")
    names = ("exp", "tanh")

    def judge(c: Cluster) -> tuple[float, str]:
        ops = [n.op for n in c.graph.nodes if not n.is_leaf]
        if len(ops) > 3:
            return float("inf"), str(Reason.SPILL)
        penalty = 3 if names[0] in ops and names[1] in ops and len(ops) == 2 else 1
        return penalty * RATES.guess(c), str(Reason.BANDWIDTH)

    space = FuseSpace(apart(graph, body(graph)), priced(judge))
    best = search(space, CLIMB, Budget(candidates=200)).best.state
    assert sorted(len(g.nodes) for g in best.groups) == [1, 3]


def test_the_journal_shows_what_was_refused_and_why() -> None:
    def judge(c: Cluster) -> tuple[float, str]:
        if operators(c) > 2:
            return float("inf"), f"{Reason.SCRATCH}: 9000 of 1000 bytes"
        return roofline(c)

    graph = model(2)
    space = FuseSpace(apart(graph, body(graph)), priced(judge))
    search(space, CLIMB, Budget(candidates=80))
    assert any(reason.startswith(Reason.SCRATCH) for reason, _ in space.told)
    assert any(how.startswith("not merge") for _, how in space.told)


def test_ablations_leave_moves_out() -> None:
    graph = model(2)
    p = apart(graph, body(graph))
    space = FuseSpace(p, priced(roofline), kinds=frozenset())
    assert search(space, CLIMB, Budget(candidates=50)).best.state == p
