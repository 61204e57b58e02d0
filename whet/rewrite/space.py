"""The space of rewrites: graphs, and the proven rules that lead from one to the next.

    state   a Graph
    move    a rule's matches that belong together: all that produce one new node (the steps of a
            recurrence whose product is hoisted, the members of a family), or all of one rule
    cost    given by the caller: whatever prices a graph

A state remembers how it was reached first, so that any state has its certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.errors import GraphError
from whet.ir.graph import Graph, Node
from whet.rewrite.certificate import Step, step_of
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.match import Match, apply_matches
from whet.rewrite.pattern import matches
from whet.rewrite.prove import Prover
from whet.rewrite.saturate import Admit, is_safe
from whet.search import Budget, Candidate, Cost, Refutation, Scored


@dataclass(frozen=True)
class Move:
    """Matches of one rule that are applied together."""

    matches: tuple[Match, ...]

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        roots = ", ".join(r.digest[:8] for m in self.matches for r in m.roots)
        return f"{self.matches[0].rule.name} at {roots}"


class RewriteSpace:
    """Graphs that proven rules lead to from one graph.

    Args:
        graph: the start.
        price: cost of a graph.
        prover: remembers what was proven; a new one by default.
        conjectures: what may be used, if it can be proven; all that are shipped by default.
        single: also propose each group of matches alone, besides all of a rule together.
        admit: says which matches may be used of those that hold over the reals.
    """

    def __init__(
        self,
        graph: Graph,
        price: Callable[[Graph], Cost],
        prover: Prover | None = None,
        conjectures: Mapping[str, Conjecture] = CONJECTURES,
        *,
        single: bool = True,
        admit: Admit = is_safe,
    ) -> None:
        self.graph = graph
        self.price = price
        self.prover = prover or Prover()
        self.conjectures = conjectures
        self.single = single
        self.admit = admit
        self._reached: dict[Graph, tuple[Graph, Move]] = {}

    def start(self) -> Graph:
        """The original graph."""
        return self.graph

    def propose(self, kept: Sequence[Scored[Graph]], budget: Budget) -> Iterable[Candidate[Graph]]:
        """Every rule at all its places at once, then at each group of places."""
        for scored in kept:
            for conjecture in self.conjectures.values():
                if budget.stop() is not None:
                    return
                for move in self._moves(scored.state, conjecture):
                    try:
                        after = apply_matches(scored.state, move.matches)
                    except GraphError:
                        continue  # matches that overlap; each alone is proposed as well
                    if after != scored.state:
                        self._reached.setdefault(after, (scored.state, move))
                        yield Candidate(scored.state, after, move)

    def check(self, c: Candidate[Graph]) -> Refutation | None:
        """Results keep their types; each match is sound by itself, or it was never proposed."""
        before = [n.type for n in c.before.results]
        after = [n.type for n in c.after.results]
        return None if before == after else Refutation("a result has another type", (before, after))

    def cost(self, cs: Sequence[Candidate[Graph]]) -> list[Scored[Graph]]:
        """What the caller's price says of each graph."""
        return [Scored(c.after, self.price(c.after)) for c in cs]

    def applied(self, graph: Graph) -> list[Match]:
        """The matches that lead from the start to a graph that was proposed, in order."""
        return [m for _, group, *_ in self.path(graph) for m in group]

    def path(self, graph: Graph) -> list[tuple[Graph, tuple[Match, ...], Graph, Step]]:
        """The way from the start to a graph that was proposed: before, matches, after, and the step
        of the certificate. Raises KeyError for another graph."""
        found: list[tuple[Graph, tuple[Match, ...], Graph, Step]] = []
        while graph != self.graph:
            before, move = self._reached[graph]
            found.append((before, move.matches, graph, step_of(before, move.matches, graph)))
            graph = before
        return found[::-1]

    def certificate(self, graph: Graph) -> tuple[Step, ...]:
        """The steps from the start to a graph that was proposed. Raises KeyError for another."""
        return tuple(step for *_, step in self.path(graph))

    def _moves(self, graph: Graph, conjecture: Conjecture) -> Iterator[Move]:
        found = [m for m in matches(graph, conjecture, self.prover) if self.admit(m)]
        if not found:
            return
        yield Move(tuple(found))
        groups = list(grouped(graph, found)) if self.single else []
        if len(groups) > 1:
            yield from map(Move, groups)


def grouped(graph: Graph, found: Sequence[Match]) -> Iterator[tuple[Match, ...]]:
    """Matches sorted into groups that share a new node, directly or through others."""
    present = set(graph.nodes)
    owner: dict[Node, int] = {}
    leader = list(range(len(found)))

    def find(k: int) -> int:
        while leader[k] != k:
            leader[k] = leader[leader[k]]
            k = leader[k]
        return k

    for k, m in enumerate(found):
        for node in m.fresh:
            if node not in present and not node.is_leaf and node.op != "full":
                leader[find(k)] = find(owner.setdefault(node, k))
    groups: dict[int, list[Match]] = {}
    for k, m in enumerate(found):
        groups.setdefault(find(k), []).append(m)
    yield from map(tuple, groups.values())
