"""Timing in turns and deciding who is faster, with a clock that only the tests turn."""

from __future__ import annotations

import gc
import hashlib
import itertools
import threading
import time
from collections import Counter

import pytest

from whet.errors import WhetError
from whet.run.measure import Comparison, Timing, choose, faster, interleaved, quiet, rather


class World:
    """A clock, and calls that take their time from it and are written down."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def clock(self):
        return self.now

    def call(self, name, *seconds):
        times = itertools.cycle(seconds)

        def run():
            self.log.append(name)
            self.now += next(times)

        return run


@pytest.fixture
def world():
    return World()


def timed(world, calls, **options):
    return interleaved(calls, clock=world.clock, settle=lambda: None, **options)


def test_times_are_those_of_the_calls(world):
    calls = {"a": world.call("a", 0.5), "b": world.call("b", 0.25)}
    found = timed(world, calls, budget_s=10)
    assert {name: t.median_s for name, t in found.items()} == {"a": 0.5, "b": 0.25}
    assert found["a"].rounds == found["b"].rounds
    assert found["a"].spread == 0


def test_every_round_times_each_once_and_places_are_shared(world):
    names = "abc"
    timed(world, {n: world.call(n, 1.0) for n in names}, budget_s=0, min_rounds=9, warmup=1)
    rounds = [world.log[k : k + 3] for k in range(3, len(world.log), 3)]
    assert len(rounds) == 9
    assert all(sorted(order) == list(names) for order in rounds)
    places = Counter((name, place) for order in rounds for place, name in enumerate(order))
    assert set(places.values()) == {3}
    assert len(set(map(tuple, rounds))) > 3, "the order never changes but by turning"


def test_the_order_is_a_matter_of_the_seed(world):
    logs = []
    for seed in (1, 1, 2):
        world.log.clear()
        calls = {n: world.call(n, 1.0) for n in "abcdef"}
        timed(world, calls, budget_s=0, min_rounds=6, seed=seed)
        logs.append(tuple(world.log))
    assert logs[0] == logs[1] != logs[2]


def test_rounds_fill_the_budget(world):
    # Two warm calls of 1 s, then rounds of 1 s: 18 of them fit into 20 s.
    assert timed(world, {"a": world.call("a", 1.0)}, budget_s=20)["a"].rounds == 18
    assert world.now == pytest.approx(20)


def test_the_least_number_of_rounds_is_run_without_budget(world):
    assert timed(world, {"a": world.call("a", 60.0)}, budget_s=1, min_rounds=4)["a"].rounds == 4


def test_no_more_rounds_than_asked_for(world):
    found = timed(world, {"a": world.call("a", 0.1)}, budget_s=1e6, max_rounds=12)
    assert found["a"].rounds == 12


def test_short_calls_are_repeated_and_the_first_is_not_counted(world):
    # After the two warm calls, each sample follows one untimed call, which is slow here.
    slow_first = itertools.chain([1e-4, 1e-4], itertools.cycle([5e-2, *[1e-4] * 20]))

    def call():
        world.now += next(slow_first)

    found = timed(world, {"a": call}, budget_s=0, min_rounds=5)["a"]
    assert found.calls == 20
    assert found.median_s == pytest.approx(1e-4)


def test_others_are_given_time_to_fall_asleep(world):
    settled = []
    calls = {"a": world.call("a", 1.0), "b": world.call("b", 1.0)}
    interleaved(
        calls,
        budget_s=0,
        min_rounds=3,
        clock=world.clock,
        settle=lambda: settled.append(len(world.log)),
    )
    assert settled == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_not_collected_while_timing(world, enabled):
    seen = []
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        timed(world, {"a": lambda: seen.append(gc.isenabled())}, budget_s=0, max_rounds=3)
        assert seen
        assert not any(seen)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_collection_comes_back_after_an_error(world):
    was = gc.isenabled()
    gc.enable()
    try:
        with pytest.raises(ZeroDivisionError):
            timed(world, {"a": lambda: 1 // 0})
        assert gc.isenabled()
    finally:
        (gc.enable if was else gc.disable)()


def test_nothing_to_time(world):
    assert timed(world, {}) == {}


def test_timing_summary():
    t = Timing((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (t.median_s, t.best_s, t.rounds) == (3.0, 1.0, 5)
    assert t.spread == pytest.approx((4 - 2) / 3)
    assert Timing((1.0,)).spread == 0


def test_faster_in_every_round_through_a_drift():
    drift = [1.0, 3.0, 2.0, 8.0, 1.5, 4.0, 1.0, 2.0]
    old = Timing(tuple(d * 1.1 for d in drift))
    found = faster(Timing(tuple(drift)), old)
    assert found.ratio == pytest.approx(1.1)
    assert found.confidence == 1 - 1 / 2**8
    assert faster(old, Timing(tuple(drift))).confidence == 0


def test_sign_test_values():
    """Six heads of eight or more: (28 + 8 + 1) / 256, from the binomial table."""
    new = Timing((1.0,) * 8)
    old = Timing((2.0,) * 6 + (0.5,) * 2)
    assert faster(new, old).confidence == pytest.approx(1 - 37 / 256)


def test_ties_decide_nothing():
    same = Timing((1.0,) * 9)
    assert faster(same, same) == Comparison(ratio=1.0, confidence=0.0, rounds=0)


def test_faster_by_a_margin():
    new, old = Timing((1.0,) * 10), Timing((1.3,) * 10)
    assert faster(new, old, by=1.2).confidence > 0.99
    assert faster(new, old, by=1.4).confidence == 0


@pytest.mark.parametrize(("new", "old"), [((1.0,), (1.0, 2.0)), ((), ())])
def test_only_the_same_rounds_compare(new, old):
    with pytest.raises(WhetError, match="same rounds"):
        faster(Timing(new), Timing(old))


def test_the_original_is_kept_unless_something_is_surely_faster():
    original = Timing((1.0, 1.2) * 4)
    lucky = Timing((0.9, 1.3) * 4)  # better at best, worse as often as not
    fast = Timing((0.8, 1.0) * 4)
    faster_still = Timing((0.7, 0.9) * 4)
    assert choose({"o": original}, "o") == "o"
    assert choose({"o": original, "lucky": lucky}, "o") == "o"
    assert choose({"o": original, "lucky": lucky, "fast": fast}, "o") == "fast"
    assert choose({"o": original, "fast": fast, "best": faster_still}, "o") == "best"
    assert choose({"o": original, "fast": fast}, "o", by=1.3) == "o"


def test_many_candidates_need_more_rounds():
    """Five rounds of five convince for one candidate, not for the luckiest of three."""
    original, fast = Timing((1.0,) * 5), Timing((0.9,) * 5)
    equal = Timing((1.0,) * 5)
    assert choose({"o": original, "a": fast}, "o") == "a"
    assert choose({"o": original, "a": fast, "b": equal, "c": equal}, "o") == "o"


def test_what_is_preferred_stays_unless_another_is_surely_faster():
    slow = Timing((2.0,) * 12)
    close = {"original": slow, "a": Timing((1.0, 1.02) * 6), "b": Timing((1.01, 1.0) * 6)}
    assert choose(close, "original") in ("a", "b")
    assert rather("a", ["b"], close, "original") == "b"
    assert rather("b", ["b"], close, "original") == "b"
    assert rather("a", [], close, "original") == "a"
    assert rather("original", ["b"], close, "original") == "original"
    sure = close | {"a": Timing((0.8,) * 12)}
    assert rather("a", ["b"], sure, "original") == "a"
    useless = close | {"b": Timing((2.0,) * 12)}
    assert rather("a", ["b"], useless, "original") == "a"


def test_quiet_waits_no_longer_than_its_limit():
    assert quiet(limit_s=0.0) > 0


def test_quiet_waits_for_a_thread_that_computes():
    """Its time is counted at the system's ticks only; that it runs can be seen at once."""
    ended = []
    ready = threading.Event()

    def computes():
        ready.set()
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 300_000)  # without the interpreter's lock
        ended.append(time.perf_counter())

    thread = threading.Thread(target=computes)
    thread.start()
    ready.wait()
    quiet(limit_s=60)
    now = time.perf_counter()
    thread.join()
    assert now >= ended[0]


def test_untimed_calls_come_before_each_sample():
    calls = []
    now = 0.0

    def call():
        nonlocal now
        calls.append(now)
        now += 0.02

    timings = interleaved(
        {"a": call}, min_rounds=3, budget_s=0.0, warmup=1, settle=lambda: None, warm_s=0.05,
        clock=lambda: now,
    )  # fmt: skip
    assert timings["a"].rounds == 3
    assert len(calls) == 1 + 3 * (3 + 1)
