"""The search for a group's cut on a device: a space of `whet.search`, led by the cost model.

    state     a kernel with its launch, by digest
    moves     one number of a cut halved or doubled: rows, columns, depth, warps, stages, parts,
              rows of tiles that go together, programs that stay
    check     what the device has, with the number (`whet.kernel.limits`)
    cost      seconds, as the caller finds them
    model     `whet.kernel.model`: features of the loops and of the launch; the prior is the
              analytic price, or what was learnt of such trials on this kind of device

Every trial is kept in the store with its features; what a machine with the device has tried,
another one learns from (`learned`), and its predictions are then ordered by what was measured.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from whet.kernel.cut import Cut
from whet.kernel.features import features
from whet.kernel.limits import demands, fits
from whet.kernel.loops import Kernel
from whet.kernel.model import CostModel, ModelError, Ranker
from whet.kernel.price import Candidate as Cutting
from whet.kernel.price import priced
from whet.kernel.process import Array
from whet.machine.gpu import Gpu
from whet.search import Budget, Candidate, Cost, Led, Refutation, Scored, search
from whet.store import Store

KIND = "cut-trial-1"
BATCH = 4  # cuts that are compiled and timed between two looks at the model
WINDOW = 24  # of which the model picks them
PATIENCE = 3  # batches without a gain, after which a group has what it will get
TASKS, TRIALS = 4, 24  # groups and trials, with fewer of which nothing was learnt
LEAST, MOST = 16, 256  # elements of a product's tile along an axis
NUMBERS: dict[str, tuple[int, ...]] = {
    "warps": (1, 2, 4, 8, 16), "stages": (1, 2, 3, 4, 5, 6), "group": (1, 2, 4, 8, 16),
    "splits": (1, 2, 3, 4, 6, 8, 16, 32, 64),
}  # fmt: skip
Price = Callable[[Sequence[Cutting]], Sequence[float]]


def described(c: Cutting, gpu: Gpu) -> Array:
    """What the model sees: the loops, what a launch asks for, and last the analytic price."""
    asked = demands(c.draft.kernel, c.launch)
    launch = [
        c.launch.warps, c.launch.stages, max(d.registers for d in asked),
        1 + max(d.shared for d in asked), max(d.programs for d in asked), len(asked),
        1 + c.launch.persistent, 1e9 * c.seconds,
    ]  # fmt: skip
    return np.concatenate([features(c.draft.kernel, gpu.machine()), np.log2(launch)])


@dataclass(frozen=True, slots=True)
class Analytic:
    """The price that needs no trial, as a prior."""

    def score(self, features: Array) -> Array:
        found: Array = features[:, -1] * math.log(2)
        return found


@dataclass
class CutSpace:
    """Cuts of one kernel as a space; see the module's docstring.

    Args:
        kernel: unscheduled.
        gpu: the device.
        price: seconds of cuts, infinite for what does not run.
        begin: cuts to begin with; the first is the start.
    """

    kernel: Kernel
    gpu: Gpu
    price: Price
    begin: Sequence[Cutting]
    seed: int = 0
    known: dict[str, Cutting] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        for c in self.begin:
            self.see(c)

    def see(self, c: Cutting) -> str:
        """The state that a cut is."""
        state = digest(c)
        self.known.setdefault(state, c)
        return state

    def start(self) -> str:
        return digest(self.begin[0])

    def propose(self, kept: Sequence[Scored[str]], budget: Budget) -> Iterator[Candidate[str]]:
        here = kept[0].state
        yield from (Candidate(here, digest(c), digest(c)) for c in self.begin[1:])
        tried: set[Cut] = {c.cut for c in self.known.values()}
        for _ in range(8 * WINDOW):
            one = self.known[self.rng.choice(kept).state].cut
            cut = mutant(one, self.rng, self.gpu.multiprocessors)
            if cut in tried:
                continue
            tried.add(cut)
            state = self.see(priced(self.kernel, cut, self.gpu))
            yield Candidate(here, state, state)

    def check(self, c: Candidate[str]) -> Refutation | None:
        one = self.known[c.after]
        why = fits(one.draft.kernel, one.launch, self.gpu)
        if why is None:
            return None
        self.refused[c.after] = str(why)
        return Refutation(str(why))

    def cost(self, cs: Sequence[Candidate[str]]) -> list[Scored[str]]:
        seconds = self.price([self.known[c.after] for c in cs])
        return [
            Scored(c.after, Cost(s) if math.isfinite(s) else Cost.IMPOSSIBLE)
            for c, s in zip(cs, seconds, strict=True)
        ]


def digest(c: Cutting) -> str:
    """Equal for cuts that are one kernel, launched alike."""
    text = f"{c.draft.kernel.digest} {c.launch}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def mutant(cut: Cut, rng: random.Random, programs: int) -> Cut:
    """A cut with one number changed."""
    name = rng.choice(["rows", "columns", "depth", "tile", "persistent", *NUMBERS])
    new: dict[str, Any] = {}
    if name in NUMBERS:
        new[name] = rng.choice(NUMBERS[name])
    elif name == "persistent":
        new[name] = rng.choice((0, programs, 2 * programs))
    else:
        low, high = (256, 16384) if name == "tile" else (LEAST, MOST)
        now = getattr(cut, name)
        new[name] = min(max(rng.choice((now // 2, 2 * now)), low), high)
    return replace(cut, **new)


def cutting(space: CutSpace, prior: Ranker | None, budget: Budget, seed: int = 0) -> Cutting:
    """The fastest cut that a search finds."""
    seen: dict[str, Array] = {}

    def read(states: Sequence[str]) -> Array:
        for s in states:
            if s not in seen:
                seen[s] = described(space.known[s], space.gpu)
        return np.stack([seen[s] for s in states])

    led = Led(
        CostModel(read, prior or Analytic()), seed, first=0, batch=BATCH, window=WINDOW, kept=4,
        patience=PATIENCE,
    )  # fmt: skip
    return space.known[search(space, led, budget).best.state]


# -- what is learnt --------------------------------------------------------------------------------
def keep(store: Store, place: str, c: Cutting, gpu: Gpu, seconds: float, failed: str = "") -> None:
    """Files a trial, of a group on a device; infinite seconds with what failed."""
    store.put(KIND, f"{gpu.fingerprint()}/{place}/{digest(c)}", {
        "features": [float(x) for x in described(c, gpu)],
        "seconds": seconds if math.isfinite(seconds) else None, "failed": failed,
    })  # fmt: skip


def learned(store: Store, gpu: Gpu) -> Ranker | None:
    """What trials on such devices have taught; None where there are too few, or no LightGBM.

    The model learns by which factor the analytic price is wrong, about each group's median.
    """
    rows: dict[str, list[tuple[list[float], float]]] = {}
    for key in store.keys(KIND):
        chip, _, rest = key.partition("/")
        row = store.get(KIND, key)
        if chip == gpu.fingerprint() and isinstance(row, dict):
            seconds = row["seconds"] if row["seconds"] is not None else math.inf
            rows.setdefault(rest.partition("/")[0], []).append((row["features"], seconds))
    tasks = [(np.array([x for x, _ in r]), np.array([s for _, s in r])) for r in rows.values()]
    tasks = [(x, s) for x, s in tasks if len(s) > 1]
    if len(tasks) < TASKS or sum(len(s) for _, s in tasks) < TRIALS:
        return None
    try:
        return Ranker.train(tasks, base=tasks[0][0].shape[1] - 1, trees=60)
    except ModelError:
        return None
