"""The forms at which a conjecture is shown and verified on its own, apart from any model.

A conjecture is proven at a form: the width of its families, the ranks of its groups of axes, the
axes that attributes name, the operands left out. Within a model the match says what they are; here
a width of three, groups of rank two, and axes that are not symmetric stand for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from whet.rewrite.conjecture import Conjecture, Form

WIDTH, RANK = 3, 2

# fmt: off
VALUES: Mapping[str, object] = {"p": (1, 2, 0), "q": (2, 0, 1), "a": 0}

# Conjectures that hold at special attributes only, or whose attributes are no axes.
SPECIAL: Mapping[str, Mapping[str, object]] = {
    "no permute":                      {"p": (0, 1, 2)},
    "attention by division":           {"s": 8.0},
    "attention by division with mask": {"s": 8.0},
    "reshape of reshape":              {"s": (12, 4), "t": (4, 6, 2), "B": (4, 12)},
}
# fmt: on


def forms(conjecture: Conjecture) -> Iterator[Form]:
    """One form with everything present, then one without what is optional, one with sizes of 1."""
    width = WIDTH if conjecture.width_name else 0
    sides = conjecture.sides(width)
    named = SPECIAL.get(conjecture.name) or {name: VALUES[name] for name in sides.structural}
    rank = len(VALUES["p"]) if "p" in named else RANK  # type: ignore[arg-type]
    ranks, values = tuple((group, rank) for group in sides.groups), tuple(named.items())
    yield Form(width, ranks, values)
    absent = tuple(v.name for v in sides.variables.values() if v.optional)
    if absent:
        yield Form(width, ranks, values, absent)
    if sides.stretched:
        yield Form(width, ranks, values, (), sides.stretched[:2])
