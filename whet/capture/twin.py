"""A plan carried over to another size or precision of its model: what a proof can compute.

    twin(plan, step, size) → Planned

The twin has the same operators in the same order, smaller dims, a mesh of two devices for each axis
and fewer repeated blocks. A choice is carried over node by node: the same axis of the operator, and
of its factors the one at the same place. Conversions between float types do not count: the twin is
in float64 and has none of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from whet.capture.planned import Planned, completed
from whet.capture.training import Training
from whet.errors import WhetError
from whet.ir.graph import Node
from whet.parallel.blocks import Layer
from whet.parallel.choice import SUMS, Choice, Choices
from whet.parallel.library import Library
from whet.parallel.planfile import row
from whet.parallel.program import same
from whet.parallel.strategy import Part, Recipe, Strategy


class NoTwin(WhetError):
    """A plan whose choices do not carry over."""


def twin(plan: Planned, step: Training, *, most: int = 2) -> Planned:
    """The plan on another capture of its model.

    Args:
        step: the same architecture.
        most: devices along an axis of the mesh, stages, and microbatches at most.

    Raises:
        NoTwin: the blocks do not correspond, or a choice does not carry over.
    """
    library = Library.of(step.model, plan.library.cluster, plan.library.optimizer)
    strategy, origin = _strategy(plan.strategy, len(step.model.rows), most)
    known: dict[tuple[int, Recipe, int], Mapping[Node, Choice]] = {}

    def chosen(part: Part, place: int) -> Mapping[Node, Choice]:
        stage = strategy.parts.index(part)
        number = step.model.order[place]
        layer = step.model.layers[number]
        key = (number, part.recipe, origin[stage])
        if key not in known:
            there, at = _place(plan, origin[stage], layer)
            old = plan.library.choices(plan.training.model.order[at], there.recipe,
                                       plan.strategy.microbatches)  # fmt: skip
            new = library.choices(number, part.recipe, strategy.microbatches)
            known[key] = _carried(
                plan.training.model.rows[at], plan.chosen(there, at), old, layer, new,
                same(plan.training.model.layers[plan.training.model.order[at]],
                     plan.training.model.rows[at]),
            )  # fmt: skip
        to = same(layer, step.model.rows[place])
        return {to.get(n, n): c for n, c in known[key].items()}

    return completed(plan.name, "float64", step, library, strategy, chosen)


def _strategy(strategy: Strategy, blocks: int, most: int) -> tuple[Strategy, list[int]]:
    """The strategy on fewer devices and blocks; of each stage, the stage that it stands for."""
    old = strategy.parts
    groups = len(old)
    if groups > most or groups > blocks:
        groups = max(1, min(most, blocks))
    origin = [round(k * (len(old) - 1) / max(1, groups - 1)) for k in range(groups)]
    if len(old) == groups and old[-1].last == blocks:
        cuts = [(p.first, p.last) for p in old]
    else:
        ends = [round(k * blocks / groups) for k in range(groups + 1)]
        cuts = list(itertools.pairwise(ends))
    parts, device = [], 0
    for k, (a, b) in zip(origin, cuts, strict=True):
        axes = tuple((n, min(size, most)) for n, size in old[k].recipe.axes)
        recipe = replace(old[k].recipe, axes=axes)
        count = 1
        for _, size in axes:
            count *= size
        devices = tuple(range(device, device + count))
        device += count
        parts.append(replace(old[k], first=a, last=b, devices=devices, recipe=recipe))
    micro = min(strategy.microbatches, most)
    shape = [(p.first, p.last, p.recipe) for p in parts]
    if shape == [(p.first, p.last, p.recipe) for p in old] and micro == strategy.microbatches:
        return replace(strategy, origin="twin"), origin  # chunks share their devices
    schedule = strategy.schedule if strategy.chunks == 1 else "1f1b"
    return Strategy(tuple(parts), micro, schedule, 1, "twin"), origin


def _place(plan: Planned, stage: int, layer: Layer) -> tuple[Part, int]:
    """A place of the plan with a block of the same operators, in the same stage if there is one."""
    wanted = _signature(layer)
    model, parts = plan.training.model, plan.strategy.parts
    order = [stage, *(k for k in range(len(parts)) if k != stage)]
    for k in order:
        for place in range(parts[k].first, parts[k].last):
            if _signature(model.rows[place]) == wanted:
                return parts[k], place
    raise NoTwin(
        "no block of the plan has the operators of a block of its twin",
        expected=" ".join(wanted[:8]), got=f"{len(model.layers)} other blocks",
    )  # fmt: skip


def _signature(layer: Layer) -> tuple[str, ...]:
    return tuple(n.op for n in layer.nodes if not _converts(n))


def _converts(n: Node) -> bool:
    return len(n.operands) == 1 and bool(n.attrs) and [k for k, _ in n.attrs] == ["dtype"] and (
        n.dtype.is_float and n.operands[0].dtype.is_float
    )  # fmt: skip


def _carried(
    old: Layer, choices: Mapping[Node, Choice], of_old: Choices, new: Layer, of_new: Choices,
    to: Mapping[Node, Node],
) -> dict[Node, Choice]:  # fmt: skip
    """Choices of a block on an equal one of other sizes."""
    back = {b: a for a, b in to.items()}
    pairs: dict[Node, Node] = {}
    for a, b in zip(
        (n for n in row(old) if not n.is_leaf and not _converts(n)),
        (n for n in row(new) if not n.is_leaf and not _converts(n)),
        strict=True,
    ):
        pairs[b] = a
        for x, y in zip(_through(a.operands), _through(b.operands), strict=True):
            if y.is_leaf:
                pairs.setdefault(y, x)
    found = {}
    for b, a in pairs.items():
        choice = choices.get(a)
        if choice is None:
            continue
        cuts = _translated(back.get(a, a), choice, of_old, b, of_new)
        match = next((c for c in of_new.of(b) if c.cuts == cuts), None)
        if match is None:
            raise NoTwin(
                "a choice does not carry over to the reduced size", got=choice, where=b,
                expected=" or ".join(str(c) for c in of_new.of(b)[:6]),
            )  # fmt: skip
        found[b] = match
    for n in new.nodes:
        if n not in found:
            found[n] = of_new.of(n)[0]
    return found


def _through(nodes: Sequence[Node]) -> list[Node]:
    """Operands, with conversions looked through."""
    found = []
    for n in nodes:
        while not n.is_leaf and _converts(n):
            n = n.operands[0]
        found.append(n)
    return found


def _translated(
    a: Node, choice: Choice, of_old: Choices, b: Node, of_new: Choices
) -> tuple[tuple[str, str, int], ...]:
    """The cuts of a choice with the factors of another size."""
    sizes, cuts = dict(of_new.mesh), []
    for m, axis, inner in choice.cuts:
        if m not in sizes:
            continue
        if axis == SUMS[0]:
            cuts.append((m, axis, inner))
            continue
        old, new = _factors(a, axis, of_old), _factors(b, axis, of_new)
        if inner not in old:
            raise NoTwin("a cut has no factor", got=choice, where=a)
        k = old.index(inner)
        if len(old) != len(new):  # some factor is 1 in one of them: count from the nearer end
            k = 0 if k == 0 else len(new) - (len(old) - k)
        if not 0 <= k < len(new):
            raise NoTwin("a cut has no factor at the reduced size", got=choice, where=b)
        cuts.append((m, axis, new[k]))
    return tuple(cuts)


def _factors(n: Node, axis: str, choices: Choices) -> list[int]:
    """Inner sizes of an axis of an operator, or of a dim of a leaf, the outermost first."""
    if n.is_leaf:
        dim = int(axis)
        chain = [*sorted(choices.factors.dims[n][dim]), int(str(n.shape[dim]))]
        return [low for low, high in itertools.pairwise(chain) if high > low][::-1]
    return [inner for inner, _ in choices.factors.of(n, axis)]
