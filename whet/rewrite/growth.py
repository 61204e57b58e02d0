"""One region: an e-graph of it, grown by rules, and the cheapest kernels for it.

first      the best-first search, then saturation, then extraction
further    the same e-graph grown by the rules that are beside; the answer so far is a known
           program, so that none is dearer
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.errors import WhetError
from whet.ir.graph import Graph, Node, topological
from whet.rewrite.columns import Columns
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.egraph import EGraph
from whet.rewrite.ematch import Way, ways
from whet.rewrite.extract import Extraction, extract
from whet.rewrite.kinds import pointwise
from whet.rewrite.match import Match
from whet.rewrite.prove import Prover
from whet.rewrite.region import Ahead, Region, is_known
from whet.rewrite.saturate import Admit, Saturation, is_safe
from whet.rewrite.solved import Limits, Option, Pricing, Solved
from whet.rewrite.space import RewriteSpace
from whet.rewrite.syntax import Apply, Var
from whet.rewrite.told import Told
from whet.search import Budget, Cost, Greedy, search

FITS = 1500  # nodes of a region that is saturated
_WORTH = 0.999  # of a region's cost: what saves less than the rest changes nothing


@dataclass(frozen=True)
class Given:
    """What every region is searched with.

    Attributes:
        rules: that are tried first.
        both: those of them that are read in both directions; all, or those of these names.
        beside: rules, read in both directions, that go on from what the others have found.
        admit: says which matches may be used of those that hold over the reals.
        known: whether a leaf is known ahead of time.
    """

    rules: Mapping[str, Conjecture]
    pricing: Pricing
    prover: Prover
    limits: Limits = field(default_factory=Limits)
    both: bool | Collection[str] = False
    beside: Mapping[str, Conjecture] = field(default_factory=dict)
    admit: Admit = is_safe
    known: Callable[[Node], bool] = is_known


@dataclass
class Growth:
    """The search in one region.

    Attributes:
        solved: what is known of it by now.
    """

    region: Region
    given: Given

    def __post_init__(self) -> None:
        g = self.given
        self.solved = Solved(self.region)
        self._start = self.region.graph
        self._stated = ways(g.rules.values(), both=g.both)
        self._beside = ways(g.beside.values(), both=True)
        self._told = Told(g.prover)
        self._grown = _growing(self._start, (*self._stated, *self._beside), self._told, g.admit)
        self._programs: list[Sequence[Node]] = [self._start.nodes]
        self._answers: list[Extraction] = []

    def first(self, budget: Budget) -> None:
        """Search with the rules."""
        g, found, start = self.given, self.solved, self._start
        searched = _best_first(start, g, budget, self._grown)
        if len(start.nodes) <= FITS:
            self._grow(budget, self._stated, bool(g.both), g.limits.nodes)
        if searched is not start:
            self._programs.append(searched.nodes)
        self._answers = self._extracted(self._grown.classes, self._programs)
        found.before, _ = self._kernels(start)
        found.searched, own = found.before, None
        if searched is not start:
            found.searched, own = self._kernels(searched)
            if found.searched.seconds >= _WORTH * found.before.seconds:
                found.searched = found.before  # it stays as it is, whoever searches
        # A solver that was stopped may not have come as far as the other search.
        if own is not None and all(found.searched.seconds < a.cost.seconds for a in self._answers):
            self._answers.insert(0, replace(own, made=searched.results, bound=0.0))
        self._take()
        found.first = found.after

    def further(self, budget: Budget) -> None:
        """Go on with the rules that are beside; what was found stays unless this is cheaper."""
        if len(self._start.nodes) > FITS or not self._beside:
            return
        before = len(self._grown.equations)
        self._grow(budget, self._beside, True, self.given.limits.beside)
        if len(self._grown.equations) == before:
            return
        known = self._programs + [topological(a.made) for a in self._answers[:1]]
        more = self._extracted(self._grown.classes, known)
        least = min((a.cost.seconds for a in self._answers), default=float("inf"))
        if any(a.cost.seconds < _WORTH * least for a in more):
            self._answers = sorted([*more, *self._answers], key=lambda a: a.cost.seconds)
            self._take()

    def _grow(self, budget: Budget, asked: Sequence[Way], first: bool, nodes: int) -> None:
        rounds = self.given.limits.rounds
        if first:  # what can be read either way soon fills all the space
            part = budget.part(nodes=nodes // 2)
            self._grown.run(part, rounds=rounds, first=True, ways=asked)
        self.solved.stop = self._grown.run(budget.part(nodes=nodes), rounds=rounds, ways=asked)

    def _take(self) -> None:
        found, grown = self.solved, self._grown
        found.nodes, found.journal = len(grown.classes), tuple(grown.journal)
        found.after = found.before
        least = _WORTH * found.before.seconds
        cheaper = [a for a in self._answers if a.cost.seconds < least]
        found.options = tuple(options(self._start, cheaper, grown, self._told))[
            : self.given.limits.count
        ]
        if found.options:
            best = found.options[0]
            found.after, found.gap, found.taken = best.cost, best.gap, 0

    def _extracted(self, classes: EGraph, programs: Sequence[Sequence[Node]]) -> list[Extraction]:
        g = self.given
        return extracted(classes, programs, self._start.results, g.pricing, g.known, g.limits)

    def _kernels(self, graph: Graph) -> tuple[Cost, Extraction | None]:
        """What a graph costs as it is, in the cheapest kernels, and these."""
        g = self.given
        answers = extracted(EGraph(graph.nodes), [], graph.results, g.pricing, g.known,
                            replace(g.limits, count=1))  # fmt: skip
        return (answers[0].cost, answers[0]) if answers else (Cost.IMPOSSIBLE, None)


def saturation(
    region: Graph,
    rules: Mapping[str, Conjecture],
    prover: Prover,
    *,
    both: bool | Collection[str] = False,
    beside: Mapping[str, Conjecture] | None = None,
    admit: Admit = is_safe,
) -> Saturation:
    """A region's e-graph, to be grown by these rules or to replay a journal of theirs."""
    read = (*ways(rules.values(), both=both), *ways((beside or {}).values(), both=True))
    return _growing(region, read, Told(prover), admit)


