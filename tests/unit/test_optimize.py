"""The walk as a whole, where no single room shows it."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from whet.run.measure import Timing, finalists
from whet.store import Store

walk = importlib.import_module("whet.optimize")  # `whet.optimize` alone is the function


def test_nothing_is_begun_after_an_interrupted_search(monkeypatch):
    """The search swallows Ctrl-C to keep what it found; the walk must hear of it all the same."""
    plain = walk.rewritten

    def interrupted(*args, **more):
        (first, *_) = plain(*args, **more)
        return [walk.replace(first, stop="Interrupted")]

    def begun(*_):
        pytest.fail("a region was compiled after Ctrl-C")

    monkeypatch.setattr(walk, "rewritten", interrupted)
    monkeypatch.setattr(walk, "region", begun)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    optimized = walk.optimize(model, (x,), store=Store.memory(), budget_s=20)
    assert optimized.report.stop == "Interrupted"
    assert {s.name for s in optimized.report.stages} == {"original", "rewrites"}
    with torch.no_grad():
        assert torch.allclose(optimized(x), model(x), atol=1e-6)


def test_what_is_hopeless_is_not_measured_further():
    def timing(*samples):
        return Timing(samples)

    fast, slow = timing(1.0, 1.1, 1.2), timing(1.6, 1.7, 1.9)

    def kept(timings: dict[str, Timing]) -> list[str]:
        return finalists(timings, "original")

    assert kept({"original": slow, "kernels": fast, "region": slow}) == ["original", "kernels"]
    near = timing(1.4, 3.0, 3.0)
    assert kept({"original": slow, "a": near, "b": fast}) == ["original", "a", "b"]
    assert kept({"original": fast, "a": slow, "b": timing(9.0)}) == ["original", "a"]
    assert kept({"original": fast}) == ["original"]


def test_what_was_found_in_less_time_is_no_answer():
    torch.manual_seed(0)
    block = [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()]
    model, x, store = nn.Sequential(*block, *block).eval(), torch.randn(4, 8), Store.memory()

    def found(budget_s: float) -> bool:
        optimized = walk.optimize(
            model, (x,), store=store, budget_s=budget_s, disable={"regions", "native"}
        )
        return "rewrite" not in optimized.report.phases

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "MEASURE_S", 0.1)
        patch.setattr(walk, "choose", lambda timings, original: next(reversed(timings)))
        assert [found(s) for s in (3.0, 2.0, 4.0, 4.0)] == [False, True, False, True]


def test_a_short_walk_reserves_its_share():
    assert walk.reserves(600) == walk.reserves(60) == (28.0, 16.0)
    assert walk.reserves(15) == (7.0, 5.125)  # compiling takes no less
