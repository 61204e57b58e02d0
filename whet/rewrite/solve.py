"""The search for rewrites as a whole: regions, saturation, extraction, certificate.

    for each region        an e-graph of it, grown by the ways of the rules
    programs               the region itself, and what the best-first search finds there
    extraction             the cheapest kernels for each, no program known before being cheaper
    beside                 the same e-graph grown further by other rules, in what is left of the
                           region's time; the answer so far is a known program
    options                the cheapest answers, with the equations each needs; one is taken
    line                   a derivation for every region that became cheaper

Where a region is too large to saturate, the best-first search alone says what it becomes. Prices
arrive as an argument, and so does whatever is known of layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from whet.ir.graph import Graph, Node
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.derivation import Derivation, derivation_of
from whet.rewrite.egraph import EGraph
from whet.rewrite.growth import Given, Growth, extracted, options, saturation
from whet.rewrite.prove import Prover
from whet.rewrite.region import is_known, regions
from whet.rewrite.saturate import Admit, Saturation, is_safe
from whet.rewrite.solved import Limits, Option, Pricing, Solved
from whet.search import Budget, Cost

_GROWING = 0.7  # of a region's share of the time: the rest is for the solver
_SHARE = 0.01  # of a graph's cost: rules that are beside are tried on what takes as much
_BESIDE = 0.25  # of the time that is left then


@dataclass(frozen=True)
class Solution:
    """A graph after all regions were solved.

    Attributes:
        source: the graph that was searched.
        regions: what became of each.
        graph: what it became.
        lines: of the certificate.
    """

    source: Graph
    regions: tuple[Solved, ...]
    graph: Graph
    lines: tuple[Derivation, ...]

    def seconds(self, which: str) -> float:
        """Seconds of all occurrences of all regions: "before", "searched", "first" or
        "after"."""
        costs: list[tuple[Cost, Solved]] = [(getattr(s, which), s) for s in self.regions]
        return sum(cost.seconds * len(s.region.places) for cost, s in costs)


def solve(
    graph: Graph,
    rules: Mapping[str, Conjecture],
    pricing: Pricing,
    prover: Prover,
    budget: Budget,
    *,
    limits: Limits | None = None,
    known: Callable[[Node], bool] = is_known,
    both: bool | Collection[str] = False,
    beside: Mapping[str, Conjecture] | None = None,
    admit: Admit = is_safe,
) -> Solution:
    """The cheapest graph that proven rules lead to, region by region.

    Args:
        known: whether a leaf is known ahead of time. In a joint training graph parameters are not.
        both: rules are read in both directions; all, or those of these names.
        beside: rules, read in both directions, that go on from what the others have found, the
            dearest region first, in a quarter of the time that is left then; no answer is dearer
            for them.
        admit: says which matches may be used of those that hold over the reals.
    """
    given = Given(rules, pricing, prover, limits or Limits(), both, beside or {}, admit, known)
    grown: list[Growth] = []
    try:
        found = regions(graph, known)
        for done, region in enumerate(found):
            if budget.stop() is not None:
                break
            share = budget.part(seconds=_GROWING * budget.seconds_left / (len(found) - done))
            growth = Growth(region, given)
            growth.first(share)
            grown.append(growth)
        _further(grown, budget.part(seconds=_BESIDE * budget.seconds_left))
    except KeyboardInterrupt:
        budget.cancel()
    solved = [g.solved for g in grown]
    steps = list(composed(graph, solved))
    after = steps[-1][2] if steps else graph
    return Solution(graph, tuple(solved), after, tuple(line for _, line, _ in steps))


def _further(grown: Sequence[Growth], budget: Budget) -> None:
    """Each region by the rules that are beside, the dearest first, by its share of the cost."""
    costs = {id(g): g.solved.after.seconds * len(g.region.places) for g in grown}
    left = sum(costs.values())
    least = _SHARE * left
    for g in sorted(grown, key=lambda g: -costs[id(g)]):
        if budget.stop() is not None or costs[id(g)] < least or not left:
            return
        share = _GROWING * budget.seconds_left * costs[id(g)] / left
        left -= costs[id(g)]
        g.further(budget.part(seconds=share))


def composed(graph: Graph, solved: Sequence[Solved]) -> Iterator[tuple[Solved, Derivation, Graph]]:
    """One region after the other replaced by the option that was taken: it, the line of the
    certificate, and the graph by then."""
    source, now = graph, dict[Node, Node]()
    for answer in solved:
        option = answer.option
        if option is None:
            continue
        places = [{k: now.get(n, n) for k, n in p.items()} for p in answer.region.places]
        line, graph, new = derivation_of(
            graph, answer.region.graph, option.graph, places, option.equations
        )
        now = {n: new[now.get(n, n)] for n in source.nodes if now.get(n, n) in new}
        yield answer, line, graph


def by_rules(
    answer: Solved,
    names: Collection[str],
    pricing: Pricing,
    *,
    limits: Limits | None = None,
    known: Callable[[Node], bool] = is_known,
) -> Option | None:
    """What a region becomes by some of the equations of its answer; None where it stays.

    Args:
        names: of the rules whose equations may be used.
    """
    start = answer.region.graph
    grown = Saturation(EGraph(start.nodes), (), admit=lambda match: True)  # they were admitted
    for match in answer.equations:
        if match.rule.name in names:
            grown.apply(match)
    found = extracted(grown.classes, [start.nodes], start.results, pricing, known,
                       replace(limits or Limits(), count=1))  # fmt: skip
    return next(options(start, found, grown), None)


__all__ = ["Limits", "Option", "Pricing", "Solution", "Solved", "by_rules", "composed",
           "saturation", "solve"]  # fmt: skip
