"""Programs for a device: decided by prediction, and run in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.needs import needs_triton
from tests.unit.backend.tiles import F16, graph, value
from whet.backend.lowered import body_nodes
from whet.backend.tiled import tiled
from whet.fuse.seed import seed
from whet.ir.graph import Graph, apply
from whet.ir.text import parse_graph
from whet.kernel.limits import demands
from whet.kernel.lower import lower
from whet.kernel.price import candidates, seconds
from whet.machine.gpu import PRESETS, preset
from whet.run.abreast import grouped
from whet.run.device import Tuned
from whet.run.elsewhere import predict, write
from whet.run.launcher import LIBRARY
from whet.run.replayed import needs
from whet.store import Store

ROOT = Path(__file__).parents[3]
PROGRAM = """
import torch
from torch import nn
from whet.capture.torch import capture
from whet.errors import InputError
from whet.machine.gpu import preset
from whet.run.cuda import Pretended
from whet.run.replayed import graphs
from whet.backend.tiled import tiled
from whet.run.abreast import grouped
from whet.run.device import Tuned
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.store import Store
torch.manual_seed(0)
m = nn.Sequential(nn.Linear(24, 40), nn.LayerNorm(40), nn.Softmax(-1)).eval()
x = torch.randn(6, 24)
cpu = torch.device("cpu")
with torch.no_grad():
    c = capture(m, (x,), {})
    tuned = Tuned(preset("h200"), Store.open())
    low = tiled(c.graph, grouped(c.graph, tuned), tuned, cpu)
    assert low.kernels["triton"] >= 1, low.kernels
    names = [n.name for n in c.graph.parameters]
    p = Program(low, Parameters({}, m, names), graphs(low, Pretended()), "cuda")
    for laid in (x, x.t().contiguous().t(), x[:1].expand(6, 24)):  # whatever their strides
        assert (p([laid])[0] - m(laid)).abs().max() < 1e-6
    bound = p.current()
    assert bound.memory.numel() > 0  # planned ahead
    assert (bound([x.t().contiguous().t()])[0] - m(x)).abs().max() < 1e-6
    try:
        p([x.double()])
    except InputError as fault:
        assert "torch.float32 [6, 24] on cpu" in str(fault)
    else:
        raise AssertionError("a wrong element type went through")
print("right")
"""


@needs_triton
def test_program_in_the_interpreter() -> None:
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        check=False, capture_output=True, text=True, env=env, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip().endswith("right"), done.stderr[-2000:]


def test_candidates_fit_and_are_ranked() -> None:
    for gpu in PRESETS.values():
        found, _ = candidates(lower(graph("linear", F16)), gpu)
        assert found
        assert [c.seconds for c in found] == sorted(c.seconds for c in found)
        assert all(c.seconds > gpu.launch for c in found)


def test_a_faster_device_is_predicted_faster() -> None:
    (c, *_), _ = candidates(lower(graph("matmul", F16)), preset("h200"))
    slow, fast = (seconds(c.draft.kernel, c.launch, preset(n)) for n in ("a100", "h200"))
    assert fast <= slow


def test_one_query_over_many_keys_is_split() -> None:
    """Few heads leave most of a device idle: parts of the keys are programs of their own."""
    q = value("q", 1, 8, 1, 64, dtype=F16)
    k, v = (value(name, 1, 8, 4096, 64, dtype=F16) for name in "kv")
    attrs = {"causal": False, "scale": 0.1, "group": 1}
    g = Graph((q, k, v), (apply("attention", q, k, v, None, **attrs),))
    (best, *others), _ = candidates(lower(g), preset("h200"))
    parts, folded = demands(best.draft.kernel, best.launch)
    assert parts.programs >= 8 * 8
    assert folded.programs < parts.programs
    whole = [c for c in others if len(demands(c.draft.kernel, c.launch)) == 1]
    assert all(c.seconds > 2 * best.seconds for c in whole)
    assert whole


def test_short_groups_go_side_by_side() -> None:
    """Products of unlike widths of one input: one launch is predicted to be faster than three."""
    x = value("x", 64, 256, dtype=F16)
    ws = [value(n, rows, 256, dtype=F16) for n, rows in (("a", 96), ("b", 160), ("c", 224))]
    outs = [apply("relu", apply("linear", x, w, None)) for w in ws]
    g = Graph((x, *ws), tuple(outs))
    tuned = Tuned(preset("h200"), Store.memory())
    apart = seed(g, body_nodes(g))
    together = grouped(g, tuned)
    assert (len(apart.groups), len(together.groups)) == (3, 1)
    (closed,) = together.clusters
    one = tuned.decision(closed)
    assert one.schedule.endswith("True)")  # side by side, in one launch
    assert one.seconds < sum(tuned.decision(c).seconds for c in apart.clusters)
    assert len(tuned.made(closed, one.schedule).programs) == 1


def test_what_waits_is_not_side_by_side() -> None:
    x, w = value("x", 64, 64, dtype=F16), value("w", 64, 64, dtype=F16)
    first = apply("linear", x, w, None)
    second = apply("linear", first, w, None)
    g = Graph((x, w), (first, second))
    assert len(grouped(g, Tuned(preset("h200"), Store.memory())).groups) == 2


def test_plans_come_from_elsewhere(tmp_path: Path) -> None:
    g, gpu = graph("norm of a sum", F16), preset("h200")
    found = predict(g, gpu, Store.open())
    assert found.seconds <= found.library
    assert all(d.source == "predicted" for _, _, d in found.rows)
    write(tmp_path / "plan.json", g, found, gpu, [])
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert kept["predicted"] is True
    assert (kept["source"], kept["target"]) == (g.digest, gpu.name)
    assert parse_graph(kept["graph"], g.constants).digest == g.digest
    assert kept["schedules"] == dict(found.schedules)


def test_decisions_are_for_groups() -> None:
    g = graph("norm", F16)
    tuned = Tuned(preset("a100"), Store.open())
    for closed in seed(g, body_nodes(g)).clusters:
        assert tuned.decision(closed).source == "predicted"
        made = tuned(closed)
        assert (made is None) == (tuned.decision(closed).schedule == LIBRARY)


def test_needs_count_constants() -> None:
    g = graph("pointwise", F16)
    tuned = Tuned(preset("a100"), Store.open())
    low = tiled(g, grouped(g, tuned), tuned, torch.device("cpu"))
    assert needs(low, [torch.zeros(10)]) >= 40 + 2 * 5 * 37
