"""Rewriting a captured graph: what is searched, with which rules, and what is kept of it.

    folded   best-first with the rules that leave no doubt: folding into weights, neutral elements,
             whole operators from their pieces, movement
    solved   from there on every rule at once, region by region: equality saturation, then the
             cheapest kernels

Both are priced by prediction. Whether merging products that share an operand, hoisting and
association pay depends on library and shape, so both graphs go on to be compiled and measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from whet.ir.graph import Graph
from whet.rewrite.certificate import Line
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.prove import Prover
from whet.rewrite.solve import solve
from whet.rewrite.space import RewriteSpace
from whet.run.pricing import predicted, pricing
from whet.run.record import Rewrite
from whet.search import Budget, Greedy, Journal, StopReason, search
from whet.store import Store

RULES = ("saturation", *(c.text for c in CONJECTURES.values()))
"""Texts of all rules: what a search depends on."""

_DOUBTFUL = ("merge", "hoist", "associate", "compose", "distribute", "add linears")
SURE = {n: c for n, c in CONJECTURES.items() if not n.startswith(_DOUBTFUL)}
"""The rules of the first search."""


@dataclass(frozen=True)
class Rewritten:
    """A graph after rewrites, with what was applied.

    Attributes:
        graph: what the steps lead to.
        steps: of the certificate, in order.
        rows: the same for readers.
        stop: why the search ended.
        journals: of the searches that led here, as JSON Lines; `whet.search.replay` reads them.
    """

    graph: Graph
    steps: tuple[Line, ...] = ()
    rows: tuple[Rewrite, ...] = ()
    stop: str = ""
    journals: tuple[str, ...] = ()

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


def rewritten(graph: Graph, store: Store, budget: Budget) -> list[Rewritten]:
    """The graphs worth compiling: all rules first, then without those in doubt, if that differs."""
    prover = Prover(Proofs(store))
    folded = _searched(Rewritten(graph), SURE, prover, budget)
    if folded.stop == str(StopReason.INTERRUPTED):  # who stops one search has not asked for another
        return [folded]
    best = _solved(folded, prover, budget)
    return [best] if best.graph == folded.graph else [best, folded]


def _solved(start: Rewritten, prover: Prover, budget: Budget) -> Rewritten:
    solution = solve(start.graph, searched_with(), pricing(start.graph), prover, budget)
    stops = {s.stop for s in solution.regions if s.stop is not None}
    stop = budget.stop() or (StopReason.BUDGET if StopReason.BUDGET in stops else None)
    rows = [Rewrite(*row) for s in solution.regions for row in s.rows(start.graph)]
    return Rewritten(
        solution.graph,
        (*start.steps, *solution.lines),
        (*start.rows, *rows),
        str(stop or StopReason.SATURATED),
        start.journals,
    )


def searched_with() -> Mapping[str, Conjecture]:
    """The rules that saturation is run with."""
    return CONJECTURES


def space_of(
    graph: Graph, rules: Mapping[str, Conjecture], prover: Prover | None = None
) -> RewriteSpace:
    """The space that is searched from `graph`; a new one replays the search's journal."""
    return RewriteSpace(graph, predicted, prover, rules, single=False)


def _searched(
    start: Rewritten, rules: Mapping[str, Conjecture], prover: Prover, budget: Budget
) -> Rewritten:
    space = space_of(start.graph, rules, prover)
    journal = Journal()
    outcome = search(space, Greedy(), budget.part(), journal)
    best = outcome.best.state
    steps = space.certificate(best)
    lines = {n.digest: line for g in (start.graph, best) for n, line in g.where.items()}
    rows = [
        Rewrite(place.name, lines.get(place.roots[0], ""), place.proof)
        for step in steps
        for place in step.places
    ]
    journals = (*start.journals, "\n".join(journal.lines) + "\n")
    return Rewritten(best, start.steps + steps, (*start.rows, *rows), str(outcome.stop), journals)
