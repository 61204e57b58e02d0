"""Why a strategy is as it is: what each block pays, and what the next best would.

Reason := block parameters → cuts, seconds: kernels + collectives
          runner-up: the cheapest choices that cut some parameter otherwise
          whole: the cheapest choices that cut no parameter
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from whet.errors import SearchError
from whet.ir.graph import Node
from whet.machine import Mesh
from whet.parallel.intra import Solved
from whet.parallel.library import Library
from whet.parallel.placed import Block
from whet.parallel.search import Found
from whet.parallel.sharding import Sharding
from whet.parallel.strategy import Part, Strategy


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one distinct block is cut as it is, on the devices of one recipe.

    Attributes:
        digest: of the block.
        times: how often it stands in the part.
        recipe: of the part, as text.
        cuts: of each parameter, what cuts it; only those that are cut.
        kernels, exchanged: seconds of one microbatch, forward and backward, each run alone.
        by_kind: of `exchanged`, the seconds of each kind of collective.
        other: what the runner-up cuts otherwise: parameter → cut.
        slower: seconds that the runner-up costs more, by the prices that the block was solved with;
            None if there is no other way.
        share: the same as a part of the block's seconds.
    """

    digest: str
    times: int
    recipe: str
    cuts: Mapping[str, str]
    kernels: float
    exchanged: float
    by_kind: Mapping[str, float]
    other: Mapping[str, str]
    slower: float | None
    share: float

    def __str__(self) -> str:
        cut = _grouped(self.cuts) or "every parameter whole"
        paid = " + ".join(f"{k} {1e3 * v:.3g} ms" for k, v in self.by_kind.items() if v)
        text = f"block {self.digest[:8]} x{self.times} ({self.recipe}): {cut}\n"
        text += f"    kernels {1e3 * self.kernels:.3g} ms" + (f", {paid}" if paid else "")
        if self.slower is None:
            return text + "; there is no other way to cut it"
        changed = _grouped(self.other)
        return (
            text + f"; runner-up: {changed}: {1e3 * self.slower:+.3g} ms ({100 * self.share:+.1f}%)"
        )


def _grouped(cuts: Mapping[str, str]) -> str:
    """Parameters whose names differ in numbers alone, cut alike, are said once."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, cut in cuts.items():
        found.setdefault((re.sub(r"\d+", "*", name), cut), []).append(name)
    return ", ".join(
        f"{names[0] if len(names) == 1 else pattern} {cut}"
        for (pattern, cut), names in found.items()
    )


def reasons(library: Library, strategy: Strategy) -> list[Reason]:
    """One for each distinct block of each distinct recipe, in the order of the model."""
    found: dict[object, Reason] = {}
    for p in strategy.parts:
        numbers = library.model.order[p.first : p.last]
        for n, same in itertools.groupby(numbers):
            key = n, p.recipe
            if key not in found:
                found[key] = _reason(library, p, n, len(list(same)), strategy.microbatches)
    return list(found.values())


def _reason(library: Library, p: Part, number: int, times: int, micro: int) -> Reason:
    mesh = Mesh(p.recipe.axes, p.devices)
    layer = library.model.layers[number]
    solved = library.solved(number, p.recipe, mesh, micro)
    block = library.block(number, p.recipe, mesh, micro)
    kernels, by_kind = _paid(library, block, mesh)
    other, slower = dict[str, str](), None
    share = 0.0
    try:
        second = library.unlike(number, p.recipe, mesh, micro)
    except SearchError:
        second = None
    if second is not None:
        now, then = _cuts(layer.parameters, solved), _cuts(layer.parameters, second)
        other = {n: then[n] or "whole" for n in now if now[n] != then[n]}
        slower = second.seconds - solved.seconds
        share = slower / max(solved.seconds, 1e-12)
    cuts = {n: c for n, c in _cuts(layer.parameters, solved).items() if c}
    return Reason(
        layer.digest, times, str(p.recipe), cuts, kernels, sum(by_kind.values()), by_kind,
        other, slower, share,
    )  # fmt: skip


def _paid(library: Library, block: Block, mesh: Mesh) -> tuple[float, dict[str, float]]:
    kernels, by_kind = 0.0, dict[str, float]()
    for s in (*block.forward, *block.backward):
        seconds = library.simulator.step_s(s, mesh)
        if s.is_collective:
            by_kind[s.kind] = by_kind.get(s.kind, 0.0) + seconds
        else:
            kernels += seconds
    return kernels, by_kind


def _cuts(parameters: tuple[Node, ...], solved: Solved) -> dict[str, str]:
    return {p.name: cut_text(solved.choices[p].result) for p in parameters if p in solved.choices}


def cut_text(s: Sharding) -> str:
    """Cuts for a reader: `dim 0 along tensor`."""
    return ", ".join(f"dim {d}" + (f"/{i}" if i > 1 else "") + f" along {a}" for d, i, a in s.cuts)


def changes(points: list[tuple[float, Strategy, float]]) -> list[str]:
    """Where the best strategy changes over a sweep, one line for each place.

    Args:
        points: (value of the parameter, best strategy, seconds), by value.
    """
    rows = []
    for (a, s, _), (b, t, _) in itertools.pairwise(points):
        if not same(s, t):
            rows.append(f"between {a:g} and {b:g}: {s}  ->  {t}")
    return rows


def same(s: Strategy, t: Strategy) -> bool:
    """Whether two strategies place a model alike, whatever proposed them."""
    return (s.parts, s.microbatches, s.schedule, s.chunks) == (
        t.parts, t.microbatches, t.schedule, t.chunks,
    )  # fmt: skip


def text(library: Library, found: Found) -> list[str]:
    """Lines for a reader: where the time goes, why each block is cut so, and the runner-up."""
    r = found.simulated
    spent = sorted(r.work[r.critical].items(), key=lambda x: -x[1])
    lines = [
        f"  of a device of stage {r.critical}, the busiest: "
        + ", ".join(f"{k} {v / r.seconds:.0%}" for k, v in spent[:6])
        + f"; waiting for its own communication {r.exposed[r.critical]:.0%}"
        + f", for other stages {r.idle[r.critical]:.0%}"
    ]
    lines += [f"  {reason}" for reason in reasons(library, found.best)]
    if found.runner_up is not None:
        s, seconds = found.runner_up
        longer = f"{seconds / r.seconds:.2f}x as long"
        lines.append(f"  runner-up of other degrees: {seconds:.4g} s, {longer}: {s}")
    return lines
