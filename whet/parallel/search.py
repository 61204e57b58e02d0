"""The search for a strategy: solvers propose, the simulator decides.

    seeds        expert strategies (may be switched off) and a coarse grid of degrees
    solvers      0-1 program inside blocks (`intra`), dynamic programming over stages (`balanced`)
    local        Metropolis steps against the current state, moves directed at the bottleneck

A proposal that cannot beat the best by a bound that holds for all plans with its degrees is not
simulated. What does not fit in memory counts as slower in proportion, so that the walk can leave
such places. The result is never worse than the best seed: it begins there.

Sources: Jia, Zaharia, Aiken, "Beyond data and model parallelism", MLSys 2019, section 6 (Metropolis
search in the space of strategies); Zheng et al., "Alpa", OSDI 2022 (the two solvers).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from whet.errors import SearchError, WhetError
from whet.parallel.expert import divisors, families
from whet.parallel.library import Library
from whet.parallel.simulate import Simulated
from whet.parallel.strategy import Part, Recipe, Strategy, even
from whet.parallel.work import work

Pin = Callable[[Strategy], bool]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        best: the strategy.
        simulated: its step.
        baselines: family → (strategy, step) of its best member that fits.
        bound: seconds that no strategy on this machine can beat.
        tried, solved: strategies simulated, 0-1 programs solved.
        seconds: of the search.
        runner_up: the best strategy of another kind.
        stop: why it ended.
    """

    best: Strategy
    simulated: Simulated
    baselines: Mapping[str, tuple[Strategy, Simulated]]
    bound: float
    tried: int
    solved: int
    seconds: float
    runner_up: tuple[Strategy, float] | None
    stop: str

    @property
    def gap(self) -> float:
        """How much slower than the bound, as a part of it."""
        return self.simulated.seconds / self.bound - 1


