"""Rewriting a captured graph: what is searched, with which rules, and what is kept of it.

    folded    best-first with the rules that leave no doubt: folding into weights, neutral elements,
              whole operators from their pieces, movement
    solved    from there on every rule at once, region by region: equality saturation, then the
              cheapest kernels, the best few answers for each; first the rules that are stated by
              hand, then in what is left of the time, from there, those that were generated
    measured  each part that changed, before and after; what is slower is left out

Searches price by prediction. Whether merging products that share an operand, hoisting and
association pay depends on library and shape, so the parts are timed, and the graphs that come of it
go on to be compiled and measured, the one without any rewrite among them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from whet.errors import MissingError, WhetError
from whet.ir.graph import Graph, Node
from whet.ir.text import parse_graph, print_graph
from whet.rewrite import integers
from whet.rewrite.certificate import Line, parse
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.library import library
from whet.rewrite.match import Match
from whet.rewrite.prove import Prover
from whet.rewrite.region import instances, is_known
from whet.rewrite.saturate import Saturation
from whet.rewrite.solve import Pricing, Solved, by_rules, composed, saturation, solve
from whet.rewrite.space import RewriteSpace
from whet.rewrite.toom import RECASTS
from whet.run.admission import Admission
from whet.run.gains import Part, Stopwatch, fastest, is_slower, parts
from whet.run.modules import module_of, pattern
from whet.run.pricing import predicted, pricing
from whet.run.record import Gain, Rewrite
from whet.search import Budget, Greedy, Journal, StopReason, search
from whet.store import Store

MEMORY = 4 << 30
"""Bytes that a process may come to hold more while it searches: an e-graph is not all there is."""
KIND = "rewritten-1"
"""What rewritten graphs are filed under, by the digest of the captured one."""


@functools.cache
def texts() -> tuple[str, ...]:
    """Texts of all rules: what a search depends on."""
    rules = (*CONJECTURES.values(), *RECASTS.values(), *library().values())
    return ("saturation", *(c.text for c in rules))


CLEAR = 0.95
"""Share of a region's predicted cost, below which an answer stays unless it is measured slower; one
that gains less must be measured faster."""

_DOUBTFUL = ("merge", "hoist", "associate", "compose", "distribute", "add linears")
SURE = {n: c for n, c in CONJECTURES.items() if not n.startswith(_DOUBTFUL)}
"""The rules of the first search."""


@dataclass(frozen=True)
class Rules:
    """What the searches may use.

    Attributes:
        sure: rules of the best-first search over the whole graph.
        every: rules of saturation.
        both: those of them that saturation reads in both directions: what is stated by hand says
            which side is wanted, what is generated does not.
        beside: rules that saturation goes on with, in both directions, from what the others found.
    """

    sure: Mapping[str, Conjecture] = field(default_factory=lambda: SURE)
    every: Mapping[str, Conjecture] = field(default_factory=lambda: CONJECTURES)
    both: Collection[str] = ()
    beside: Mapping[str, Conjecture] = field(default_factory=library)

    def without(self, names: Collection[str]) -> Rules:
        """These, but for the ones of these names."""
        sure, every, beside = (
            {n: c for n, c in rules.items() if n not in names}
            for rules in (self.sure, self.every, self.beside)
        )
        return Rules(sure, every, self.both, beside)


def generated() -> Rules:
    """What `whet rules generate` found, and nothing that was stated by hand."""
    return Rules({}, library(), library().keys(), {})


def by_hand() -> Rules:
    """What was stated by hand, and nothing that was generated."""
    return Rules(beside={})


@dataclass(frozen=True)
class Rewritten:
    """A graph after rewrites, with what was applied.

    Attributes:
        graph: what the steps lead to.
        steps: of the certificate, in order.
        rows: the same for readers.
        stop: why the search ended.
        journals: of the searches that led here, as JSON Lines: the best-first search's, which
            `whet.search.replay` reads, then one for each region that changed, which `regrown` does.
        gains: what parts were measured to be worth, those left out for it among them.
        before: this without its last line; None where there is none.
        changed: rules and module of the last line.
        answer: the region that the last line is about, None where it is none.
        regions: all regions, where any became something else.
    """

    graph: Graph
    steps: tuple[Line, ...] = ()
    rows: tuple[Rewrite, ...] = ()
    stop: str = ""
    journals: tuple[str, ...] = ()
    gains: tuple[Gain, ...] = ()
    before: Rewritten | None = None
    changed: tuple[tuple[str, ...], str] = ((), "")
    answer: Solved | None = None
    regions: tuple[Solved, ...] = ()

    @property
    def guards(self) -> tuple[str, ...]:
        """What the steps assume of symbolic sizes, as comparisons of them; () where sizes are
        numbers, or where it holds for all."""
        return tuple(dict.fromkeys(g for s in self.steps for p in s.places for g in p.assumes))

    @property
    def certificate(self) -> tuple[str, ...]:
        """One line a step."""
        return tuple(map(str, self.steps))


class Proofs(MutableMapping[str, str]):
    """The store's proofs as a mapping, for the prover."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getitem__(self, key: str) -> str:
        value = self.store.get("proof", key)
        if not isinstance(value, str):
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: str) -> None:
        self.store.put("proof", key, value)

    def __delitem__(self, key: str) -> None:
        self.store.delete("proof", key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.store.keys("proof"))

    def __len__(self) -> int:
        return len(self.store.keys("proof"))


