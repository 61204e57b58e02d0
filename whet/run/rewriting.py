"""Rewriting a captured graph: proven rules, applied where a predicted cost falls."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

from whet.ir.graph import Graph
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.pattern import Match, apply_matches, matches
from whet.rewrite.prove import Prover
from whet.run.pricing import predicted
from whet.run.record import Rewrite
from whet.store import Store


@dataclass(frozen=True)
class Rewritten:
    """A graph after rewrites, with what was applied."""

    graph: Graph
    rows: tuple[Rewrite, ...] = ()
    certificate: tuple[str, ...] = ()
    stop: str = ""


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


def simplified(graph: Graph, store: Store, budget_s: float) -> Rewritten:
    """Apply every rule wherever all its matches together lower the predicted cost, to a fixpoint."""
    prover = Prover(Proofs(store))
    deadline = time.monotonic() + budget_s
    rows: list[Rewrite] = []
    cost, changed = predicted(graph).seconds, True
    while changed:
        changed = False
        for conjecture in CONJECTURES.values():
            if time.monotonic() > deadline:
                return Rewritten(graph, tuple(rows), (), "Budget")
            group = list(matches(graph, conjecture, prover))
            if not group:
                continue
            new = apply_matches(graph, group)
            price = predicted(new).seconds
            if price < cost * 0.9999:
                rows += [_row(graph, m) for m in group]
                graph, cost, changed = new, price, True
    return Rewritten(graph, tuple(rows), (), "Saturated")


def _row(graph: Graph, match: Match) -> Rewrite:
    return Rewrite(match.rule.name, graph.where.get(match.roots[0], ""), str(match.rule.proof))
