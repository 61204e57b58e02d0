"""The search for rewrites as a whole: regions, saturation, extraction, certificate.

    for each region        an e-graph of it, grown by the ways of all rules
    programs               the region itself, and what the best-first search finds there
    extraction             the cheapest kernels for each, no program known before being cheaper
    options                the cheapest answers, with the equations each needs; one is taken
    line                   a derivation for every region that became cheaper

Where a region is too large to saturate, the best-first search alone says what it becomes. Prices
arrive as an argument, and so does whatever is known of layouts.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from whet.errors import WhetError
from whet.ir.graph import Graph, Node
from whet.ir.types import TensorType
from whet.rewrite.columns import ROWS, Columns, Price
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.derivation import Derivation, derivation_of
from whet.rewrite.egraph import EGraph
from whet.rewrite.ematch import ways
from whet.rewrite.extract import Extraction, extract
from whet.rewrite.kinds import pointwise
from whet.rewrite.match import Match
from whet.rewrite.prove import Prover
from whet.rewrite.region import Ahead, Region, instances, is_known, regions
from whet.rewrite.saturate import Admit, Saturation, is_safe
from whet.rewrite.space import RewriteSpace
from whet.rewrite.syntax import Apply, Var
from whet.search import Budget, Cost, Greedy, StopReason, search

FITS = 1500  # nodes of a region that is saturated
_GROWING = 0.7  # of a region's share of the time: the rest is for the solver
_WORTH = 0.999  # of a region's cost: what saves less than the rest changes nothing


@dataclass(frozen=True, slots=True)
class Limits:
    """What one region may spend.

    Attributes:
        nodes: e-nodes that saturation may add.
        rounds: of saturation.
        solver: seconds of the solver, each time it is asked.
        candidates: of the best-first search.
        count: of answers that are kept, for whoever measures them.
    """

    nodes: int = 6000
    rounds: int = 6
    solver: float = 1.5
    candidates: int = 400
    count: int = 2


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


@dataclass(frozen=True, slots=True)
class Option:
    """A graph that a region may become.

    Attributes:
        graph: over the region's leaves.
        cost: as the cheapest kernels for it.
        gap: how far that may be from the best, as a share.
        equations: why it is equal, in the order they came.
    """

    graph: Graph
    cost: Cost
    gap: float
    equations: Sequence[Match]


@dataclass
class Solved:
    """What became of one region.

    Attributes:
        region: it.
        before, searched, after: seconds of the region itself, of what the best-first search made of
            it, and of the cheapest option; all as the cheapest kernels for them.
        gap: how far `after` may be from the best, as a share.
        nodes: e-nodes at the end.
        stop: why saturation ended.
        options: what it may become, the cheapest first; none where it stays.
        taken: which of them it becomes; None where it stays.
        journal: of saturation, as JSON Lines; see `whet.rewrite.saturate`.
    """

    region: Region
    before: Cost = Cost.NONE
    searched: Cost = Cost.NONE
    after: Cost = Cost.NONE
    gap: float = 0.0
    nodes: int = 0
    stop: StopReason | None = None
    options: Sequence[Option] = ()
    taken: int | None = None
    journal: Sequence[str] = ()

    @property
    def option(self) -> Option | None:
        """What the region becomes."""
        return None if self.taken is None else self.options[self.taken]

    @property
    def becomes(self) -> Graph | None:
        """The graph that takes the region's place; None where it stays."""
        return None if self.option is None else self.option.graph

    @property
    def equations(self) -> Sequence[Match]:
        """Why both are equal."""
        return () if self.option is None else self.option.equations

    @property
    def rules(self) -> Counter[str]:
        """Equations by rule."""
        return Counter(m.rule.name for m in self.equations)

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
    both: bool | Collection[str] = False,
    admit: Admit = is_safe,
) -> Solution:
    """The cheapest graph that proven rules lead to, region by region.

    Args:
        known: whether a leaf is known ahead of time. In a joint training graph parameters are not.
        both: rules are read in both directions; all, or those of these names.
        admit: says which matches may be used of those that hold over the reals.
    """
    solved: list[Solved] = []
    try:
        found = regions(graph, known)
        for done, region in enumerate(found):
            if budget.stop() is not None:
                break
            share = budget.part(seconds=_GROWING * budget.seconds_left / (len(found) - done))
            solved.append(
                _region(
                    region, rules, pricing, prover, share, limits or Limits(), known, both, admit
                )
            )
    except KeyboardInterrupt:
        budget.cancel()
    steps = list(composed(graph, solved))
    after = steps[-1][2] if steps else graph
    return Solution(graph, tuple(solved), after, tuple(line for _, line, _ in steps))