def rewritten(
    graph: Graph,
    store: Store,
    budget: Budget,
    *,
    watch: Stopwatch | None = None,
    rules: Rules | None = None,
    training: bool = False,
) -> list[Rewritten]:
    """The graphs worth compiling: all rules first, then without those in doubt, then without any,
    as far as these differ.

    What is found with solvers is filed. Where they are missing that is taken, if the store knows
    the graph; else the rules are those that the store has proofs of, and without highspy regions
    stay as they are. `stop` of the first says so.

    Args:
        watch: times the parts that change; without one predictions decide.
        rules: that may be used; all that are shipped by default.
        training: the graph is a training step: parameters change from run to run, so nothing that
            depends on them is free.
    """
    rules = rules or Rules()
    budget = budget.part(memory=MEMORY)
    prover = Prover(Proofs(store))
    plain = Rewritten(graph)
    folded, found = _searched(plain, rules.sure, prover, budget, training)
    if folded.stop == str(StopReason.INTERRUPTED):  # who stops one search has not asked for another
        return [folded]
    if watch is not None:
        gains, slow = _timed(found, watch)
        if slow:
            folded, _ = _searched(plain, rules.without(slow).sure, prover, budget, training)
        folded = replace(folded, gains=tuple(gains))
    lacking = [] if integers.is_there() else ["no z3: rules proven before, and no others"]
    before = _recalled(graph, store) if lacking and not training else None
    if before is not None:
        return list({r.graph.digest: r for r in (plain, folded, before)}.values())[::-1]
    try:
        best = _solved(folded, rules, prover, budget, watch, training)
    except MissingError as fault:
        best = folded
        lacking.append(f"{fault.summary}: {fault.got}")
    if lacking:
        best = replace(best, stop="; ".join((best.stop, *lacking)))
    elif not training and rules == Rules():
        _keep(graph, store, best)
    return list({r.graph.digest: r for r in (plain, folded, best)}.values())[::-1]


def _keep(graph: Graph, store: Store, found: Rewritten) -> None:
    """Files what solvers led to, for machines that have none."""
    rows = [asdict(r) for r in found.rows]
    row = {"graph": print_graph(found.graph), "steps": list(found.certificate), "rows": rows}
    store.put(KIND, graph.digest, row)


def _recalled(graph: Graph, store: Store) -> Rewritten | None:
    """What was filed for a graph; a row that cannot be read is dropped."""
    row = store.get(KIND, graph.digest)
    if not isinstance(row, dict):
        return None
    try:
        steps = tuple(map(parse, row["steps"]))
        rows = tuple(Rewrite(**r) for r in row["rows"])
        made = parse_graph(row["graph"], graph.constants)
    except (WhetError, KeyError, TypeError):
        store.delete(KIND, graph.digest)
        return None
    return Rewritten(made, steps, rows, "Filed: found where solvers are")


def _solved(
    start: Rewritten,
    rules: Rules,
    prover: Prover,
    budget: Budget,
    watch: Stopwatch | None,
    training: bool,
) -> Rewritten:
    prices = pricing(start.graph, training)
    solution = solve(
        start.graph, rules.every, prices, prover, budget, both=rules.both, beside=rules.beside,
        admit=Admission(), known=_is_constant if training else is_known,
    )  # fmt: skip
    stops = {s.stop for s in solution.regions if s.stop is not None}
    stop = budget.stop() or (StopReason.BUDGET if StopReason.BUDGET in stops else None)
    gains = [g for s in solution.regions for g in _chosen(s, start.graph, watch, prices)]
    last = replace(
        start, stop=str(stop or StopReason.SATURATED), gains=(*start.gains, *gains)
    )  # fmt: skip
    return with_regions(last, solution.regions)


def with_regions(start: Rewritten, regions: Sequence[Solved]) -> Rewritten:
    """A graph with each of its regions as the option that was taken, line by line."""
    now = start
    for answer, line, graph in composed(start.graph, regions):
        places = places_of(answer, start.graph)
        rows = [Rewrite(*row) for row in _rows(answer, places, start.graph)]
        journal = "\n".join((print_graph(answer.region.graph), *answer.journal))
        now = Rewritten(
            graph, (*now.steps, line), (*now.rows, *rows), start.stop,
            (*now.journals, journal), start.gains, now,
            (tuple(answer.rules), pattern(places)), answer, tuple(regions),
        )  # fmt: skip
    return now


