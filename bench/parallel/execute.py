"""Plans on real ranks: losses and parameters of 20 steps against one process, in both precisions.

Every model under every plan of `tests/plans.py`, on 2 and 4 Gloo ranks of this host. What is
reported is the largest relative difference, not a time. A run goes on where the file of `--json`
ends.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.cli import split
from bench.suite import write
from tests.plans import PLANS, learning
from whet.capture import planned as glue
from whet.capture.training import training
from whet.run.parallel.launch import launch
from whet.run.parallel.session import Options

MODELS = ("bert_large", "llama3_8b", "resnet50", "dlrm", "mixtral_8x7b")
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
STEPS, BATCH = 20, 8


def measure(
    args: argparse.Namespace, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], str]:
    """Run all that the file of `args.json` does not hold; `args.models` chooses models."""
    file = getattr(args, "json", None)
    records: list[dict[str, Any]] = []
    if file is not None and file.exists():
        records = json.loads(file.read_text(encoding="utf-8"))["records"]
    known = {(r["model"], r["plan"], r["dtype"]) for r in records}
    models = split(getattr(args, "models", None)) or list(MODELS)
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    cells = [(m, p, d) for d in TOLERANCE for m in models for p in PLANS]
    for model, name, dtype in (c for c in cells if c not in known):
        progress(f"{model} under {name}, {dtype}")
        record = {"model": model, "plan": name, "ranks": PLANS[name].ranks, "dtype": dtype}
        records.append({**record, **_one(model, name, dtype)})
        if file is not None:
            write(file, json.dumps({"records": records}, indent=1))
    return records, page(records)


def _one(model: str, name: str, dtype: str) -> dict[str, Any]:
    options = {"steps": STEPS, **learning(model, dtype)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.pt"
        job = {"model": model, "plan": name, "dtype": dtype, "batch": BATCH, "out": str(out),
               "options": options, "timeout": 240}  # fmt: skip
        ended = launch(
            [sys.executable, "-m", "tests.rank", json.dumps(job)], PLANS[name].ranks, limit=600
        )
        if not out.exists():
            lines = [line for e in ended for line in e.text.splitlines() if "rror" in line]
            return {"error": lines[0] if lines else "did not end"}
        found = torch.load(out, weights_only=False)
    step = training(f"models:{model}:small", BATCH, dtype)
    return glue.compared(step, Options(**options), found["losses"], found["wholes"])


def page(records: list[dict[str, Any]]) -> str:
    """One line for each run."""
    lines = [f"{STEPS} steps on Gloo ranks against one process: largest relative differences"]
    good = 0
    for r in records:
        head = f"  {r['model']:<14}{r['plan']:<20}{r['ranks']} ranks  {r['dtype']:<9}"
        if "error" in r:
            lines.append(f"{head}{r['error']}")
            continue
        limit = TOLERANCE[r["dtype"]]
        fine = r["loss_error"] < limit and r["parameter_error"] < limit
        good += fine
        lines.append(f"{head}loss {r['loss_error']:.1e}  parameters {r['parameter_error']:.1e}"
                     f"  {'equal' if fine else 'NOT EQUAL: ' + r['parameter']}")  # fmt: skip
    lines.append(f"  {good} of {len(records)} equal")
    return "\n".join(lines)
