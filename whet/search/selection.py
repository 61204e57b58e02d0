"""Selections: the space whose proposals are a solver's answers.

A state is a set of columns of a 0-1 program (the e-nodes of an extraction, the clusters of a
partition). What the program cannot say in advance (a cycle through the chosen e-nodes) is found
when an answer is checked, and becomes a cut; the solver answers again:

    propose: minimize → check: cut? → minimize with the cut → … → an answer that stands → cost

The loop pulls a proposal only after it has checked the one before, which is all this needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from whet.errors import SearchError
from whet.search.budget import Budget
from whet.search.integer import Constraint, Status, minimize
from whet.search.space import Candidate, Cost, Refutation, Scored, Source

Chosen = frozenset[int]


class Selection:
    """Choose columns. Run it with any strategy; `Greedy` takes the answers of one round.

    Args:
        costs: predicted seconds, one per column.
        constraints: the rows that are known in advance.
        start: a choice that stands, such as the original program.
        cut: the row that a choice violates although every known row holds, or None if it stands.
        price: the true costs of choices, where they are not the sum of their columns'.
        answers: how many choices that stand to propose in all, cheapest first; more than one are
            worth it where `price` knows better than the sum.
    """

    def __init__(
        self,
        costs: Sequence[float],
        constraints: Sequence[Constraint],
        start: Collection[int],
        *,
        cut: Callable[[Chosen], Constraint | None] | None = None,
        price: Callable[[Sequence[Chosen]], Sequence[Cost]] | None = None,
        answers: int = 1,
    ) -> None:
        self.costs = costs
        self.first = frozenset(start)
        self.cut = cut
        self.price = price or self._sums
        self.answers = answers
        self.rows = list(constraints)
        self.stood = 0
        self.bound = 0.0  # predicted seconds that no choice is below, as far as proven

    def start(self) -> Chosen:
        return self.first

    def propose(
        self, kept: Sequence[Scored[Chosen]], budget: Budget
    ) -> Iterator[Candidate[Chosen]]:
        before = kept[0].state
        while self.stood < self.answers:
            solution = minimize(self.costs, self.rows, seconds=budget.seconds_left, start=before)
            if not self.stood:
                self.bound = max(self.bound, solution.bound)
            if not solution.found:
                return
            yield Candidate(before, solution.chosen, f"choose {sorted(solution.chosen)}")
            if all(row.holds(solution.chosen) for row in self.rows):  # no cut came of it
                self.stood += 1
                self.rows.append(Constraint.other_than(solution.chosen, len(self.costs)))
                if solution.status is not Status.OPTIMAL:
                    return

    def check(self, c: Candidate[Chosen]) -> Refutation | None:
        cut = self.cut(c.after) if self.cut else None
        if cut is None:
            return None
        if cut.holds(c.after):
            raise SearchError(
                "a cut has to exclude the choice it was made for", got=cut, where=c.how
            )
        self.rows.append(cut)
        return Refutation("violates a constraint that was not known in advance", cut)

    def cost(self, cs: Sequence[Candidate[Chosen]]) -> list[Scored[Chosen]]:
        states = [c.after for c in cs]
        return [Scored(s, cost) for s, cost in zip(states, self.price(states), strict=True)]

    def _sums(self, states: Sequence[Chosen]) -> list[Cost]:
        return [
            Cost(max(0.0, sum(self.costs[column] for column in state)), source=Source.PREDICTED)
            for state in states
        ]
