"""Neighbours of a strategy: what the random walk changes, directed by what the time goes into.

micro, degrees, schedule, cut     when devices idle
style, free, zero                 when they wait for their own communication
recompute, zero, offload          when memory does not suffice
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace

from whet.parallel.blocks import Model
from whet.parallel.bound import Bound
from whet.parallel.expert import divisors
from whet.parallel.limits import SIMULATED, Limits
from whet.parallel.pins import NONE, Pins
from whet.parallel.simulate import Simulated
from whet.parallel.strategy import Part, Recipe, Strategy, even

KINDS = ("micro", "degrees", "zero", "recompute", "schedule", "style", "cut", "free", "offload")


@dataclass(frozen=True, slots=True)
class Moves:
    """Makes neighbours.

    Attributes:
        model: the blocks.
        bound: how fast devices are.
        weights: of each block.
        node: devices of one node.
        tokens: whether styles that experts use are among the choices.
        pins: what stays as it is.
        limits: what may be used.
    """

    model: Model
    bound: Bound
    weights: tuple[float, ...]
    node: int
    tokens: bool = True
    pins: Pins = NONE
    limits: Limits = SIMULATED

    def neighbour(self, s: Strategy, ran: Simulated | None, draw: random.Random) -> Strategy | None:
        """A neighbour, or None where the drawn change cannot be."""
        change = draw.choice(self._kinds(ran))
        made = self._changed(s, change, draw)
        return replace(made, origin="walk") if made is not None else None

    def _kinds(self, ran: Simulated | None) -> list[str]:
        kinds = list(KINDS)
        if ran is not None:
            idle, exposed = sum(ran.idle) / len(ran.idle), sum(ran.exposed) / len(ran.exposed)
            if not ran.fits:
                kinds += ["recompute", "zero", "micro", "degrees", "offload"] * 2
            if idle > 0.1:
                kinds += ["micro", "schedule", "cut", "degrees"] * 2
            if exposed > 0.1:
                kinds += ["style", "degrees", "zero", "free", "micro"] * 2
        given = {"micro": "microbatches", "zero": "zero", "recompute": "recompute",
                 "schedule": "schedule", "offload": "offload", "style": "style",
                 "cut": "cuts"}  # fmt: skip
        gone = set() if self.limits.offloads else {"offload"}
        return [k for k in kinds if given.get(k) not in self.pins.fields and k not in gone]

    def _changed(self, s: Strategy, change: str, draw: random.Random) -> Strategy | None:
        model, p = self.model, s.parts[0]
        data = p.recipe.size("data")
        match change:
            case "micro":
                options = self.limits.counts(divisors(model.batch // data))
                near = [m for m in options if m != s.microbatches]
                if not near:
                    return None
                near.sort(key=lambda m: abs(math.log(m / s.microbatches)))
                return replace(s, microbatches=draw.choice(near[:4]))
            case "zero":
                return s.everywhere(zero=draw.choice((0, 1, 2, 3))) if model.training else None
            case "recompute":
                if not model.training:
                    return None
                if len(s.parts) > 1 and draw.random() < 0.5:  # of one stage, or of the first ones
                    return _of_first(s, draw.randrange(len(s.parts)), not p.recompute)
                return s.everywhere(recompute=not p.recompute)
            case "offload":
                if not model.training:
                    return None
                what = draw.choice(sorted(self.limits.offloads))
                return s.everywhere(offload=p.offload ^ {what})
            case "style":
                styles = ["free", "lean", *(["tokens"] if self.tokens else [])]
                return s.everywhere(recipe=replace(p.recipe, style=draw.choice(styles)))
            case "free":
                loose = frozenset() if p.recipe.pinned else frozenset({"data"})
                if len(model.layers) > 8 and not loose:
                    return None
                return s.everywhere(recipe=replace(p.recipe, pinned=loose))
            case "schedule":
                if s.groups < 2:
                    return None
                chosen = draw.choice(self.limits.schedules)
                chunks = draw.choice((2, 3, 4)) if chosen == "interleaved" else 1
                return self.regrouped(s, len(p.devices), p.recipe, chosen, chunks)
            case "cut":
                return _shifted(s, draw)
        return self._degrees(s, draw)

    def _degrees(self, s: Strategy, draw: random.Random) -> Strategy | None:
        p = s.parts[0]
        total = len({d for q in s.parts for d in q.devices})
        tensors = [t for t in divisors(total) if t <= 4 * self.node]
        tensor = draw.choice(self.pins.options("tensor", tensors))
        if total % tensor:
            return None
        depths = [d for d in divisors(total // tensor) if d <= min(64, len(self.model.order))]
        depth = draw.choice(self.pins.options("stages", depths))
        if total % (tensor * depth):
            return None
        data = total // (tensor * depth)
        if self.model.batch % (data * s.microbatches):
            if self.model.batch % data:
                return None
            options = self.limits.counts(divisors(self.model.batch // data))
            s = replace(s, microbatches=draw.choice(options))
        recipe = replace(p.recipe, axes=(("data", data), ("tensor", tensor)))
        return self.regrouped(s, total // depth, recipe, s.schedule if depth > 1 else "1f1b", 1)

    def regrouped(
        self, s: Strategy, size: int, recipe: Recipe, schedule: str, chunks: int
    ) -> Strategy | None:
        """The same on groups of another size."""
        devices = [d for q in s.parts[: s.groups] for d in q.devices]
        groups = [tuple(devices[k : k + size]) for k in range(0, len(devices), size)]
        if len(groups) * chunks > len(self.weights):
            return None
        if schedule == "interleaved" and (s.microbatches % len(groups) or chunks == 1):
            schedule, chunks = "1f1b", 1
        p = s.parts[0]
        parts = self.parts(groups, recipe, chunks, p.zero, p.recompute, p.offload)
        return Strategy(parts, s.microbatches, schedule, chunks)

    def parts(
        self, groups: list[tuple[int, ...]], recipe: Recipe, chunks: int, zero: int,
        recompute: bool, offload: frozenset[str] = frozenset(),
    ) -> tuple[Part, ...]:  # fmt: skip
        """Stages of about equal time on groups of devices."""
        times = [tuple(w / self.bound.speed(g[0]) for w in self.weights) for g in groups]
        made = even(
            times, groups, [recipe] * len(groups), chunks=chunks, zero=zero, recompute=recompute,
            offload=offload,
        )  # fmt: skip
        cuts = self.pins.cuts
        if cuts is not None and len(cuts) + 1 == len(made) and cuts[-1] < len(self.weights):
            ends = (0, *cuts, len(self.weights))
            made = tuple(
                replace(p, first=a, last=b)
                for p, (a, b) in zip(made, itertools.pairwise(ends), strict=True)
            )
        return tuple(map(self._shared, made))

    def _shared(self, p: Part) -> Part:
        """Uneven replicas where a stage has devices of several speeds."""
        if not self.limits.uneven or self.pins.get("replicas") == "even":
            return p
        data = p.recipe.size("data")
        wide = len(p.devices) // data
        rates = [self.bound.speed(p.devices[k * wide]) for k in range(data)]
        if max(rates) <= 1.05 * min(rates):
            return p
        mean = sum(rates) / data
        return replace(p, shares=tuple(round(r / mean, 3) for r in rates))


def _of_first(s: Strategy, last: int, recompute: bool) -> Strategy:
    """Stages up to one of them recompute, or no longer do: they hold the most microbatches."""
    return replace(
        s, parts=tuple(replace(p, recompute=recompute) if k <= last else p
                       for k, p in enumerate(s.parts)),
    )  # fmt: skip


def _shifted(s: Strategy, draw: random.Random) -> Strategy | None:
    """One block from a stage to its neighbour."""
    if len(s.parts) < 2:
        return None
    k = draw.randrange(len(s.parts) - 1)
    a, b = s.parts[k], s.parts[k + 1]
    at = a.last + draw.choice((-1, 1))
    if not a.first < at < b.last:
        return None
    parts = list(s.parts)
    parts[k], parts[k + 1] = replace(a, last=at), replace(b, first=at)
    return replace(s, parts=tuple(parts))
