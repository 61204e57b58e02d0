"""What the library's table says is proven, taken for proven while a search goes on.

    Told.prove      the table's word at the forms that `whet rules verify` proves; else the prover's
    Told.kept       the equations of an answer, each rule proven; None where one is not

A search asks about hundreds of statements, an answer rests on a few. Only these are proven, before
the answer is one; whoever checks a certificate proves them again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from whet.errors import WhetError
from whet.rewrite.conjecture import Form, Statement, build
from whet.rewrite.library import entries, library
from whet.rewrite.lift import forms_of
from whet.rewrite.match import Match
from whet.rewrite.prove import Prover, floating
from whet.rewrite.rule import Proof, Rule, Verdict


class Told(Prover):
    """A prover that believes the shipped table.

    Args:
        prover: proves what the table does not say.
    """

    def __init__(self, prover: Prover) -> None:
        super().__init__()
        self.prover = prover

    def prove(self, statement: Statement | str, form: Form | None = None) -> Verdict:
        """As `Prover.prove`; what the table says is a Rule that is nobody's proof yet."""
        if isinstance(statement, str) or statement.form not in _forms(statement.conjecture.name):
            return self.prover.prove(statement, form)
        if library().get(statement.conjecture.name) is not statement.conjecture:
            return self.prover.prove(statement)
        text = statement.text
        if text not in self._verdicts:
            told = _told(statement)
            self._verdicts[text] = told or self.prover.prove(statement)
        return self._verdicts[text]

    def kept(self, equations: Sequence[Match]) -> list[Match] | None:
        """Equations with rules that are proven; None where one is not."""
        found: list[Match] = []
        for match in equations:
            verdict = self.prover.prove(match.rule.statement)
            if not isinstance(verdict, Rule):
                return None
            found.append(match if verdict is match.rule else replace(match, rule=verdict))
        return found


@functools.cache
def _forms(name: str) -> frozenset[Form]:
    """The forms at which the table says that a rule is proven for all shapes."""
    covers = {e.name: e.covers for e in entries()}.get(name, "")
    return frozenset(forms_of(library()[name]) if covers.startswith("all-shapes") else ())


def _told(statement: Statement) -> Rule | None:
    """As a rule, for numbers of one precision at a time; None where no side can be built."""
    scope = statement.symbols
    try:
        leaves = statement.leaves(scope)
        left, right = (
            build(s, leaves, scope) for s in (statement.sides.left, statement.sides.right)
        )
    except (WhetError, ArithmeticError):
        return None
    rounding = floating(left, right)
    return Rule(statement, Proof(statement.text, statement.coverage, (), 0, 0, rounding, False, ""))
