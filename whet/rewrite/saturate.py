"""Equality saturation: every way of every rule, until nothing is news or the budget ends.

    round := view, match every way where something changed, apply all, rebuild

An application is an equation: the rule's two sides, built over representatives. Both become terms
and one class. Budgets are counted in e-nodes, rounds and matches; a way with more matches in one
round than it may have rests for a few (the backoff of egg, Willsey et al., POPL 2021), so that one
rule that is always applicable does not starve the others.

    journal := (given | round) *                 one line of JSON each
    round of a run that is `first`: only matches that `saves` is said of; what they leave undone is
    found again later
    given   := a match that another search found, as in a certificate
    round   := drawn, applied, nodes, first      nodes: e-nodes after it
    drawn   := (way, matches, rested) *          in the order they were asked

Matches come in one order, so `replay` needs no more than how many there were, whatever ended the
run, a clock or a count.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from whet.errors import SearchError, WhetError
from whet.ir.graph import Node, topological
from whet.ir.types import DType
from whet.rewrite.certificate import Place, matched, place_of, proven, read, written
from whet.rewrite.egraph import EGraph
from whet.rewrite.ematch import View, Way, found
from whet.rewrite.match import Match
from whet.rewrite.prove import Prover
from whet.rewrite.rule import Floating
from whet.rewrite.syntax import Apply, Pattern
from whet.search import Budget, StopReason

Admit = Callable[[Match], bool]

MATCHES = 4000  # of one way in one round
_PER_LOOK = 64  # matches that are applied from one look at the clock to the next
REST = 3  # rounds that a way sits out when it had more


@dataclass
class Saturation:
    """An e-graph with the equations that made it.

    Attributes:
        classes: the e-graph.
        ways: what is applied.
        prover: says which statements hold.
        admit: says which matches may be used of those that hold over the reals.
        idle: says of a class that no match begins there.
        saves: says of a match that it leads to what costs less, whatever else is done.
        equations: what was applied, by number; the reasons in `classes`.
        counts: equations by rule.
        refused: matches that were none, by reason.
        stop: why the last run ended.
        rounds: of all runs together.
        journal: a line for each round.
    """

    classes: EGraph
    ways: Sequence[Way]
    prover: Prover = field(default_factory=Prover)
    admit: Admit | None = None
    idle: Callable[[Node], bool] = lambda _: False
    saves: Admit = lambda _: True
    equations: list[Match] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    stop: StopReason | None = None
    rounds: int = 0
    journal: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._born: dict[Node, int] = {}
        self._made: dict[Way, set[Node]] = {w: set() for w in self.ways}
        self._resting: dict[Way, int] = {}
        self._stated: set[tuple[object, ...]] = set()
        self._missed: dict[Way, set[Node] | None] = dict.fromkeys(self.ways)
        self._depth = max((_depth(w) for w in self.ways), default=0)
        self._first = False

    def run(
        self, budget: Budget | None = None, *, rounds: int = 12, matches: int = MATCHES,
        first: bool = False, ways: Collection[Way] | None = None,
    ) -> StopReason:  # fmt: skip
        """Grow the e-graph.

        Args:
            budget: of nodes (e-nodes that are added) and seconds.
            rounds: at most so many.
            matches: of one way in one round.
            first: only what `saves`.
            ways: those to be applied; all by default.

        Returns:
            Why it ended: SATURATED where no way has anything to add.
        """
        budget = budget or Budget()
        self.stop = None
        self._phase(first)
        wanted = frozenset(self.ways if ways is None else ways)
        asked = [w for w in self.ways if w in wanted]
        for _ in range(rounds):
            news = self._round(budget, matches, asked)
            self.rounds += 1
            self.stop = budget.stop()
            if self.stop is None and not news and not any(w in self._resting for w in asked):
                self.stop = StopReason.SATURATED
            if self.stop is not None:
                return self.stop
        self.stop = StopReason.BUDGET
        return self.stop

    def replay(self, journal: Iterable[str]) -> None:
        """Grow the e-graph as a journal says, from the start that it was written for.

        Raises:
            SearchError: it is no journal, or this start, these ways or this prover are others.
        """
        ways = {w.name: w for w in self.ways}
        for number, line in enumerate(journal, 1):
            try:
                row: dict[str, Any] = json.loads(line)
                if "given" in row:
                    self.apply(self._given(row["given"]))
                    continue
                asked = [(ways[name], int(count), rests) for name, count, rests in row["drawn"]]
                applied, nodes = int(row["applied"]), int(row["nodes"])
                self._phase(bool(row["first"]))
            except (ValueError, KeyError, TypeError) as fault:
                raise SearchError("not a round of a journal of these ways", got=line[:80],
                                  expected=fault, where=f"round {number}") from None  # fmt: skip
            self._begin()
            view, matches = View(self.classes, self.idle), list[tuple[Way, list[Match]]]()
            for way, count, rests in asked:
                drawn = self._found(view, way)
                found = list(islice(drawn, count))
                matches.append((way, found))
                if len(found) != count or (not rests and next(drawn, None) is not None):
                    raise SearchError("another number of matches than in the journal",
                                      expected=count, got=len(found), where=way.name)  # fmt: skip
                self._rest(way) if rests else self._seen(way)
            for way, match in islice(_in_turn(matches), applied):
                self.apply(match, way)
            self.rounds += 1
            if len(self.classes) != nodes:
                raise SearchError("another e-graph than in the journal", expected=nodes,
                                  got=len(self.classes), where=f"round {number}")  # fmt: skip

    def _phase(self, first: bool) -> None:
        """What was left out by a run that was `first` is to be found again."""
        if self._first and not first:
            self._missed = dict.fromkeys(self.ways)
            self._resting.clear()
        self._first = first

    def _round(self, budget: Budget, most: int, asked: Sequence[Way]) -> bool:
        self._begin()
        view = View(self.classes, self.idle)
        drawn: list[tuple[Way, list[Match]]] = []
        rows: list[tuple[str, int, bool]] = []
        for way in asked:
            if self._resting.get(way, 0) > self.rounds:
                continue
            matches = list(islice(self._found(view, way), most))
            rests = len(matches) == most
            self._rest(way) if rests else self._seen(way)
            drawn.append((way, matches))
            if matches or rests:
                rows.append((way.name, len(matches), rests))
            if (matches or way is asked[-1]) and budget.stop() is not None:
                break
        news, applied = False, 0
        for way, match in _in_turn(drawn):
            before = len(self.classes)
            news |= self.apply(match, way)
            applied += 1
            budget.spend(nodes=max(0, len(self.classes) - before))
            full = budget.nodes_left <= 0  # a clock is slower to read than a count
            if full or (applied % _PER_LOOK == 0 and budget.stop() is not None):
                self._write(rows, applied)
                return True
        self._write(rows, applied)
        return news

    def _given(self, data: dict[str, Any]) -> Match:
        (place,) = read(data)
        nodes = {n.digest: n for n in self.classes.terms}
        return matched(proven(place, self.prover), {**place.bindings, "roots": []}, nodes)

    def _write(self, rows: Sequence[tuple[str, int, bool]], applied: int) -> None:
        row = {"drawn": rows, "applied": applied, "nodes": len(self.classes), "first": self._first}
        self.journal.append(json.dumps(row, ensure_ascii=False))

    def _begin(self) -> None:
        """Note for every way the classes that it has not seen as they are now."""
        changed = self.classes.take_touched(self._depth)
        for missed in self._missed.values():
            if missed is not None:  # None: this way has seen nothing yet
                missed |= changed

    def _found(self, view: View, way: Way) -> Iterator[Match]:
        return found(view, way, self.prover, self._missed[way], self._made[way])

    def _rest(self, way: Way) -> None:
        """A way with too many matches rests, and has the others later."""
        self._resting[way] = self.rounds + REST

    def _seen(self, way: Way) -> None:
        self._resting.pop(way, None)
        self._missed[way] = set()

    def apply(self, match: Match, way: Way | None = None) -> bool:
        """State the equation that a match is; whether it was news.

        Matches from elsewhere (another search over the same graph) are as good as found ones; they
        are bound to the representatives of what they bind.
        """
        if way is None:
            bound = {k: None if n is None else self.classes.add(n)
                     for k, n in match.tensors.items()}  # fmt: skip
            match = replace(match, tensors=bound, element=match.dtype)
        elif (self._first and not self.saves(match)) or self._is_stated(match, way):
            return False
        try:
            left, right = match.left, match.right
            reason = match.unfounded()
        except (WhetError, ArithmeticError) as fault:
            reason = str(fault.args[0]) if fault.args else "a side cannot be built"
        if reason is None and not (self.admit or is_safe)(match):
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
        if way is None:
            bindings = {**place_of(match), "roots": [], "element": match.dtype.name}
            place = Place(match.rule.statement, str(match.rule.proof), bindings)
            self.journal.append(json.dumps({"given": written((place,))}, ensure_ascii=False))
        if news:
            self.counts[match.rule.name] += 1
        return news

    def _is_stated(self, match: Match, way: Way) -> bool:
        """Whether a way has had these bindings: what is near a change is asked again."""
        key = (way, match.roots, *match.tensors.items(), *match.scope.items(), match.flipped)
        if key in self._stated:
            return True
        self._stated.add(key)
        return False

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


def _in_turn(drawn: Sequence[tuple[Way, list[Match]]]) -> Iterator[tuple[Way, Match]]:
    """The first match of each way, then the second of each: none starves where space runs out."""
    for k in range(max((len(ms) for _, ms in drawn), default=0)):
        yield from ((way, ms[k]) for way, ms in drawn if k < len(ms))


def is_safe(match: Match) -> bool:
    """Whether a match is no rule that may overflow or cancel in half precision."""
    risky = match.rule.proof.floating in (Floating.CANCELLING, Floating.OVERFLOW_RISK)
    return not (risky and match.dtype in (DType.f16, DType.bf16))


def _depth(way: Way) -> int:
    def deep(p: Pattern | None) -> int:
        return 1 + max(map(deep, p.args), default=0) if isinstance(p, Apply) else 0

    _, patterns = way.patterns(2 if way.conjecture.width_name else 0)
    return max(map(deep, patterns), default=0)
