"""A minimal library: what the other rules derive is dropped.

Rules are looked at from the most special to the most general (more operators, fewer tensors, later
found first), and one goes if equality saturation with those that are left leads from its left side
to its right side. Budgets are counts, so the result is the same on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from whet.rewrite.conjecture import Conjecture, Statement
from whet.rewrite.decide import derivation
from whet.rewrite.lift import forms_of
from whet.rewrite.prove import Prover
from whet.rewrite.syntax import Apply, Var, operators, walk

_NODES, _ROUNDS = 160, 3


def minimal(
    rules: Mapping[str, Conjecture], prover: Prover, tell: Callable[[str], None] = lambda _: None,
    known: Mapping[str, bool] | None = None, note: Callable[[str, bool], None] = lambda *_: None,
) -> dict[str, Conjecture]:  # fmt: skip
    """The rules that the others do not derive, in the order given.

    Args:
        known: by name, which ones were found derivable by a run that was cut off.
        note: told of each as soon as it is known.
    """
    kept = dict(rules)
    order = sorted(rules, key=lambda n: _generality(rules[n]))
    for done, name in enumerate(order):
        if done % 10 == 0:
            tell(f"pruning: {done} of {len(order)}, {len(order) - len(kept)} were derivable")
        rule = kept.pop(name)
        if known is not None and name in known:
            goes = known[name]
        else:
            goes = rule.width_name is None and derivable(rule, near(rule, kept), prover)
            note(name, goes)
        if not goes:
            kept[name] = rule
    return {n: rules[n] for n in rules if n in kept}


def derivable(rule: Conjecture, others: Mapping[str, Conjecture], prover: Prover) -> bool:
    """Whether a rule follows from others, at the first and the last form that stand for it."""
    forms = list(forms_of(rule))
    return all(
        derivation(Statement(rule, form), others, prover, nodes=_NODES, rounds=_ROUNDS) is not None
        for form in dict.fromkeys((forms[0], forms[-1]))
    )


def near(rule: Conjecture, others: Mapping[str, Conjecture]) -> dict[str, Conjecture]:
    """The rules over operators of this one: others hardly ever help."""
    own = _operators(rule)
    return {n: c for n, c in others.items() if c.width_name is None and _operators(c) <= own}


@functools.cache
def _operators(c: Conjecture) -> frozenset[str]:
    sides = c.sides(2 if c.width_name else 0)
    return operators((*sides.left, *sides.right))


def _generality(c: Conjecture) -> tuple[int, int, int]:
    """Smallest for what is to be looked at first."""
    sides = c.sides(2 if c.width_name else 0)
    patterns: Sequence[object] = list(walk((*sides.left, *sides.right)))
    operators = sum(isinstance(p, Apply) for p in patterns)
    uses = sum(isinstance(p, Var) for p in patterns)
    return (-operators, len(sides.variables) * 2 - uses, -len(sides.groups))
