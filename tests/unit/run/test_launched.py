"""The walk on a device: everything but the calls of CUDA themselves, in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.needs import needs_triton
from tests.unit.backend.tiles import sized
from whet.backend.lowered import body_nodes, lower
from whet.capture.torch import capture
from whet.errors import InputError, UnsupportedError, WhetError
from whet.fuse.seed import seed
from whet.ir.types import DType
from whet.kernel.cut import Cut
from whet.kernel.grid import grid
from whet.kernel.lower import lower as lower_loops
from whet.kernel.schedule import show
from whet.machine.gpu import EACH_CLOCK, PRESETS, preset
from whet.plan import Plan
from whet.run.cuda import Cuda, Pretended, at_hand, described
from whet.run.device import made
from whet.run.launched import Launched, placed
from whet.run.module import Found, Optimized
from whet.run.parameters import Parameters
from whet.run.recipe import FILE
from whet.run.record import Report
from whet.run.replayed import Replayed, graphs
from whet.run.save import load, region_bytes, save
from whet.store import Store

ROOT = Path(__file__).parents[3]
PROGRAM = """
import importlib
import sys
import tempfile
import torch
from torch import nn
from tests.unit.run.pretending import Last
from whet.run.save import load, save
from whet.store import Store

walk = importlib.import_module("whet.optimize")
walk.finalists = lambda timings, original: list(timings)
walk.choose = lambda timings, original: sys.argv[1]  # whatever the clock says


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
again = load(save(fast, tempfile.mkdtemp() + "/saved"), device=Last())
assert again.report.engine == "cuda"
assert again.program.lowered.kernels == fast.program.lowered.kernels
with torch.no_grad():
    assert torch.equal(again(x), fast(x))
print("right")
"""

SAVING = """
import sys
import torch
from torch import nn
from tests.unit.run.pretending import Last
from whet.capture.torch import capture
from whet.plan import Plan
from whet.run.launched import Launched
from whet.run.module import Found, Optimized
from whet.run.parameters import Parameters
from whet.run.record import Report
from whet.run.save import region_bytes, save
from whet.store import Store


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.LayerNorm(40)).eval()
x = torch.randn(6, 24)
with torch.no_grad():
    captured = capture(model, (x,))
    graph = captured.graph
    parameters = Parameters({}, model, [n.name for n in graph.parameters])
    found = Launched(Last(), Store.memory()).programs(
        graph, parameters, [x], left=lambda: 60.0, without=frozenset({"regions"})
    )
    program, recipe = {name: rest for name, *rest in found}["tiles"]
    fast = Optimized(model, program, captured.signature, report=Report(model="net"))
    plan = Plan(graph.digest, graph.digest, "cuda", 1, {}, ())
    vars(fast)["found"] = Found(graph, graph, plan, region_bytes(recipe), parameters)
    want = fast(x)
assert recipe.schedules and recipe.partition
save(fast, sys.argv[1])
torch.save((x, want), sys.argv[1] + ".pt")
print("right")
"""
LOADING = """
import sys
import torch
from whet.run import device
from whet.run.cuda import Pretended
from whet.run.save import load


def never(*args, **kwargs):
    raise AssertionError("a saved program decides nothing")


device.candidates = device.Tuned.decision = never
x, want = torch.load(sys.argv[1] + ".pt")
fast = load(sys.argv[1], device=Pretended())
with torch.no_grad():
    assert torch.equal(fast(x), want)
    assert fast.program.lowered.kernels["triton"] >= 1
    fast.state_dict()["0.weight"].mul_(2.0)
    assert not torch.equal(fast(x), want)
assert not {"z3", "highspy", "lightgbm", "onnx", "yaml"} & set(sys.modules)
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
        ((name, program, _),) = launched.programs(
            captured.graph, Parameters({}, model, names), [x], left=lambda: 0.0
        )
    assert name == "graphed"
    return launched, model, x, Optimized(model, program, captured.signature)


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
    assert "GB: constants 0.00, inputs 0.00, generated kernels" in str(fault.value.expected)
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
    told = {
        "memory_clock_rate": 2_619_000, "memory_bus_width": 5120, "clock_rate": 1_980_000,
        "regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048,
    }  # fmt: skip
    own = described(SimpleNamespace(**{**vars(said), **told}))
    assert own.bandwidth == pytest.approx(3.352e12, rel=1e-3)
    assert own.peak["bfloat16"] == pytest.approx(132 * 1.98e9 * 4096)
    assert own.peak["vector"] == pytest.approx(67e12, rel=0.01)
    assert own.shared == 232448
    for name in PRESETS:  # a data sheet's rates are a clock times the operations of each
        gpu = preset(name)
        clocks = [gpu.peak[t] / n / gpu.multiprocessors
                  for t, n in EACH_CLOCK[gpu.capability].items()]  # fmt: skip
        assert max(clocks) < 1.12 * min(clocks), name
    less = described(SimpleNamespace(**{**vars(said), "multi_processor_count": 66}))
    assert less.peak["float16"] == pytest.approx(found.peak["float16"] / 2)
    assert found.fingerprint() != less.fingerprint()


def saved(tmp_path: Path) -> tuple[nn.Module, torch.Tensor, Path]:
    """A program of library calls for a device, saved."""
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU()).eval(), torch.randn(3, 4)
    launched = Launched(Pretended("h100"), Store.memory())
    with torch.no_grad():
        captured = capture(model, (x,))
        parameters = Parameters({}, model, [n.name for n in captured.graph.parameters])
        ((_, program, recipe),) = launched.programs(
            captured.graph, parameters, [x], left=lambda: 0.0
        )
    fast = Optimized(model, program, captured.signature, report=Report(model="net"))
    graph = captured.graph
    plan = Plan(graph.digest, graph.digest, "cuda", 1, {}, ())
    vars(fast)["found"] = Found(graph, graph, plan, region_bytes(recipe), parameters)
    return model, x, save(fast, tmp_path / "p")


def test_programs_of_a_device_are_saved(tmp_path: Path) -> None:
    model, x, place = saved(tmp_path)
    again = load(place, device=Pretended("h100"))
    assert again.program is not None
    assert again.program.engine == "cuda"
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        for name, value in again.state_dict().items():
            assert torch.equal(value, model.state_dict()[name])
    with pytest.raises(UnsupportedError, match="is for an NVIDIA GPU"):
        load(place)
    recipe = json.loads((place / "region" / FILE).read_text())
    assert (recipe["kind"], recipe["gpu"]) == ("graphed", "h100")


def test_a_kernel_that_does_not_fit_is_refused_with_the_number() -> None:
    """A schedule of a large device is held to the limits of the one that it is loaded on."""
    g = sized("linear", DType.f32)
    (closed,) = seed(g, body_nodes(g)).clusters
    d = grid(lower_loops(closed.graph), Cut(rows=64, columns=64, depth=64, stages=6))
    text = show(d.schedule)
    assert made(closed, text, preset("h200")).programs
    with pytest.raises(UnsupportedError, match=r"shared 196608, most 166912"):
        made(closed, text, preset("a100"))


@needs_triton
def test_saved_kernels_are_said_again_without_a_search(tmp_path: Path) -> None:
    """In another process: what was decided runs, although nothing there may decide anything."""
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    for program in (SAVING, LOADING):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "p")],
            check=False, capture_output=True, text=True, env=env, cwd=ROOT,
        )  # fmt: skip
        assert done.stdout.strip().endswith("right"), done.stderr[-2000:]
