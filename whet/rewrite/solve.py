"""The search for rewrites as a whole: regions, saturation, extraction, certificate.

    for each region        an e-graph of it, grown by the ways of all rules
    programs               the region itself, and what the best-first search finds there
    extraction             the cheapest kernels for each, no program known before being cheaper
    line                   a derivation for every region that became cheaper

Where a region is too large to saturate, the best-first search alone says what it becomes. Prices
arrive as an argument, and so does whatever is known of layouts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import WhetError
from whet.ir.graph import Graph, Node
from whet.ir.types import TensorType
from whet.rewrite.columns import ROWS, Columns, Price
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.derivation import Derivation, derivation_of
from whet.rewrite.egraph import EGraph
from whet.rewrite.ematch import ways
from whet.rewrite.extract import Extraction, extract
from whet.rewrite.match import Match
from whet.rewrite.prove import Prover
from whet.rewrite.region import Region, instances, is_known, regions
from whet.rewrite.saturate import Saturation
from whet.rewrite.space import RewriteSpace
from whet.search import Budget, Cost, Greedy, StopReason, search

FITS = 1500  # nodes of a region that is saturated


@dataclass(frozen=True, slots=True)
class Limits:
    """What one region may spend.

    Attributes:
        nodes: e-nodes that saturation may add.
        rounds: of saturation.
        solver: seconds of the solver, each time it is asked.
        candidates: of the best-first search.
    """

    nodes: int = 6000
    rounds: int = 6
    solver: float = 1.5
    candidates: int = 400


@dataclass(frozen=True, slots=True)
class Pricing:
    """What things cost.

    Attributes:
        kernels: offers for a cluster.
        graph: a whole graph, as the best-first search prices it.
        border: layout in which values enter and leave a region.
        convert: from one layout to another.
    """

    kernels: Price
    graph: Callable[[Graph], Cost]
    border: Callable[[TensorType], str] = lambda _: ROWS
    convert: Callable[[TensorType, str, str], Cost] = lambda type, before, after: Cost.NONE


@dataclass
class Solved:
    """What became of one region.

    Attributes:
        region: it.
        before, searched, after: seconds of the region itself, of what the best-first search made of
            it, and of the answer; all as the cheapest kernels for them.
        gap: how far the answer may be from the best, as a share.
        nodes: e-nodes at the end.
        stop: why saturation ended.
        rules: equations that the answer needs, by rule.
        becomes: the answer; None where the region stays.
        equations: why it is equal.
    """

    region: Region
    before: Cost = Cost.NONE
    searched: Cost = Cost.NONE
    after: Cost = Cost.NONE
    gap: float = 0.0
    nodes: int = 0
    stop: StopReason | None = None
    rules: Counter[str] = field(default_factory=Counter)
    becomes: Graph | None = None
    equations: Sequence[Match] = ()

    def rows(self, graph: Graph) -> Iterator[tuple[str, str, str]]:
        """Rule, the user's line, and proof of every equation, at every occurrence.

        Args:
            graph: the one that was searched.
        """
        if self.becomes is None:
            return
        for place in self.region.places:
            outer = instances(self.region.graph, place)
            lines = {n: graph.where[o] for n, o in outer.items() if o in graph.where}
            usual = next((lines[r] for r in self.region.graph.results if r in lines), "")
            for m in self.equations:
                where = next((lines[n] for n in m.left if n in lines), usual)
                yield m.rule.name, where, str(m.rule.proof)


@dataclass(frozen=True)
class Solution:
    """A graph after all regions were solved.

    Attributes:
        graph: what it became.
        lines: of the certificate.
        regions: what became of each.
    """

    graph: Graph
    lines: tuple[Derivation, ...]
    regions: tuple[Solved, ...]

    def seconds(self, which: str) -> float:
        """Seconds of all occurrences of all regions: "before", "searched" or "after"."""
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
    both: bool = False,
) -> Solution:
    """The cheapest graph that proven rules lead to, region by region.

    Args:
        known: whether a leaf is known ahead of time. In a joint training graph parameters are not.
        both: rules are read in both directions.
    """
    lines: list[Derivation] = []
    solved: list[Solved] = []
    original, now = graph.nodes, dict[Node, Node]()
    try:
        for region in regions(graph, known):
            if budget.stop() is not None:
                break
            answer = _region(
                region, rules, pricing, prover, budget, limits or Limits(), known, both
            )
            solved.append(answer)
            if answer.becomes is not None:
                places = [{k: now.get(n, n) for k, n in p.items()} for p in region.places]
                line, graph, new = derivation_of(
                    graph, region.graph, answer.becomes, places, answer.equations
                )
                now = {n: new[now.get(n, n)] for n in original if now.get(n, n) in new}
                lines.append(line)
    except KeyboardInterrupt:
        budget.cancel()
    return Solution(graph, tuple(lines), tuple(solved))


def _region(
    region: Region,
    rules: Mapping[str, Conjecture],
    pricing: Pricing,
    prover: Prover,
    budget: Budget,
    limits: Limits,
    known: Callable[[Node], bool],
    both: bool,
) -> Solved:
    start = region.graph
    found = Solved(region)
    grown = Saturation(EGraph(start.nodes), ways(rules.values(), both=both), prover)
    searched = _best_first(start, rules, pricing, prover, budget, limits, grown)
    if len(start.nodes) <= FITS:
        found.stop = grown.run(budget.part(nodes=limits.nodes), rounds=limits.rounds)
    found.nodes = len(grown.classes)
    programs = [start.nodes] if searched is start else [start.nodes, searched.nodes]
    answers = _extracted(grown.classes, programs, start.results, pricing, known, limits)
    found.before = _kernels(start, pricing, known, limits)
    found.searched = (
        found.before if searched is start else _kernels(searched, pricing, known, limits)
    )
    if not answers or answers[0].cost.seconds >= 0.999 * found.before.seconds:
        found.after = found.before
        return found
    best = answers[0]
    found.after, found.gap = best.cost, best.gap
    for node in best.made:
        grown.classes.add(node)
    found.equations = grown.needed(zip(start.results, best.made, strict=True))
    found.rules = Counter(m.rule.name for m in found.equations)
    becomes = Graph(start.inputs, best.made)
    if becomes.outputs != start.outputs and found.equations:
        found.becomes = becomes
    return found


def _extracted(
    classes: EGraph,
    programs: Sequence[Sequence[Node]],
    roots: Sequence[Node],
    pricing: Pricing,
    known: Callable[[Node], bool],
    limits: Limits,
) -> list[Extraction]:
    columns = Columns(classes, pricing.kernels, known, roots)
    return extract(columns, programs, roots, border=pricing.border, convert=pricing.convert,
                   seconds=limits.solver)  # fmt: skip


def _kernels(graph: Graph, pricing: Pricing, known: Callable[[Node], bool], limits: Limits) -> Cost:
    """What a graph costs as it is, in the cheapest kernels."""
    answers = _extracted(EGraph(graph.nodes), [], graph.results, pricing, known, limits)
    return answers[0].cost if answers else Cost.IMPOSSIBLE


def _best_first(
    start: Graph,
    rules: Mapping[str, Conjecture],
    pricing: Pricing,
    prover: Prover,
    budget: Budget,
    limits: Limits,
    grown: Saturation,
) -> Graph:
    """What the best-first search makes of a region; its matches become equations."""
    space = RewriteSpace(start, pricing.graph, prover, rules, single=False)
    try:
        outcome = search(space, Greedy(), budget.part(candidates=limits.candidates))
    except WhetError:
        return start
    best = outcome.best.state
    for match in space.applied(best):
        grown.apply(match)
    if best is not start:
        for a, b in zip(start.results, best.results, strict=True):
            grown.classes.add(b)
            if not grown.classes.equal(a, b):
                return start
    return best
