"""How long callables take, measured so that a comparison of them is fair.

Times on a shared machine drift by more than the differences that matter. So candidates run in
turns: a *round* times each of them once, in an order that changes from round to round, and only
times of the same round are compared. Before a sample the other systems' worker threads are given
time to fall asleep, for several spin after their work and would slow down whoever comes next.

`faster` says how sure a difference is, and `choose` keeps the original unless something is surely
faster. Both look at pairs of one round, so a drift that hits a whole round cancels.
"""

from __future__ import annotations

import gc
import math
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from whet.errors import WhetError

Clock = Callable[[], float]

SAMPLE_S = 2e-3  # a sample repeats a short call until it is this long, so that the clock's own
# time and the first call's cache misses vanish in it
HOPELESS = 1.5  # times the fastest after a few rounds, from which on nothing is measured further
SHORT_S = 10e-3  # a call shorter than this is called once more, untimed, before each sample


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call, a sample for each round in the order of the rounds.

    Attributes:
        samples: seconds of one call; where `calls` is more than 1, their mean over so many.
        calls: how many calls one sample repeats.
    """

    samples: tuple[float, ...]
    calls: int = 1

    @property
    def rounds(self) -> int:
        return len(self.samples)

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples)

    @property
    def best_s(self) -> float:
        return min(self.samples)

    @property
    def spread(self) -> float:
        """The interquartile range over the median: at 0.02, half of the samples lie within 2%."""
        if self.rounds < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / self.median_s if self.median_s else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two interleaved timings compare.

    Attributes:
        ratio: median over the rounds of old / new: 1.25 means that the new takes 1/1.25 the time.
        confidence: 1 − p of the one-sided sign test that the new is faster.
        rounds: how many rounds decided, ties left out.
    """

    ratio: float
    confidence: float
    rounds: int


def interleaved(
    callables: Mapping[str, Callable[[], object]],
    *,
    budget_s: float = 1.0,
    min_rounds: int = 7,
    max_rounds: int = 200,
    warmup: int = 2,
    settle: Callable[[], object] | None = None,
    warm_s: float = 0.0,
    collect: bool = True,
    clock: Clock = time.perf_counter,
    seed: int = 0,
) -> dict[str, Timing]:
    """Times all callables in turns, as often as fits into `budget_s` seconds.

    Args:
        callables: what to time, by name; each must be callable again and again.
        budget_s: seconds for everything, warming included. `min_rounds` come first: they are run
            even where they do not fit.
        min_rounds, max_rounds: bounds on the number of rounds.
        warmup: untimed calls of each before the first round, at least one.
        settle: called before each sample; `quiet` where it is not given.
        warm_s: seconds of untimed calls before each sample, for times as in a service that calls
            again and again; what ran between has taken the caches.
        collect: collect garbage first, which takes as long as there is much of it.
        clock: seconds since any moment.
        seed: of the order within the rounds.

    Returns:
        A timing for each name, all with the same number of rounds, round by round comparable.
    """
    settle = quiet if settle is None else settle
    start = clock()
    with _without_collections(collect):
        estimates = {name: _warm(call, max(1, warmup), clock) for name, call in callables.items()}
        calls = {name: max(1, math.ceil(SAMPLE_S / max(s, 1e-7))) for name, s in estimates.items()}
        samples: dict[str, list[float]] = {name: [] for name in callables}
        longest = 0.0
        for done, order in enumerate(_orders(list(callables), random.Random(seed))):
            began = clock()
            if done >= max_rounds or (done >= min_rounds and began - start + longest > budget_s):
                break
            for name in order:
                settle()
                call = callables[name]
                for _ in range(_untimed(estimates[name], warm_s)):
                    call()
                samples[name].append(_sample(call, calls[name], clock))
            longest = max(longest, clock() - began)
    return {name: Timing(tuple(samples[name]), calls[name]) for name in callables}


def faster(new: Timing, old: Timing, *, by: float = 1.0) -> Comparison:
    """How sure it is that `new` is more than `by` times as fast as `old`.

    Both must come from one call of `interleaved`. A round in which old > by × new counts for the
    new one; the sign test asks how likely so many would be if each round were a toss of a coin.
    It assumes nothing about how times are distributed, and one wild round is but one round.

    Source: the sign test; Conover, "Practical Nonparametric Statistics", 3rd ed., section 3.4.

    Raises:
        WhetError: the timings do not have the same rounds.
    """
    if new.rounds != old.rounds or not new.rounds:
        raise WhetError(
            "only timings of the same rounds can be compared",
            expected="two timings from one call of interleaved()",
            got=f"{new.rounds} and {old.rounds} rounds",
        )
    pairs = [(n, o) for n, o in zip(new.samples, old.samples, strict=True) if o != by * n]
    wins = sum(o > by * n for n, o in pairs)
    fewer = sum(math.comb(len(pairs), k) for k in range(wins))  # outcomes with fewer wins
    return Comparison(
        ratio=statistics.median(
            o / n if n else math.inf for n, o in zip(new.samples, old.samples, strict=True)
        ),
        confidence=fewer / 2 ** len(pairs),
        rounds=len(pairs),
    )


