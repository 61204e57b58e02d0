"""The search for schedules: led, filed, taken up again; and what is tuned when."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.run.test_contest import linear, x
from whet.fuse.partition import Cluster
from whet.ir.graph import Graph, apply
from whet.kernel.schedule import apply as applied
from whet.kernel.schedule import read
from whet.machine import Machine
from whet.run.farm import Failed, Farm, Verdict
from whet.run.measure import Timing
from whet.run.timetable import Entry, Timetable
from whet.run.trials import Trials, distance, skeleton
from whet.run.tuning import Tuning
from whet.search import Budget, StopReason
from whet.store import Store


def fake(contest: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is built or run: time is the length of the kernel's text, every fifth one fails."""
    measured: list[str] = []

    def measure(self: object, farm: Farm, kernels: Any, **_: object) -> dict[str, Verdict]:
        found: dict[str, Verdict] = {}
        for digest, d in kernels.items():
            measured.append(digest)
            failed = int(digest[:4], 16) % 5 == 0
            found[digest] = (
                Failed("wrong", "off") if failed else Timing((len(str(d.kernel)) * 1e-6,))
            )
        return found

    monkeypatch.setattr(type(contest), "build", lambda self, entrants, folder: list(entrants))
    monkeypatch.setattr(type(contest), "measure", measure)
    return measured


def tuning(trials: Trials, contest: Any, place: str = "p") -> Tuning:
    return Tuning(contest, place, trials, Farm(1), Machine.detect())


def test_a_search_gets_better_files_all_it_tries_and_goes_on(monkeypatch) -> None:
    contest, trials = linear(), Trials(Store.memory(), "here")
    measured = fake(contest, monkeypatch)
    t = tuning(trials, contest)
    for _ in range(6):
        t.step()
    assert t.best.seconds <= t.first_s
    filed = trials.of("p")
    assert len(filed) == len(measured) == len(set(measured)) == t.count
    assert any(math.isinf(f.seconds) and f.failed == "wrong: off" for f in filed.values())
    best = trials.best("p")
    assert best is not None
    assert best.seconds == t.best.seconds
    assert applied(contest.naive, read(best.schedule)) == t.schedule.kernel

    count = len(measured)
    again = tuning(trials, contest)
    again.step()  # what is on file is not measured again
    assert len(measured) == count
    assert again.best.seconds == t.best.seconds
    for _ in range(3):
        again.step()
    assert len(set(measured)) == len(measured)


def shaped(rows: int) -> Cluster:
    a, w = x("input", "a", rows, 24), x("parameter", "w", 40, 24)
    g = Graph((a,), (apply("relu", apply("linear", a, w, None)),))
    return Cluster(g, (a, w), tuple(g.results))


def test_the_nearest_shape_is_a_guess_and_another_target_is_none() -> None:
    store = Store.memory()
    trials = Trials(store, "here")
    for rows in (8, 64, 512):
        trials.begin(str(rows), shaped(rows))
        trials.add(str(rows), "d", f"split(y0_b0, {rows // 4})", Timing((1e-6,)))
    near = trials.nearest("new", shaped(48))
    assert near is not None
    assert near.schedule == "split(y0_b0, 16)"
    assert trials.nearest("512", shaped(512)).schedule == "split(y0_b0, 16)"  # type: ignore[union-attr]
    assert Trials(store, "elsewhere").nearest("new", shaped(48)) is None
    assert trials.best("new") is None  # a guess is no hit
    assert skeleton(shaped(8).graph) == skeleton(shaped(512).graph)
    assert distance([8, 4], [16, 4]) == pytest.approx(math.log(2))


def test_a_slower_trial_does_not_take_the_best_ones_place() -> None:
    trials = Trials(Store.memory(), "here")
    trials.add("p", "a", "one", Timing((1e-6,)))
    trials.add("p", "b", "two", Timing((2e-6,)))
    trials.add("p", "c", "three", Failed("crash", "SIGSEGV"))
    best = trials.best("p")
    assert best is not None
    assert best.schedule == "one"
    assert len(trials.of("p")) == 3


@dataclass
class Toy:
    """A search whose batches gain what it is told."""

    gains: list[float]
    seconds: float
    step_s: float = 1.0
    batches: int = 0
    count: int = 1
    tried: list[float] = field(default_factory=list)

    @property
    def gain(self) -> float:
        return self.gains[min(self.batches, len(self.gains) - 1)]

    @property
    def best(self) -> Any:
        return SimpleNamespace(seconds=self.seconds)

    first_s = 1.0

    def step(self) -> None:
        self.seconds *= 1 - self.gain
        self.batches += 1


def entry(name: str, calls: int, toy: Toy, group: str = "") -> Entry:
    return Entry(name, calls, group or name, toy)  # type: ignore[arg-type]


def test_time_goes_where_the_model_gains_most() -> None:
    large, small = Toy([0.1] * 4 + [0.0], 1.0), Toy([0.1] * 4 + [0.0], 1e-3)
    table = Timetable([entry("small", 1, small), entry("large", 10, large)], Budget(), runs=1e6)
    assert table.run() is StopReason.CONVERGED
    assert table.order[:4] == ["large"] * 4
    assert table.order.count("small") == 1  # it is a ten-thousandth of the model


def test_what_costs_more_than_it_saves_is_not_begun() -> None:
    toy = Toy([0.1], 1e-3)
    toy.batches = 1
    assert Timetable([entry("a", 1, toy)], Budget(), runs=10).next() is None
    assert Timetable([entry("a", 1, toy)], Budget(), runs=1e6).next() is not None


def test_a_group_expects_what_its_others_have_gained() -> None:
    done, fresh, other = Toy([0.0], 0.5), Toy([0.1], 1.0), Toy([0.1], 1.0)
    done.batches = 3
    table = Timetable(
        [entry("other", 1, other), entry("done", 1, done, "g"), entry("fresh", 1, fresh, "g")],
        Budget(),
    )
    chosen = table.next()
    assert chosen is not None
    assert chosen.name == "fresh"


def test_an_interrupt_keeps_what_there_is() -> None:
    toy = Toy([0.1], 1.0)
    stopped = Toy([0.5], 1.0)

    def interrupted() -> None:
        raise KeyboardInterrupt

    stopped.step = interrupted  # type: ignore[method-assign]
    table = Timetable([entry("toy", 1, toy), entry("stopped", 1, stopped)], Budget())
    assert table.run() is StopReason.INTERRUPTED
