"""The walk on a device: everything but the calls of CUDA themselves, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import whet
from tests.needs import needs_triton
from whet.backend.lowered import lower
from whet.capture.torch import capture
from whet.errors import InputError, StoreError, WhetError
from whet.machine.gpu import preset
from whet.run.cuda import Cuda, Pretended, Replayed, at_hand, described, graphs
from whet.run.launched import Launched, placed
from whet.run.module import Optimized
from whet.run.parameters import Parameters
from whet.run.save import save
from whet.store import Store

ROOT = Path(__file__).parents[3]
PROGRAM = """
import importlib
import sys
import torch
from torch import nn
from whet.run.cuda import Pretended
from whet.store import Store

walk = importlib.import_module("whet.optimize")
walk.finalists = lambda timings, original: list(timings)
walk.choose = lambda timings, original: sys.argv[1]  # whatever the clock says


class Last(Pretended):
    \"\"\"A device on which what was tried last is the fastest.\"\"\"

    def raced(self, calls, rounds=3):
        for call in calls:
            call()
        return [[1.0 / (1 + n)] * 3 for n, _ in enumerate(calls)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        y = torch.relu(self.bn(self.conv(x))).mean((2, 3)) * self.scale
        return torch.softmax(self.norm(self.head(y)), -1)


torch.manual_seed(0)
model, x = Net().eval(), torch.randn(2, 3, 6, 6)
store = Store.memory()
fast = walk.optimize(
    model, (x,), device=Last(), budget_s=60, disable={"regions"}, store=store
)
report = fast.report
names = {s.name for s in report.stages}
assert {"original", "rewrites", "graphed", "channels", "tiles"} <= names, names
assert all(s.error < 1e-6 for s in report.stages), report.stages
assert fast.program.engine == "cuda", report
assert report.kernels.get("triton", 0) >= (2 if sys.argv[1] == "tiles" else 0), report.kernels
with torch.no_grad():
    for _ in range(3):
        x = torch.randn(2, 3, 6, 6)
        first = fast(x)
        fast(torch.randn(2, 3, 6, 6))
        assert (first - model(x)).abs().max() < 1e-6  # results are the caller's own
    model.head.weight.mul_(0.5)
    assert (fast(x) - model(x)).abs().max() < 1e-6
assert not fast.report.failures, fast.report.failures
print("right")
"""


@needs_triton
@pytest.mark.parametrize("name", ["tiles", pytest.param("channels", marks=pytest.mark.full)])
def test_the_walk_on_a_device(name: str) -> None:
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, name],
        check=False, capture_output=True, text=True, env=env, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip().endswith("right"), done.stderr[-2000:]


def _graphed() -> tuple[Launched, nn.Module, torch.Tensor, Optimized]:
    model, x = nn.Linear(4, 5).eval(), torch.randn(3, 4)
    launched = Launched(Pretended(), Store.memory())
    with torch.no_grad():
        captured = capture(model, (x,))
        names = [n.name for n in captured.graph.parameters]
        (made,) = launched.programs(
            captured.graph, Parameters({}, model, names), [x], left=lambda: 0.0
        )
    assert made[0] == "graphed"
    return launched, model, x, Optimized(model, made[1], captured.signature)


def test_inputs_of_another_kind_are_refused() -> None:
    _, _, x, fast = _graphed()
    assert fast.program is not None
    bound = fast.program.current()
    assert isinstance(bound, Replayed)
    with pytest.raises(InputError, match="not what the program is for"):
        bound([x.double()])
    with pytest.raises(InputError, match="not what the program is for"):
        bound([x.to("meta")])


def test_what_cannot_be_recorded_runs_launch_by_launch() -> None:
    class Refusing(Pretended):
        def recorded(self, body):  # type: ignore[no-untyped-def]
            raise RuntimeError("operation not permitted when stream is capturing")

    model, x = nn.Linear(4, 5).eval(), torch.randn(3, 4)
    with torch.no_grad():
        captured = capture(model, (x,))
        lowered = lower(captured.graph, lambda c, kernels: kernels[0])
        held = lowered.derive(dict(model.named_parameters()))
        bound = graphs(lowered, Refusing())(held)
        assert torch.equal(bound([x])[0], model(x))
    assert isinstance(bound, Replayed)
    assert "not permitted" in bound.refused


def test_too_little_memory_is_told_with_what_was_needed() -> None:
    class Small(Pretended):
        def recorded(self, body):  # type: ignore[no-untyped-def]
            raise torch.OutOfMemoryError("CUDA out of memory")

    model, x = nn.Linear(4, 5).eval(), torch.randn(3, 4)
    with torch.no_grad():
        captured = capture(model, (x,))
        lowered = lower(captured.graph, lambda c, kernels: kernels[0])
        bound = graphs(lowered, Small())(lowered.derive(dict(model.named_parameters())))
        with pytest.raises(WhetError, match="too little memory") as fault:
            bound([x])
    assert "constants and values" in str(fault.value.expected)
    assert "80.00 GB free" in str(fault.value.got)


def test_what_a_part_is_worth_is_timed_there() -> None:
    launched, model, x, _ = _graphed()
    with torch.no_grad():
        graph = capture(model, (x,)).graph
    times = launched.watch(10.0).times(graph, graph)
    assert times is not None
    assert all(t.rounds == 3 and t.median_s > 0 for t in times)


def test_tensors_out_of_nothing_are_made_on_the_device() -> None:
    class Positions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(x.shape[1], dtype=torch.float32)

    with torch.no_grad():
        graph = capture(Positions(), (torch.randn(2, 7),)).graph
        lowered = placed(lower(graph, lambda c, kernels: kernels[0]), torch.device("meta"))
        assert lowered.derive({})
        assert all(x.device.type == "meta" for x in lowered.derive({}))


def test_where_tensors_lie_decides() -> None:
    assert at_hand(nn.Linear(2, 2), [torch.zeros(2), 3, None]) is None
    assert Cuda(torch.device("cuda", 1)).device.index == 1


def test_a_device_is_described_by_what_it_says() -> None:
    said = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132,
        total_memory=150_000_000_000, shared_memory_per_block_optin=232448, L2_cache_size=52428800,
    )  # fmt: skip
    found = described(said)
    assert (found.name, found.capability, found.multiprocessors) == ("h200", 90, 132)
    assert found.bandwidth == preset("h200").bandwidth
    less = described(SimpleNamespace(**{**vars(said), "multi_processor_count": 66}))
    assert less.peak["float16"] == pytest.approx(found.peak["float16"] / 2)
    assert found.fingerprint() != less.fingerprint()


def test_recordings_are_not_saved(tmp_path: Path) -> None:
    model, x = nn.Linear(4, 5).eval(), torch.randn(3, 4)
    fast = whet.optimize(
        model, (x,), device=Pretended(), budget_s=5, store=Store.memory(),
        disable={"generated", "regions", "rewrites"},
    )  # fmt: skip
    found = vars(fast)["found"]
    vars(fast)["found"] = replace(found, plan=replace(found.plan, engine="cuda"))
    with pytest.raises(StoreError, match="not saved"):
        save(fast, tmp_path / "p")