@dataclass(slots=True)
class Search:
    """One search.

    Attributes:
        library: model, cluster, simulator.
        seeds: with expert strategies.
        pin: what a strategy has to satisfy.
        budget: seconds.
        seed: of the random walk.
        says: told about progress.
        clock: what the budget is counted with: seconds that pass, or `time.process_time` where other
            work on the same cores must not decide what is found.
    """

    library: Library
    seeds: bool = True
    pin: Pin = lambda _: True
    budget: float = 60.0
    seed: int = 0
    says: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    _known: dict[Strategy, Simulated | None] = field(default_factory=dict)
    _best: tuple[float, Strategy] | None = None
    _kinds: dict[str, tuple[float, Strategy]] = field(default_factory=dict)
    _flops: float = 0.0

    def run(self) -> Found:
        """Search until the budget is spent.

        Raises:
            SearchError: nothing that satisfies the pins fits.
        """
        began = self.clock()
        end = began + self.budget
        bound = self.bound()
        baselines: dict[str, tuple[Strategy, Simulated]] = {}
        if self.seeds:
            self._baselines(baselines, began + 0.45 * self.budget)
        for s in self._grid():
            if self.clock() > began + 0.8 * self.budget:
                break
            self._try(s)
        stop = self._walk(end)
        if self._best is None:
            raise SearchError(
                "no strategy fits", expected="one that fits in the memory of all devices",
                got=f"{len(self._known)} tried, none fits",
                hint="more devices, fewer pins, or a smaller batch",
            )  # fmt: skip
        best = self._best[1]
        simulated = self._known[best]
        assert simulated is not None
        others = [x for k, x in self._kinds.items() if k != kind(best)]
        runner = min(others, key=lambda x: x[0], default=None)
        return Found(
            best, simulated, baselines, bound, len(self._known), self.library.solves,
            self.clock() - began, (runner[1], runner[0]) if runner else None, stop,
        )  # fmt: skip

    # -- what a strategy takes ---------------------------------------------------------------------
    def _try(self, s: Strategy) -> Simulated | None:
        """Simulate a strategy, once; None if it cannot be."""
        if s in self._known:
            return self._known[s]
        found: Simulated | None = None
        if self.pin(s) and self._hope(s):
            try:
                found = self.library.simulator.simulate(self.library.place(s))
            except WhetError:
                found = None
        self._known[s] = found
        if found is not None and found.fits:
            if self._best is None or found.seconds < self._best[0]:
                self._best = found.seconds, s
                self.says(f"{found.seconds:.4g} s: {s}")
            k = kind(s)
            if k not in self._kinds or found.seconds < self._kinds[k][0]:
                self._kinds[k] = found.seconds, s
        return found

    def _hope(self, s: Strategy) -> bool:
        """Whether a strategy could beat the best: pipelines idle, and parameters need memory."""
        if self._best is None:
            return True
        cluster = self.library.cluster
        used = [d for p in s.parts for d in p.devices]
        rate = sum(self._rate(d) for d in set(used))
        ideal = self.flops() / rate
        if s.schedule in ("gpipe", "1f1b") and s.groups > 1:
            ideal *= 1 + (s.groups - 1) / s.microbatches
        if any(p.recompute for p in s.parts):
            ideal *= 4 / 3 if self.library.model.training else 1
        del cluster
        return ideal < self._best[0]

    def _rate(self, device: int) -> float:
        """Operations a second that a device reaches at most, in the model's arithmetic."""
        return _rate(self.library, device)

    def flops(self) -> float:
        """Operations of a step, of its products."""
        if not self._flops:
            model = self.library.model
            sums = [
                sum(work(n).flops for n in layer.nodes if work(n).roles) for layer in model.layers
            ]
            self._flops = float(sum(sums[n] for n in model.order))
            if model.training:  # gradients of one call share some of it
                self._flops *= 0.9
        return self._flops

    def bound(self) -> float:
        """No strategy takes less: all products at the best rate of all devices."""
        size = self.library.cluster.size
        return self.flops() / sum(self._rate(d) for d in range(size))

    # -- seeds ---------------------------------------------------------------------------------
    def _baselines(self, found: dict[str, tuple[Strategy, Simulated]], end: float) -> None:
        library = self.library
        kinds = {work(n).kind for layer in library.model.layers for n in layer.nodes}
        experts = any(
            len(p.shape) == 3 for layer in library.model.layers for p in layer.gradients
        ) and "window" not in kinds  # fmt: skip
        rows: dict[str, list[Strategy]] = {}
        for name, s in families(
            library.model.batch, tuple(range(library.cluster.size)), self._node(),
            library.weights(), windows="window" in kinds, experts=experts,
            training=library.model.training,
        ):  # fmt: skip
            rows.setdefault(name, []).append(s)
        # Round by round, so that no family is left out when time is short.
        for k in range(max(map(len, rows.values()), default=0)):
            for name, members in rows.items():
                if k >= len(members) or (self.clock() > end and name in found):
                    continue
                if self.clock() > end + 0.1 * self.budget:
                    return
                s = members[k]
                ran = self._baseline(s)
                if ran is not None and ran.fits:
                    if name not in found or ran.seconds < found[name][1].seconds:
                        found[name] = s, ran

    def _baseline(self, s: Strategy) -> Simulated | None:
        """A baseline is simulated even where it cannot be the best."""
        if s not in self._known:
            before, self._best = self._best, None
            try:
                ran = self._try(s)
            finally:
                if before is not None and (self._best is None or before[0] <= self._best[0]):
                    self._best = before
            return ran
        return self._known[s]

    def _node(self) -> int:
        return max(1, min(node.devices for node in self.library.cluster.nodes))

    # -- the grid --------------------------------------------------------------------------------
    def _grid(self) -> Iterator[Strategy]:
        """Degrees, coarse: every depth and tensor degree with its likeliest other fields."""
        library, model = self.library, self.library.model
        weights = library.weights()
        small = len(model.layers) == 1 or any(
            len(p.shape) == 3 for layer in model.layers for p in layer.gradients
        )
        for devices in self._device_sets():
            total = len(devices)
            node = self._node()
            tensors = [t for t in divisors(total) if t <= max(2 * node, 8) and t & (t - 1) == 0]
            depths = [d for d in divisors(total) if d <= min(len(model.order), 64)]
            order = sorted(
                ((d, t) for d in depths for t in tensors if total % (d * t) == 0),
                key=lambda x: (abs(math.log2(x[0] * x[1]) - self._pressure(total)), x[1]),
            )
            for zero, recompute in ((1, False), (3, False), (1, True), (3, True)):
                if not model.training and (zero, recompute) != (1, False):
                    continue
                for depth, tensor in order:
                    data = total // (depth * tensor)
                    if model.batch % data:
                        continue
                    for style, pinned in (
                        ("free", True), ("lean", True), *((("free", False),) if small else ()),
                    ):  # fmt: skip
                        if style == "lean" and tensor == 1 and pinned:
                            continue
                        recipe = Recipe(
                            (("data", data), ("tensor", tensor)),
                            frozenset({"data"}) if pinned else frozenset(), style,
                        )  # fmt: skip
                        for micro in self._micro(model.batch // data, depth):
                            size = total // depth
                            groups = [devices[k * size : (k + 1) * size] for k in range(depth)]
                            times = [tuple(w / self._rate(g[0]) for w in weights) for g in groups]
                            parts = even(
                                times, groups, [recipe] * depth,
                                zero=0 if not model.training else zero, recompute=recompute,
                            )  # fmt: skip
                            shares = self._shares(parts)
                            yield Strategy(
                                shares, micro, "zero_bubble" if depth > 1 and model.training
                                else "1f1b", origin="grid",
                            )  # fmt: skip

    def _shares(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """Uneven replicas where a stage has devices of several speeds."""
        made = []
        for p in parts:
            data = p.recipe.size("data")
            wide = len(p.devices) // data
            rates = [self._rate(p.devices[k * wide]) for k in range(data)]
            if max(rates) > 1.05 * min(rates):
                mean = sum(rates) / data
                p = replace(p, shares=tuple(round(r / mean, 3) for r in rates))
            made.append(p)
        return tuple(made)

    def _device_sets(self) -> list[tuple[int, ...]]:
        """All devices; of a mixed cluster also each kind alone, and the kinds in other order."""
        cluster = self.library.cluster
        every = tuple(range(cluster.size))
        kinds: dict[str, list[int]] = {}
        for d in every:
            kinds.setdefault(cluster.device(d).name, []).append(d)
        if len(kinds) == 1:
            return [every]
        alone = [tuple(v) for v in kinds.values()]
        turned = tuple(d for v in reversed(list(kinds.values())) for d in v)
        return [every, *alone, turned]

    def _pressure(self, total: int) -> float:
        """log2 of the devices among which one copy of everything trained has to be cut, about."""
        library = self.library
        state = library.optimizer.state + library.optimizer.gradient + 2
        need = library.parameters() / 2 * state
        return min(
            math.log2(total), max(0.0, math.log2(need / library.cluster.device(0).memory * 2))
        )

    @staticmethod
    def _micro(samples: int, depth: int) -> list[int]:
        found = divisors(samples)
        if depth == 1:
            return sorted({found[0], found[len(found) // 2], found[-1]})
        fits = [m for m in found if m >= depth] or found[-1:]
        return sorted({fits[-1], fits[len(fits) // 2]}, reverse=True)

    # -- the walk --------------------------------------------------------------------------------
    def _walk(self, end: float) -> str:
        """Metropolis steps from the best, against the current state."""
        if self._best is None:
            return "nothing fits"
        draw = random.Random(self.seed)
        current = self._best[1]
        at = self._best[0]
        heat = 0.05
        idle = 0
        while self.clock() < end:
            s = self._move(current, draw)
            fresh = s is not None and s not in self._known
            ran = self._try(s) if s is not None else None
            idle = 0 if fresh else idle + 1
            if idle > 300:
                return "every neighbour is known"
            if ran is None or s is None:
                continue
            score = ran.seconds if ran.fits else ran.seconds * (1 + 4 * _overflow(ran))
            if score < at or draw.random() < math.exp(-(score - at) / (heat * at)):
                current, at = s, score
            heat = max(0.005, heat * 0.995)
            if draw.random() < 0.02:
                at, current = self._best
        return "the time is up"

    def _move(self, s: Strategy, draw: random.Random) -> Strategy | None:
        """A neighbour; which field is changed depends on what the time goes into."""
        ran = self._known.get(s)
        kinds = ["micro", "degrees", "zero", "recompute", "schedule", "style", "cut", "free"]
        if ran is not None:
            idle, exposed = sum(ran.idle) / len(ran.idle), sum(ran.exposed) / len(ran.exposed)
            if not ran.fits:
                kinds += ["recompute", "zero", "micro", "degrees"] * 2
            if idle > 0.1:
                kinds += ["micro", "schedule", "cut", "degrees"] * 2
            if exposed > 0.1:
                kinds += ["style", "degrees", "zero", "free", "micro"] * 2
        change = draw.choice(kinds)
        model = self.library.model
        p = s.parts[0]
        data = p.recipe.size("data")
        match change:
            case "micro":
                options = divisors(model.batch // data)
                near = [m for m in options if m != s.microbatches]
                if not near:
                    return None
                near.sort(key=lambda m: abs(math.log(m / s.microbatches)))
                return replace(s, microbatches=draw.choice(near[:4]), origin="walk")
            case "zero":
                return replace(s.everywhere(zero=draw.choice((0, 1, 2, 3))), origin="walk")
            case "recompute":
                if not model.training:
                    return None
                return replace(s.everywhere(recompute=not p.recompute), origin="walk")
            case "style":
                styles = ["free", "lean", *(["tokens"] if self.seeds else [])]
                recipe = replace(p.recipe, style=draw.choice(styles))
                return replace(s.everywhere(recipe=recipe), origin="walk")
            case "free":
                loose = frozenset() if p.recipe.pinned else frozenset({"data"})
                if len(model.layers) > 8 and not p.recipe.pinned:
                    return None
                return replace(s.everywhere(recipe=replace(p.recipe, pinned=loose)), origin="walk")
            case "schedule":
                if s.groups < 2:
                    return None
                chosen = draw.choice(("1f1b", "gpipe", "zero_bubble", "interleaved"))
                chunks = draw.choice((2, 3, 4)) if chosen == "interleaved" else 1
                return self._regrouped(s, len(p.devices), p.recipe, chosen, chunks)
            case "cut":
                return _shifted(s, draw)
        total = len({d for q in s.parts for d in q.devices})
        tensor = draw.choice([t for t in divisors(total) if t <= 4 * self._node()])
        depth = draw.choice(
            [d for d in divisors(total // tensor) if d <= min(64, len(model.order))]
        )
        data = total // (tensor * depth)
        if model.batch % (data * s.microbatches):
            micro = draw.choice(divisors(model.batch // data)) if model.batch % data == 0 else 0
            if not micro:
                return None
            s = replace(s, microbatches=micro)
        recipe = replace(p.recipe, axes=(("data", data), ("tensor", tensor)))
        return self._regrouped(s, total // depth, recipe, s.schedule if depth > 1 else "1f1b", 1)

    def _regrouped(
        self, s: Strategy, size: int, recipe: Recipe, schedule: str, chunks: int
    ) -> Strategy | None:
        """The same on groups of another size."""
        devices = [d for q in s.parts[: s.groups] for d in q.devices]
        groups = [tuple(devices[k : k + size]) for k in range(0, len(devices), size)]
        weights = self.library.weights()
        if len(groups) * chunks > len(weights):
            return None
        if schedule == "interleaved" and (s.microbatches % len(groups) or chunks == 1):
            schedule, chunks = "1f1b", 1
        times = [tuple(w / self._rate(g[0]) for w in weights) for g in groups]
        p = s.parts[0]
        parts = even(
            times, groups, [recipe] * len(groups), chunks=chunks, zero=p.zero,
            recompute=p.recompute,
        )  # fmt: skip
        return Strategy(self._shares(parts), s.microbatches, schedule, chunks, "walk")


def _shifted(s: Strategy, draw: random.Random) -> Strategy | None:
    """One block from a stage to its neighbour."""
    if len(s.parts) < 2:
        return None
    k = draw.randrange(len(s.parts) - 1)
    a, b = s.parts[k], s.parts[k + 1]
    step = draw.choice((-1, 1))
    at = a.last + step
    if not a.first < at < b.last:
        return None
    parts = list(s.parts)
    parts[k], parts[k + 1] = replace(a, last=at), replace(b, first=at)
    return replace(s, parts=tuple(parts), origin="walk")


def _overflow(ran: Simulated) -> float:
    return max(m / c - 1 for m, c in zip(ran.memory, ran.capacity, strict=True))


def _rate(library: Library, device: int) -> float:
    kind = library.cluster.device(device)
    dtype = next(
        (p.dtype.value for layer in library.model.layers for p in layer.gradients), "float32"
    )
    return kind.flops_s(dtype) * max(
        kind.curve(k, dtype).top for k in ("contraction", "window", "fused")
    )


def kind(s: Strategy) -> str:
    """What sort of strategy it is: its degrees."""
    p = s.parts[0]
    degrees = " x ".join(f"{n} {size}" for n, size in p.recipe.axes if size > 1)
    return f"{s.groups} stages of {degrees or 'one device'}"


__all__ = ["Found", "Search", "kind"]
