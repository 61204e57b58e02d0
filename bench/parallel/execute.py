"""Plans on real ranks: losses and parameters of 20 steps against one process, in both precisions.

Every model under every plan of `tests/plans.py`, on 2 and 4 Gloo ranks of this host. What is
reported is the largest relative difference, not a time.
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

from tests.plans import PLANS
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
    """Run all; `args.models` chooses models."""
    records = []
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    for model in getattr(args, "models", None) or MODELS:
        for name, plan in PLANS.items():
            for dtype in TOLERANCE:
                progress(f"{model} under {name}, {dtype}")
                records.append({"model": model, "plan": name, "ranks": plan.ranks,
                                "dtype": dtype, **_one(model, name, dtype)})  # fmt: skip
    return records, page(records)


def _one(model: str, name: str, dtype: str) -> dict[str, Any]:
    options = {"steps": STEPS, "optimizer": "adamw" if dtype == "float64" else "sgd",
               "rate": 1e-3 if dtype == "float64" else 1e-2}  # fmt: skip
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
                     f"  {'equal' if fine else 'NOT EQUAL'}")  # fmt: skip
    lines.append(f"  {good} of {len(records)} equal")
    return "\n".join(lines)
