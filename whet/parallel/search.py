"""The search for a strategy: solvers propose, the simulator decides.

    seeds        expert strategies, each family tuned over its own degrees (may be switched off)
    grid         every depth and tensor degree with its likeliest other fields
    solvers      0-1 program inside blocks (`intra`), dynamic programming over stages (`balanced`)
    limits       what may be used: all that is simulated, or what ranks carry out
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.errors import SearchError, WhetError
from whet.parallel.bound import Bound
from whet.parallel.cut import known
from whet.parallel.executable import refusal
from whet.parallel.expert import FAMILIES, Family, Score, divisors, tabled, tuned
from whet.parallel.library import Library
from whet.parallel.limits import SIMULATED, Limits
from whet.parallel.moves import Moves
from whet.parallel.pins import NONE, Pins
from whet.parallel.simulate import Simulated
from whet.parallel.strategy import Recipe, Strategy
from whet.parallel.work import work


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
        library: model, cluster, simulator, pinned parameters.
        seeds: with expert strategies.
        pins: what a strategy has to satisfy.
        limits: what it may use. Within any but `SIMULATED`, what becomes the best is lowered too,
            and left out if that is refused.
        budget: seconds.
        seed: of the random walk.
        also: strategies to begin with, such as what was found for a similar machine.
        says: told about progress.
        clock: what the budget is counted with: seconds that pass, or `time.process_time` where
            other work on the same cores must not decide what is found.
    """

    library: Library
    seeds: bool = True
    pins: Pins = NONE
    limits: Limits = SIMULATED
    budget: float = 60.0
    seed: int = 0
    also: Sequence[Strategy] = ()
    says: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    _known: dict[Strategy, Simulated | None] = field(default_factory=dict)
    _best: tuple[float, Strategy] | None = None
    _least: tuple[float, Simulated, Strategy] | None = None
    _kinds: dict[str, tuple[float, Strategy]] = field(default_factory=dict)
    _bounds: Bound = field(init=False)
    _moves: Moves = field(init=False)

    def __post_init__(self) -> None:
        library = self.library
        self._bounds = Bound(library.model, library.cluster, library.optimizer)
        self._moves = Moves(
            library.model,
            self._bounds,
            library.weights(),
            self._node(),
            self.seeds,
            self.pins,
            self.limits,
        )

    def run(self) -> Found:
        """Search until the budget is spent.

        Raises:
            SearchError: nothing that satisfies the pins fits; says what came nearest.
        """
        began = self.clock()
        end = began + self.budget
        self.pins.checked(self.library.model, self.library.cluster.size, self.limits)
        bound = self.bound()
        for s in self.also:
            self._run(s)
        baselines = self._baselines(began + 0.45 * self.budget) if self.seeds else {}
        for s in self._grid():
            if self.clock() > began + 0.8 * self.budget and self._best is not None:
                break
            if self.clock() > end:
                break
            self._try(s)
        stop = self._walk(end)
        if self._best is None:
            raise self._nothing()
        best = self._best[1]
        simulated = self._known[best]
        assert simulated is not None
        others = [x for k, x in self._kinds.items() if k != kind(best)]
        runner = min(others, key=lambda x: x[0], default=None)
        return Found(
            best, simulated, baselines, bound, len(self._known), self.library.solves,
            self.clock() - began, (runner[1], runner[0]) if runner else None, stop,
        )  # fmt: skip

    def bound(self) -> float:
        """Seconds that no strategy on the cluster beats."""
        return self._bounds.seconds()

    def carried(self, s: Strategy) -> Strategy | None:
        """A strategy that was made for other blocks of the same model; None if it cannot be."""
        if s.parts[-1].last == len(self.library.model.order):
            return s
        p = s.parts[0]
        return self._moves.regrouped(s, len(p.devices), p.recipe, s.schedule, s.chunks)

    def _nothing(self) -> SearchError:
        if self._least is None:
            return SearchError(
                "no strategy satisfies the pins", got=f"{len(self._known)} tried, none can be",
                expected="degrees that divide the batch and the machine", hint="pin fewer fields",
            )  # fmt: skip
        _, ran, s = self._least
        full = max(range(len(ran.memory)), key=lambda g: ran.memory[g] / ran.capacity[g])
        need, have = ran.memory[full] / 2**30, ran.capacity[full] / 2**30
        return SearchError(
            "no strategy fits in memory", expected=f"at most {have:.3g} GiB on each device",
            got=f"{need:.3g} GiB with the one that came nearest: {s}",
            where=f"{len(self._known)} strategies on {self.library.cluster.name}",
            hint="more devices, a smaller batch"
            + (", fewer pins" if self.pins else ", or --pin offload=optimizer"),
        )  # fmt: skip

    # -- what a strategy takes ---------------------------------------------------------------------
    def _try(self, s: Strategy) -> Simulated | None:
        """Simulate a strategy that may be the best, once; None if it cannot be."""
        if s in self._known:
            return self._known[s]
        if not self.pins.hold(s) or not self._hope(s):
            return None
        return self._run(s)

    def _run(self, s: Strategy) -> Simulated | None:
        """Simulate a strategy, once; None if it cannot be lowered."""
        if s in self._known:
            return self._known[s]
        found: Simulated | None = None
        if self.limits.allow(s):
            try:
                found = self.library.simulator.simulate(self.library.place(s))
            except WhetError:
                found = None
        leads = found is not None and found.fits and self.pins.hold(s) and (
            self._best is None or found.seconds < self._best[0]
        )  # fmt: skip
        if leads and self.limits != SIMULATED and refusal(self.library, s) is not None:
            found = None
        self._known[s] = found
        if found is None or not self.pins.hold(s):
            return found
        if not found.fits:
            over = _overflow(found)
            if self._least is None or over < self._least[0]:
                self._least = over, found, s
            return found
        if self._best is None or found.seconds < self._best[0]:
            self._best = found.seconds, s
            self.says(f"{found.seconds:.4g} s: {s}")
        k = kind(s)
        if k not in self._kinds or found.seconds < self._kinds[k][0]:
            self._kinds[k] = found.seconds, s
        return found

    def _hope(self, s: Strategy) -> bool:
        """Whether a strategy could beat the best, by the bound for its degrees."""
        return self._best is None or self._bounds.hope(s) < self._best[0]

    # -- seeds ---------------------------------------------------------------------------------
    def _baselines(self, end: float) -> dict[str, tuple[Strategy, Simulated]]:
        """The best member of each family, which has its share of the time."""
        library, found = self.library, dict[str, tuple[Strategy, Simulated]]()
        layers = library.model.layers
        kinds = {work(n).kind for layer in layers for n in layer.nodes}
        has = {
            "weird": "window" in kinds,
            "experts": self._mixture() and "window" not in kinds,
            **dict.fromkeys(("rows", "columns"), self._tabled()),
        }
        names = [f for f in FAMILIES if has.get(f, True)]
        devices = tuple(range(library.cluster.size))
        for k, name in enumerate(names):
            begin = self.clock()
            until = begin + (end - begin) / (len(names) - k)
            family = Family(
                name, library.model.batch, devices, self._node(), library.weights(),
                library.model.training, self.limits,
            )  # fmt: skip
            best = tuned(family, self._rated(), lambda u=until: self.clock() > u)  # type: ignore[misc]
            ran = self._known.get(best) if best is not None else None
            if best is not None and ran is not None:
                found[name] = best, ran
                self.says(f"{name}: {ran.seconds:.4g} s: {best}")
        return found

    def _rated(self) -> Callable[[Strategy], Score | None]:
        """What members of one family are worth, among themselves."""
        best = math.inf

        def rate(s: Strategy) -> Score | None:
            nonlocal best
            if self._bounds.hope(s) >= best:
                return None
            ran = self._run(s)
            if ran is None:
                return None
            if ran.fits:
                best = min(best, ran.seconds)
            return not ran.fits, _score(ran)

        return rate

    def _mixture(self) -> bool:
        """Whether some product has a parameter for each of several parts of the data."""
        return any(len(p.shape) == 3 for x in self.library.model.layers for p in x.gradients)

    def _tabled(self) -> bool:
        """Whether most of the parameters are tables of which rows are looked up."""
        library, own = self.library, 0
        for number in library.model.order:
            layer = library.model.layers[number]
            own += sum(known(p.type.nbytes) for p in tabled(layer.forward))
        return 2 * own > library.parameters()

    def _node(self) -> int:
        return max(1, min(node.devices for node in self.library.cluster.nodes))

    # -- the grid --------------------------------------------------------------------------------
    def _grid(self) -> Iterator[Strategy]:
        """Degrees, coarse: every depth and tensor degree with its likeliest other fields."""
        model, pins = self.library.model, self.pins
        small = len(model.layers) == 1 or self._mixture()
        fields = [(1, False), (3, False), (1, True), (3, True)] if model.training else [(0, False)]
        zeros = pins.options("zero", [0, 1, 2, 3])
        given = pins.get("recompute")
        fields = [
            (z if z in zeros else zeros[0], r if given is None else bool(given)) for z, r in fields
        ]
        for devices in self._device_sets():
            for zero, recompute in dict.fromkeys(fields):
                for depth, tensor in self._degrees(len(devices)):
                    data = len(devices) // (depth * tensor)
                    for style, pinned in self._styles(small=small):
                        if style == "lean" and tensor == 1 and pinned:
                            continue
                        recipe = Recipe(
                            (("data", data), ("tensor", tensor)),
                            frozenset({"data"}) if pinned else frozenset(), style,
                        )  # fmt: skip
                        for micro in pins.options(
                            "microbatches",
                            self._micro(self.limits.counts(divisors(model.batch // data)), depth),
                        ):
                            yield from self._cell(devices, depth, recipe, micro, zero, recompute)

    def _styles(self, *, small: bool) -> list[tuple[str, bool]]:
        """(style, whether "data" cuts samples only), the likeliest first."""
        rows = [("free", True), ("lean", True), *([("free", False)] if small else [])]
        given = self.pins.get("style")
        return rows if given is None else [(str(given), True)]

    def _cell(
        self, devices: tuple[int, ...], depth: int, recipe: Recipe, micro: int, zero: int,
        recompute: bool,
    ) -> Iterator[Strategy]:  # fmt: skip
        size = len(devices) // depth
        groups = [devices[k * size : (k + 1) * size] for k in range(depth)]
        offload = frozenset(filter(None, str(self.pins.get("offload") or "").split(",")))
        halves = "zero_bubble" in self.limits.schedules and self.library.model.training
        usual = "zero_bubble" if depth > 1 and halves else "1f1b"
        schedule = str(self.pins.get("schedule") or usual)
        chunks = int(self.pins.get("chunks") or (2 if schedule == "interleaved" else 1))
        if depth * chunks > len(self.library.model.order):
            return
        parts = self._moves.parts(groups, recipe, 1, zero, recompute, offload)
        if chunks > 1:
            seed = Strategy(parts, micro, schedule, 1, "grid")
            made = self._moves.regrouped(seed, size, recipe, schedule, chunks)
            if made is not None:
                yield replace(made, origin="grid")
            return
        yield Strategy(parts, micro, schedule, 1, "grid")

    def _degrees(self, total: int) -> list[tuple[int, int]]:
        """(stages, tensor), those first that cut a model as much as memory asks for."""
        batch, blocks = self.library.model.batch, len(self.library.model.order)
        most = max(2 * self._node(), 8)
        tensors = [t for t in divisors(total) if t <= most and t & (t - 1) == 0]
        depths = [d for d in divisors(total) if d <= min(blocks, 64)]
        data = self.pins.get("data")
        want = self._pressure(total)
        rows = [
            (d, t)
            for d in self.pins.options("stages", depths)
            for t in self.pins.options("tensor", tensors)
            if total % (d * t) == 0 and batch % (total // (d * t)) == 0
            and data in (None, total // (d * t))
        ]  # fmt: skip
        return sorted(rows, key=lambda x: (abs(math.log2(x[0] * x[1]) - want), x[1]))

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
    def _micro(found: list[int], depth: int) -> list[int]:
        """Of some numbers of microbatches, those to begin with."""
        if depth == 1:
            return sorted({found[0], found[len(found) // 2], found[-1]})
        fits = [m for m in found if m >= depth] or found[-1:]
        return sorted({fits[-1], fits[len(fits) // 2]}, reverse=True)

    # -- the walk --------------------------------------------------------------------------------
    def _walk(self, end: float) -> str:
        """Metropolis steps from the best, against the current state."""
        if self._best is None and self._least is None:
            return "nothing fits"
        draw = random.Random(self.seed)
        start = self._best[1] if self._best is not None else self._least[2]  # type: ignore[index]
        ran = self._known[start]
        assert ran is not None
        current, at = start, _score(ran)
        heat = 0.05
        idle = 0
        while self.clock() < end:
            s = self._moves.neighbour(current, self._known.get(current), draw)
            fresh = s is not None and s not in self._known
            ran = self._try(s) if s is not None else None
            idle = 0 if fresh and ran is not None else idle + 1
            if idle > 300:
                return "every neighbour is known"
            if ran is None or s is None:
                continue
            score = _score(ran)
            if score < at or draw.random() < math.exp(-(score - at) / (heat * at)):
                current, at = s, score
            heat = max(0.005, heat * 0.995)
            if draw.random() < 0.02 and self._best is not None:
                at, current = self._best
        return "the time is up"


def _score(ran: Simulated) -> float:
    return ran.seconds if ran.fits else ran.seconds * (1 + 4 * _overflow(ran))


def _overflow(ran: Simulated) -> float:
    return max(m / c - 1 for m, c in zip(ran.memory, ran.capacity, strict=True))


def kind(s: Strategy) -> str:
    """What sort of strategy it is: its degrees."""
    p = s.parts[0]
    degrees = " x ".join(f"{n} {size}" for n, size in p.recipe.axes if size > 1)
    return f"{s.groups} stages of {degrees or 'one device'}"


__all__ = ["Found", "Search", "kind"]