def regrown(journal: str, prover: Prover, rules: Rules | None = None) -> tuple[Graph, Saturation]:
    """A region and its e-graph, grown again as a saved journal says.

    Args:
        journal: one of `Rewritten.journals` that tells of a region.
        rules: that were used; all that are shipped by default.

    Raises:
        SearchError: it does not lead there again.
    """
    rules = rules or Rules()
    rows = journal.splitlines()
    begin = next((k for k, row in enumerate(rows) if row.startswith("{")), len(rows))
    region = parse_graph("\n".join(rows[:begin]))
    grown = saturation(
        region, rules.every, prover, both=rules.both, beside=rules.beside, admit=Admission()
    )
    grown.replay(rows[begin:])
    return region, grown


def _rows(
    answer: Solved, places: Sequence[str], graph: Graph
) -> Iterator[tuple[str, str, str, str]]:
    rows = list(answer.rows(graph))
    each = len(rows) // max(1, len(places))
    for k, row in enumerate(rows):
        yield *row, places[k // each]


def places_of(answer: Solved, graph: Graph) -> list[str]:
    """The user's module for each occurrence of a region."""
    found = []
    for place in answer.region.places:
        outer = instances(answer.region.graph, place)
        roots = [n for m in answer.equations for n in m.left if n in outer]
        stops = [n for m in answer.equations for n in m.tensors.values() if n in outer]
        roots = roots or list(answer.region.graph.results)
        found.append(module_of([outer[n] for n in roots], [outer[n] for n in stops if n]))
    return found


def _is_constant(leaf: Node) -> bool:
    return leaf.op == "constant"


def _chosen(
    answer: Solved, graph: Graph, watch: Stopwatch | None, prices: Pricing
) -> Iterator[Gain]:
    """Take the option that was measured fastest, none where the region itself was; what each of
    its rules is worth alone, and all together."""
    if answer.option is None or watch is None:
        return
    start, where = answer.region.graph, pattern(places_of(answer, graph))
    names, count = tuple(answer.rules), len(answer.region.places)
    timings = watch.times(start, *(o.graph for o in answer.options))
    if timings is None:
        yield Gain(", ".join(names), where, count, math.nan, math.nan)
        return
    sure = answer.after.seconds < CLEAR * answer.before.seconds
    best = fastest(timings, 1 if sure else 0)
    took = timings[best or 1].median_s
    answer.taken = best - 1 if best else None
    kept = best > 0
    if kept:
        names, where = tuple(answer.rules), pattern(places_of(answer, graph))
    if len(names) > 1:
        for name in names:
            alone = by_rules(answer, {name}, prices) if kept else None
            times = watch.times(start, alone.graph) if alone is not None else None
            if times is not None:
                yield Gain(name, where, count, times[0].median_s, times[1].median_s)
    yield Gain(
        ", ".join(names), where, count, timings[0].median_s, took, len(names) > 1, kept
    )  # fmt: skip


def _timed(found: Sequence[Part], watch: Stopwatch) -> tuple[list[Gain], set[str]]:
    """What the parts of the first search are worth, and the rules that made any of them slower."""
    gains: list[Gain] = []
    slow: set[str] = set()
    for part in found:
        times = watch.times(part.before, part.after)
        before, after = (t.median_s for t in times) if times else (math.nan, math.nan)
        if times is not None and is_slower(times[1], times[0]):
            slow.update(part.rules)
        gains.append(
            Gain(", ".join(part.rules), pattern(part.places), len(part.places), before, after)
        )
    return [replace(g, kept=g.rules not in slow) for g in gains], slow


def space_of(
    graph: Graph,
    rules: Mapping[str, Conjecture],
    prover: Prover | None = None,
    training: bool = False,
) -> RewriteSpace:
    """The space that is searched from `graph`; a new one replays the search's journal."""
    price = functools.partial(predicted, training=training)
    return RewriteSpace(graph, price, prover, rules, single=False, admit=Admission())


def _searched(
    start: Rewritten,
    rules: Mapping[str, Conjecture],
    prover: Prover,
    budget: Budget,
    training: bool = False,
) -> tuple[Rewritten, list[Part]]:
    """What the best-first search leads to, step by step, and the parts that it changed."""
    space = space_of(start.graph, rules, prover, training)
    journal = Journal()
    outcome = search(space, Greedy(), budget.part(), journal)
    best, now = outcome.best.state, start
    found: list[Part] = []
    for before, group, after, step in space.path(best):
        places = [_module(m) for m in group]
        rows = [
            Rewrite(p.name, next((before.where[r] for r in m.roots if r in before.where), ""),
                    p.proof, place)
            for p, m, place in zip(step.places, group, places, strict=True)
        ]  # fmt: skip
        found += parts(before, group, places)
        now = Rewritten(
            after, (*now.steps, step), (*now.rows, *rows), before=now,
            changed=((group[0].rule.name,), pattern(places)),
        )  # fmt: skip
    journals = (*start.journals, "\n".join(journal.lines) + "\n")
    return replace(now, stop=str(outcome.stop), journals=journals), found


def _module(m: Match) -> str:
    return module_of(m.roots, [n for n in m.tensors.values() if n is not None])
