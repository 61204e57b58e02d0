"""The bench for devices, pretended: every part ends, is begun again, and leaves the right file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.gpu
from bench.device import page
from bench.device.kernels import PRODUCTS
from bench.device.models import batched, cases, flat
from bench.device.rows import Rows
from tests.needs import needs_triton
from whet.capture.zoo import load, names
from whet.run.cuda import Pretended

ROOT = Path(__file__).parents[3]


def pretended(folder: Path, part: str, *more: str) -> dict[str, Any]:
    """What a part leaves, run in Triton's interpreter."""
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "bench/gpu.py", "--pretend", "--part", part, "--small",
         "--results", str(folder), "--caches", str(folder / "caches"), "--batches", "1",
         "--kinds", "float32", "--budget", "10", *more],
        check=False, capture_output=True, text=True, env=env, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-2000:])
    assert "nothing is left" in done.stdout
    (file,) = folder.glob(f"*-gpu-pretended-{part}.json")
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["complete"]
    assert found["pretended"]
    assert {"name", "processor", "rates"} <= found["machine"].keys()
    return found


@needs_triton
def test_kinds_are_checked(tmp_path: Path) -> None:
    records = pretended(tmp_path, "check", "--models", "pointwise")["records"]
    assert [r["system"] for r in records] == ["float32", "float16"]
    assert all(r["right"] for r in records)


@needs_triton
@pytest.mark.full
@pytest.mark.parametrize(("part", "model", "systems"), [
    ("models", "nasrnn", {"eager", "compile", "reduce-overhead", "max-autotune", "whet"}),
    ("ablation", "nasrnn", {"whet", "whet-no-rewrites"}),
    ("shapes", "", {"library", "triton product", "triton rows"}),
    ("kernels", "memchain", {"library"}),
    ("rewrites", "nasrnn", {"rewrites"}),
])  # fmt: skip
def test_parts(part: str, model: str, systems: set[str], tmp_path: Path) -> None:
    records = pretended(tmp_path, part, "--models", model)["records"]
    assert systems <= {r["system"] for r in records}
    assert not [r for r in records if "failed" in r]
    for record in records:
        if part in ("models", "ablation"):
            fields = {"model", "system", "median_s", "spread", "optimize_s", "error", "floor_s"}
            assert fields <= record.keys()


def test_a_run_whose_time_is_up_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [True]

    def part(args: Any, rows: Rows):  # type: ignore[no-untyped-def]
        for model in ("a", "b"):
            if model not in rows:
                tries = rows.begin(model)
                if model == "b" and long[0]:
                    time.sleep(60)
                yield [{"model": model, "system": "whet", "gain": 2.0, "tries": tries}]

    monkeypatch.setitem(bench.gpu.PARTS, "check", part)
    given = ["--pretend", "--part", "check", "--results", str(tmp_path), "--seconds"]
    assert bench.gpu.main([*given, "0.3"]) == 3
    assert "goes on from here" in capsys.readouterr().out
    long[0] = False
    assert bench.gpu.main([*given, "30"]) == 0
    assert "2 rows, geometric mean 2.000" in capsys.readouterr().out
    rows = Rows.of(tmp_path, "check", Pretended(), True)
    assert [(r["model"], r["tries"]) for r in rows.records] == [("a", 0), ("b", 1)]


def test_one_command_goes_through_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Correctness first; a run that ends goes on in the part, and with the model, where it was."""
    begun: list[str] = []
    slow = ["ablation"]

    def part(name: str):  # type: ignore[no-untyped-def]
        def run(args: Any, rows: Rows):  # type: ignore[no-untyped-def]
            for model in ("a", "b") if not args.models else args.models.split(","):
                if model not in rows:
                    begun.append(f"{name} {model}")
                    rows.begin(model)
                    args.models = "none"  # what a part narrows down is its own business
                    if model == "b" and name in slow:
                        time.sleep(60)
                    yield [{"model": model, "system": "whet", "right": name != "check"}]

        return run

    for name in bench.gpu.MEASURED:
        monkeypatch.setitem(bench.gpu.PARTS, name, part(name))
    given = ["--pretend", "--results", str(tmp_path), "--seconds"]
    assert bench.gpu.main([*given, "1.5"]) == 3
    assert "time is up in ablation" in capsys.readouterr().out
    assert begun[:2] == ["check a", "check b"]
    assert begun[-1] == "ablation b"
    slow.clear()
    begun.clear()
    assert bench.gpu.main([*given, "30"]) == 1  # something was wrong
    assert begun == ["ablation b", "shapes a", "shapes b", "kernels a", "kernels b"]
    found = sorted(p.name.partition("gpu-")[2] for p in tmp_path.glob("*.json"))
    assert found == sorted(f"pretended-{name}.json" for name in bench.gpu.MEASURED)


def test_every_model_comes_in_batches() -> None:
    """Every model of the zoo answers for as many samples as were asked for, each another one."""
    for name in names():
        model = load(name, scale="small")
        one, three = (batched(name, model.inputs, n) for n in (1, 3))
        assert sum(x.numel() for x in three) == 3 * sum(x.numel() for x in one), name
        with torch.no_grad():
            answers = [flat(model.module(*given)) for given in (one, three)]
        for a, b in zip(*answers, strict=True):
            assert b.numel() == 3 * a.numel(), name


def test_the_page_shows_each_kernel() -> None:
    result = {
        "suite": "gpu-kernels", "date": "today", "machine": {"name": "chip"},
        "versions": {"torch": "2"}, "measured": {"float32": 5e13, "bytes": 4e12},
        "records": [{"model": "m/1/float32", "system": "triton", "group": "add", "calls": 3,
                     "median_s": 2e-6, "library_s": 4e-6, "roofline": 0.5}],
    }  # fmt: skip
    said = page.text(result)
    assert "measured here: float32 5e+13/s, bytes 4e+12/s" in said
    assert said.splitlines()[-1].split() == ["m/1/float32", "add", "triton", "3", "2", "4", "50%"]


def test_what_is_asked_for() -> None:
    args = bench.gpu.parsed(["--models", "lstm,dlrm", "--batches", "1,32", "--kinds", "tf32"])
    rows = Rows(Path("none.json"), {"records": [{"model": "dlrm/1/tf32"}]})
    assert [k for *_, k in cases(args, rows)] == ["lstm/1/tf32", "lstm/32/tf32", "dlrm/32/tf32"]
    assert len(set(PRODUCTS)) == 40