def _growing(region: Graph, read: Sequence[Way], told: Told, admit: Admit) -> Saturation:
    ahead = Ahead()
    saves = functools.partial(_saves, ahead)
    return Saturation(EGraph(region.nodes), read, told, admit, ahead, saves)


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


def options(
    start: Graph, found: Iterable[Extraction], grown: Saturation, told: Told | None = None
) -> Iterator[Option]:
    """Answers of the solver with the equations they need, proven ones; only such as change
    something."""
    seen = {start.outputs}
    for e in found:
        for node in e.made:
            grown.classes.add(node)
        equations = grown.needed(zip(start.results, e.made, strict=True))
        if equations and e.made not in seen:
            seen.add(e.made)
            proven = equations if told is None else told.kept(equations)
            if proven is None:
                continue
            equations = proven
            yield Option(Graph(start.inputs, e.made), e.cost, e.gap, equations)


def extracted(
    classes: EGraph,
    programs: Sequence[Sequence[Node]],
    roots: Sequence[Node],
    pricing: Pricing,
    known: Callable[[Node], bool],
    limits: Limits,
) -> list[Extraction]:
    """The cheapest programs of an e-graph, over all kernels that grow in it."""
    columns = Columns(classes, pricing.kernels, known, roots)
    return extract(columns, programs, roots, border=pricing.border, convert=pricing.convert,
                   seconds=limits.solver, count=limits.count)  # fmt: skip


def _best_first(start: Graph, given: Given, budget: Budget, grown: Saturation) -> Graph:
    """What the best-first search makes of a region; its matches become equations."""
    space = RewriteSpace(
        start, given.pricing.graph, given.prover, given.rules, single=False, admit=given.admit
    )
    try:
        outcome = search(space, Greedy(), budget.part(candidates=given.limits.candidates))
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