def saturation(
    region: Graph,
    rules: Mapping[str, Conjecture],
    prover: Prover,
    *,
    both: bool | Collection[str] = False,
    admit: Admit = is_safe,
) -> Saturation:
    """A region's e-graph, to be grown by these rules or to replay a journal of theirs."""
    ahead = Ahead()
    saves = functools.partial(_saves, ahead)
    read = ways(rules.values(), both=both)
    return Saturation(EGraph(region.nodes), read, prover, admit, ahead, saves)


def _saves(ahead: Ahead, match: Match) -> bool:
    """Whether a match takes a whole operator apart, or leaves less to be done at run time, or as
    much in another order."""
    (one, *others), rule = match.patterns, match.rule.statement
    if not match.backward and not others and isinstance(one, Apply) and not pointwise(one.op):
        if all(a is None or isinstance(a, Var) for a in one.args) and not rule.form.width:
            return True
    stop = {n for n in match.tensors.values() if n is not None}

    def work(roots: Sequence[Node]) -> int:
        seen: set[Node] = set()
        todo = [n for n in roots if n not in stop]
        while todo:
            node = todo.pop()
            if node not in seen and not node.is_leaf and not ahead(node):
                seen.add(node)
                todo += (a for a in node.operands if a not in stop)
        return len(seen)

    try:
        turned = {n.op for n in match.left} != {n.op for n in match.right}
        return work(match.right) < work(match.left) + turned
    except (WhetError, ArithmeticError):
        return False


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
    found = _extracted(grown.classes, [start.nodes], start.results, pricing, known,
                       replace(limits or Limits(), count=1))  # fmt: skip
    return next(_options(start, found, grown), None)


def _region(
    region: Region,
    rules: Mapping[str, Conjecture],
    pricing: Pricing,
    prover: Prover,
    budget: Budget,
    limits: Limits,
    known: Callable[[Node], bool],
    both: bool | Collection[str],
    admit: Admit,
) -> Solved:
    start = region.graph
    found = Solved(region)
    grown = saturation(start, rules, prover, both=both, admit=admit)
    searched = _best_first(start, rules, pricing, prover, budget, limits, grown)
    if len(start.nodes) <= FITS:
        if both:  # what can be read either way soon fills all the space
            grown.run(budget.part(nodes=limits.nodes // 2), rounds=limits.rounds, first=True)
        found.stop = grown.run(budget.part(nodes=limits.nodes), rounds=limits.rounds)
    found.nodes, found.journal = len(grown.classes), tuple(grown.journal)
    programs = [start.nodes] if searched is start else [start.nodes, searched.nodes]
    answers = _extracted(grown.classes, programs, start.results, pricing, known, limits)
    found.before, _ = _kernels(start, pricing, known, limits)
    found.searched, own = found.before, None
    if searched is not start:
        found.searched, own = _kernels(searched, pricing, known, limits)
        if found.searched.seconds >= _WORTH * found.before.seconds:
            found.searched = found.before  # it stays as it is, whoever searches
    # A solver that was stopped may not have come as far as the other search.
    if own is not None and all(found.searched.seconds < a.cost.seconds for a in answers):
        answers.insert(0, replace(own, made=searched.results, bound=0.0))
    found.after = found.before
    cheaper = [a for a in answers if a.cost.seconds < _WORTH * found.before.seconds]
    if cheaper:
        found.options = tuple(_options(start, cheaper, grown))
    if found.options:
        found.after, found.gap, found.taken = found.options[0].cost, found.options[0].gap, 0
    return found


def _options(start: Graph, found: Iterable[Extraction], grown: Saturation) -> Iterator[Option]:
    """Answers of the solver with the equations they need; only such as change something."""
    seen = {start.outputs}
    for e in found:
        for node in e.made:
            grown.classes.add(node)
        equations = grown.needed(zip(start.results, e.made, strict=True))
        if equations and e.made not in seen:
            seen.add(e.made)
            yield Option(Graph(start.inputs, e.made), e.cost, e.gap, equations)


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
                   seconds=limits.solver, count=limits.count)  # fmt: skip


def _kernels(
    graph: Graph, pricing: Pricing, known: Callable[[Node], bool], limits: Limits
) -> tuple[Cost, Extraction | None]:
    """What a graph costs as it is, in the cheapest kernels, and these."""
    one = replace(limits, count=1)
    answers = _extracted(EGraph(graph.nodes), [], graph.results, pricing, known, one)
    return (answers[0].cost, answers[0]) if answers else (Cost.IMPOSSIBLE, None)


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
    space = RewriteSpace(
        start, pricing.graph, prover, rules, single=False, admit=grown.admit or is_safe
    )
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
