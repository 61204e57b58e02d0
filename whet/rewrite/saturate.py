"""Equality saturation: every way of every rule, until nothing is news or the budget ends.

    round := view, match every way where something changed, apply all, rebuild

An application is an equation: the rule's two sides, built over representatives. Both become terms
and one class. Budgets are counted in e-nodes, rounds and matches; a way with more matches in one
round than it may have rests for a few (the backoff of egg, Willsey et al., POPL 2021), so that one
rule that is always applicable does not starve the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from whet.errors import WhetError
from whet.ir.graph import Node, topological
from whet.ir.types import DType
from whet.rewrite.egraph import EGraph
from whet.rewrite.ematch import View, Way, found
from whet.rewrite.match import Match
from whet.rewrite.prove import Prover
from whet.rewrite.rule import Floating
from whet.rewrite.syntax import Apply, Pattern
from whet.search import Budget, StopReason

MATCHES = 4000  # of one way in one round
REST = 3  # rounds that a way sits out when it had more


@dataclass
class Saturation:
    """An e-graph with the equations that made it.

    Attributes:
        classes: the e-graph.
        ways: what is applied.
        prover: says which statements hold.
        equations: what was applied, by number; the reasons in `classes`.
        counts: equations by rule.
        refused: matches that were none, by reason.
        stop: why the last run ended.
        rounds: of all runs together.
    """

    classes: EGraph
    ways: Sequence[Way]
    prover: Prover = field(default_factory=Prover)
    equations: list[Match] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    stop: StopReason | None = None
    rounds: int = 0

    def __post_init__(self) -> None:
        self._born: dict[Node, int] = {}
        self._made: dict[Way, set[Node]] = {w: set() for w in self.ways}
        self._resting: dict[Way, int] = {}
        self._missed: dict[Way, set[Node] | None] = dict.fromkeys(self.ways)
        self._depth = max((_depth(w) for w in self.ways), default=0)

    def run(
        self, budget: Budget | None = None, *, rounds: int = 12, matches: int = MATCHES
    ) -> StopReason:
        """Grow the e-graph.

        Args:
            budget: of nodes (e-nodes that are added) and seconds.
            rounds: at most so many.
            matches: of one way in one round.

        Returns:
            Why it ended: SATURATED where no way has anything to add.
        """
        budget = budget or Budget()
        self.stop = None
        for _ in range(rounds):
            news = self._round(budget, matches)
            self.rounds += 1
            self.stop = budget.stop()
            if self.stop is None and not news and not self._resting:
                self.stop = StopReason.SATURATED
            if self.stop is not None:
                return self.stop
        self.stop = StopReason.BUDGET
        return self.stop

    def _round(self, budget: Budget, most: int) -> bool:
        changed = self.classes.take_touched(self._depth)
        view = View(self.classes)
        drawn: list[tuple[Way, list[Match]]] = []
        for way in self.ways:
            missed = self._missed[way]
            if missed is not None:  # None: this way has seen nothing yet
                missed |= changed
            if self._resting.get(way, 0) > self.rounds:
                continue
            self._resting.pop(way, None)
            drawn.append((way, self._drawn(view, way, missed, most)))
            if budget.stop() is not None:
                break
        news = False
        for way, matches in drawn:
            for match in matches:
                before = len(self.classes)
                news |= self.apply(match, way)
                budget.spend(nodes=max(0, len(self.classes) - before))
                if budget.stop() is not None:
                    return True
        return news

    def _drawn(self, view: View, way: Way, missed: set[Node] | None, most: int) -> list[Match]:
        """This way's matches; a way with too many of them rests, and has the others later."""
        matches: list[Match] = []
        for match in found(view, way, self.prover, missed, self._made[way]):
            matches.append(match)
            if len(matches) >= most:
                self._resting[way] = self.rounds + REST
                return matches
        self._missed[way] = set()
        return matches

    def apply(self, match: Match, way: Way | None = None) -> bool:
        """State the equation that a match is; whether it was news.

        Matches from elsewhere (another search over the same graph) are as good as found ones; they
        are bound to the representatives of what they bind.
        """
        if way is None:
            bound = {k: None if n is None else self.classes.add(n)
                     for k, n in match.tensors.items()}  # fmt: skip
            match = replace(match, tensors=bound)
        try:
            left, right = match.left, match.right
            reason = match.unfounded()
        except (WhetError, ArithmeticError) as fault:
            reason = str(fault.args[0]) if fault.args else "a side cannot be built"
        if reason is None and is_risky(match):
            reason = f"{match.rule.proof.floating} in {match.dtype.name}"
        if reason is not None:
            self.refused[reason] += 1
            return False
        number = len(self.equations)
        known = [a in self.classes and b in self.classes and self.classes.equal(a, b)
                 for a, b in zip(left, right, strict=True)]  # fmt: skip
        if all(known):
            return False
        before = set() if way is None or not way.conjecture.is_family else set(match.fresh)
        for node in (*left, *right):
            self._enter(node, number)
        if way is not None and way.conjecture.is_family:
            self._made[way] |= before
        news = False
        for a, b in zip(left, right, strict=True):
            news |= self.classes.union(a, b, number)
        self.equations.append(match)
        if news:
            self.counts[match.rule.name] += 1
        return news

    def _enter(self, root: Node, number: int) -> None:
        if root in self.classes:
            return
        for node in topological((root,)):
            if node not in self.classes:
                self._born[node] = number
        self.classes.add(root)

    def needed(self, pairs: Iterable[tuple[Node, Node]]) -> list[Match]:
        """The equations from which it follows that each pair is equal, in the order they came.

        What is bound in one is either a term of the start or built by an earlier one of them.
        """
        flat = [n for pair in pairs for n in pair]
        todo = list(self.classes.explain(*flat))
        kept: set[int] = set()
        while todo:
            number = todo.pop()
            if number in kept:
                continue
            kept.add(number)
            match = self.equations[number]
            bound = (*match.tensors.values(), *match.own.values())
            todo.extend(self._born[n] for n in bound if n is not None and n in self._born)
        return [self.equations[k] for k in sorted(kept)]


def is_risky(match: Match) -> bool:
    """Whether a rule that may overflow or cancel would be applied in half precision."""
    risky = match.rule.proof.floating in (Floating.CANCELLING, Floating.OVERFLOW_RISK)
    return risky and match.dtype in (DType.f16, DType.bf16)


def _depth(way: Way) -> int:
    def deep(p: Pattern | None) -> int:
        return 1 + max(map(deep, p.args), default=0) if isinstance(p, Apply) else 0

    _, patterns = way.patterns(2 if way.conjecture.width_name else 0)
    return max(map(deep, patterns), default=0)