def choose(
    timings: Mapping[str, Timing], original: str, *, by: float = 1.0, confidence: float = 0.95
) -> str:
    """The name of the fastest that is surely faster than `original`, otherwise `original`.

    With k candidates, each must pass at 1 − (1 − confidence) / k, or the luckiest of many equal
    ones would be taken for a faster one (Bonferroni). That asks for about 4.3 + log2(k) rounds.
    """
    others = [name for name in timings if name != original]
    needed = 1 - (1 - confidence) / max(1, len(others))
    sure = [
        name
        for name in others
        if faster(timings[name], timings[original], by=by).confidence >= needed
    ]
    return min(sure, key=lambda name: timings[name].median_s, default=original)


def rather(
    chosen: str, preferred: Collection[str], timings: Mapping[str, Timing], original: str
) -> str:
    """`chosen`, or the fastest that is `preferred` where `chosen` is not surely faster than that.

    Args:
        chosen: what `choose` said.
        preferred: what is expected to be the fastest for other reasons than these timings.
        timings: of all of them.
        original: what a preferred one must surely beat as well.
    """
    known = {name: timings[name] for name in preferred if name in timings}
    if chosen == original or chosen in known or not known:
        return chosen
    rival = choose(known | {original: timings[original]}, original)
    if rival == original or faster(timings[chosen], timings[rival]).confidence >= 0.95:
        return chosen
    return rival


def promising(timings: Mapping[str, Timing], original: str) -> bool:
    """Whether something seems clearly faster than `original`, though not surely."""
    best = min(t.median_s for t in timings.values())
    return best < 0.95 * timings[original].median_s


def finalists(timings: Mapping[str, Timing], original: str) -> list[str]:
    """`original`, and what may yet be the fastest: many rounds of the others take a minute."""
    others = [name for name in timings if name != original]
    best = min(others, key=lambda name: timings[name].best_s, default=original)
    limit = HOPELESS * min(t.best_s for t in timings.values())
    return [n for n, t in timings.items() if n in (original, best) or t.best_s <= limit]


def quiet(*, limit_s: float = 0.25, step_s: float = 1e-3) -> float:
    """Waits until the other threads of this process sleep, at most `limit_s`; the seconds it took.

    Thread pools spin after their work before they sleep: ONNX Runtime's for 50 ms and more, which
    would take half of whoever comes next. Processor time cannot tell, for the system counts that of
    a thread that runs on only at its ticks; what state a thread is in, it tells at once.
    """
    began = time.perf_counter()
    while True:
        time.sleep(step_s)
        waited = time.perf_counter() - began
        if waited >= limit_s or not _others_run():
            return waited


def _others_run() -> bool:
    """Whether a thread of this process other than this one runs or waits for a processor.

    Not known where the system has no `/proc`: then nothing is waited for.
    """
    mine = str(threading.get_native_id())
    try:
        others = [name for name in os.listdir("/proc/self/task") if name != mine]
    except OSError:
        return False
    return any(_state(name) == "R" for name in others)


def _state(thread: str) -> str:
    """One letter: R runs, S sleeps (proc(5), `stat`); S of a thread that has ended meanwhile."""
    try:
        with open(f"/proc/self/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(") ")[2][:1]
    except OSError:
        return "S"


def _untimed(seconds: float, warm_s: float) -> int:
    """How many calls of so many seconds come before a sample."""
    return max(int(seconds < SHORT_S), math.ceil(warm_s / max(seconds, SAMPLE_S / 4)))


def _warm(call: Callable[[], object], times: int, clock: Clock) -> float:
    """Seconds of the quickest of `times` calls."""
    return min(_sample(call, 1, clock) for _ in range(times))


def _sample(call: Callable[[], object], calls: int, clock: Clock) -> float:
    began = clock()
    for _ in range(calls):
        call()
    return (clock() - began) / calls


def _orders(names: Sequence[str], rng: random.Random) -> Iterator[list[str]]:
    """Orders without end: a random one, turned so that each name stands once at each place."""
    while True:
        order = list(names)
        rng.shuffle(order)
        for k in range(max(1, len(order))):
            yield order[k:] + order[:k]


@contextmanager
def _without_collections(first: bool) -> Iterator[None]:
    """No garbage collection inside: it would hit one callable for the litter of another."""
    was = gc.isenabled()
    if first:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
