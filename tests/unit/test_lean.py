"""Where only torch, numpy and triton are: everything that runs does, what searches says what it
lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys

ABSENT = {"yaml", "z3", "highspy", "lightgbm", "onnx", "onnxscript", "onnxruntime", "openvino",
          "transformers", "pytest", "hypothesis", "scipy"}


class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in ABSENT
        return None if absent else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(f) for f in sys.meta_path]
"""
"""A prelude of programs: these packages are not installed here."""


def lean(program: str, tmp_path: Path, **env: str) -> str:
    """What a program prints in a process of its own, without the packages and with a new store."""
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT + program], check=False,
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "WHET_CACHE": str(tmp_path / "cache"), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_model_is_optimized_and_what_is_missing_is_said(tmp_path: Path) -> None:
    said = lean(
        """
import torch
import whet
from torch import nn
from whet.errors import MissingError
from whet.machine.preset import topology

assert not ABSENT & set(sys.modules)
model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.LayerNorm(24)).eval()
x = torch.randn(3, 16)
off = {"native", "regions", "libraries"}
fast = whet.optimize(model, (x,), budget_s=2, disable=off)
with torch.no_grad():
    assert torch.allclose(fast(x), model(x), atol=1e-5)
print(fast.report.stop)
try:
    topology("h100x8")
except MissingError as fault:
    print(fault)
assert not ABSENT & set(sys.modules)
""",
        tmp_path,
    )
    assert "no z3: rules proven before, and no others" in said
    assert "integer programs need highspy" in said
    assert "pip install pyyaml" in said


def test_the_bench_for_devices_needs_nothing_else(tmp_path: Path) -> None:
    run = f"""
import runpy
sys.argv = ["bench/gpu.py", *ARGUMENTS]
try:
    runpy.run_path({str(ROOT / "bench" / "gpu.py")!r}, run_name="__main__")
except SystemExit as end:
    print("ended", end.code)
assert not ABSENT & set(sys.modules), ABSENT & set(sys.modules)
"""
    assert "torch finds no NVIDIA GPU" in lean("ARGUMENTS = []\n" + run, tmp_path)
    asked = [
        "--pretend", "--small", "--batches", "1", "--kinds", "float32", "--budget", "4",
        "--results", str(tmp_path),
    ]  # fmt: skip
    for part, model in (("check", "pointwise"), ("ablation", "nasrnn_shared")):
        more = [*asked, "--part", part, "--models", model]
        said = lean(f"ARGUMENTS = {more}\n" + run, tmp_path, TRITON_INTERPRET="1")
        assert "nothing is left" in said
        assert "ended 0" in said


def test_rewrites_found_with_solvers_are_taken_where_there_are_none(tmp_path: Path) -> None:
    program = """
import torch
from torch import nn
from whet.capture.torch import capture
from whet.run.rewriting import rewritten
from whet.search import Budget
from whet.store import Store

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
with Store.open() as store:
    best = rewritten(capture(model, (torch.randn(1, 3, 8, 8),)).graph, store, Budget(seconds=30))[0]
assert best.steps
print(best.graph.digest, len(best.rows), best.stop)
"""
    with_solvers = lean(
        "import sys\nsys.meta_path[:] = [f.finder for f in sys.meta_path]\n" + program, tmp_path
    )
    without = lean(program, tmp_path)
    assert with_solvers.split()[:2] == without.split()[:2]
    assert "Filed" in without
    assert "Filed" not in with_solvers
