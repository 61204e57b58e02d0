"""Which strategies of a model ranks can carry out, asked of the lowering itself.

limits(library)            EXECUTED, and one microbatch where a model asks for it
refusal(library, s)        why `compose.program` refuses a strategy, if it does
chosen(library, s)         the choices of every place, as `compose.program` wants them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from whet.errors import WhetError
from whet.ir.graph import Node
from whet.parallel.choice import Choice
from whet.parallel.compose import program
from whet.parallel.expert import divisors
from whet.parallel.library import Library
from whet.parallel.limits import EXECUTED, Limits
from whet.parallel.program import Chosen, same
from whet.parallel.strategy import Part, Recipe, Strategy

First = Callable[[Part, int], Mapping[Node, Choice] | None]


def chosen(library: Library, strategy: Strategy, first: First = lambda _, __: None) -> Chosen:
    """The choices of a strategy at every place of the model, on the nodes of that place.

    Args:
        first: choices that are given, on the first occurrence of the block at a place; where it
            has none, those that the library finds.
    """
    model, known = library.model, dict[object, Mapping[Node, Choice]]()

    def at(part: Part, place: int) -> Mapping[Node, Choice]:
        key = (model.order[place], part.recipe, part.devices)
        if key not in known:
            said = first(part, place)
            if said is None:
                said = dict(library.choices_of(part, place, strategy.microbatches))
            known[key] = said
        to = same(model.layers[model.order[place]], model.rows[place])
        return {to.get(n, n): c for n, c in known[key].items()}

    return at


def refusal(library: Library, strategy: Strategy) -> WhetError | None:
    """Why ranks cannot carry out a strategy; None if they can."""
    try:
        program(library.model, strategy, chosen(library, strategy))
    except WhetError as fault:
        return fault
    return None


def limits(library: Library) -> Limits:
    """`EXECUTED`, and one microbatch if the whole step on one device cannot be taken in parts.

    Samples depend on each other, say, by the statistics of a batch norm. They are cut by
    microbatches alike in all strategies, so one lowering answers for all.
    """
    model = library.model
    if len(divisors(model.batch)) < 2:
        return EXECUTED
    recipe = Recipe((("data", 1), ("tensor", 1)))
    whole = Strategy((Part(0, len(model.order), (0,), recipe),), divisors(model.batch)[1])
    if refusal(library, whole) is None or refusal(library, replace(whole, microbatches=1)):
        return EXECUTED
    return replace(EXECUTED, microbatches=1)
