"""Plans on real ranks over Gloo: losses, parameters and buffers equal those of one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.plans import PLANS, learning
from whet.capture import planned as glue
from whet.capture.training import training
from whet.run.parallel.launch import launch
from whet.run.parallel.session import Options

ROOT = str(Path(__file__).parents[4])
MODELS = ("bert_large", "llama3_8b", "resnet50", "dlrm", "mixtral_8x7b")
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
CHEAP = [
    ("dlrm", "pipeline x data", "float64"),
    ("llama3_8b", "data x tensor", "float64"),
    ("dlrm", "interleaved", "float32"),
]


@pytest.fixture(autouse=True)
def found_by_ranks(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ROOT)


def ranks(tmp_path, model, plan, dtype="float64", batch=8, *, limit=240.0, fault=None, **options):
    """Run a plan; how the ranks ended, and what rank 0 wrote."""
    out = tmp_path / "out.pt"
    job = {"model": model, "plan": plan, "dtype": dtype, "batch": batch, "out": str(out),
           "inference": options.pop("inference", False), "options": options,
           "timeout": 20 if fault else 120}  # fmt: skip
    if fault:
        job["fault"] = fault
    command = [sys.executable, "-m", "tests.rank", json.dumps(job)]
    ended = launch(command, PLANS[plan].ranks, limit=limit)
    found = torch.load(out, weights_only=False) if out.exists() else None
    return ended, found


def equal(found, model, dtype, batch=8, **options):
    """Hold a run against one process."""
    step = training(f"models:{model}:small", batch, dtype)
    given = {k: v for k, v in options.items() if k in ("steps", "optimizer", "rate")}
    apart = glue.compared(step, Options(**given), found["losses"], found["wholes"])
    assert len(found["losses"]) == options["steps"]
    assert found["wholes"].keys() == dict(step.wholes()).keys()
    assert apart["loss_error"] < TOLERANCE[dtype]
    assert apart["parameter_error"] < TOLERANCE[dtype]


@pytest.mark.parametrize(("model", "plan", "dtype"), CHEAP)
def test_twenty_steps_equal_one_process(tmp_path, model, plan, dtype):
    ended, found = ranks(tmp_path, model, plan, dtype, steps=20, rate=1e-3)
    assert [e.code for e in ended] == [0] * PLANS[plan].ranks, ended[0].text
    equal(found, model, dtype, steps=20, rate=1e-3)


def test_a_forward_pass_equals_the_module(tmp_path):
    """Two stages of two halves each; what the last pass hands out is gathered on rank 0."""
    job = {"inference": True, "steps": 3}
    ended, found = ranks(tmp_path, "llama3_8b", "pipeline x tensor", **job)
    assert [e.code for e in ended] == [0] * 4, ended[0].text
    step = training("models:llama3_8b:small", 8, "float64", inference=True)
    apart = glue.compared(step, Options(steps=3), (), found["wholes"])
    assert found["wholes"].keys() == {"result 0"}
    assert apart["result_error"] < 1e-12


@pytest.mark.full
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_under_every_plan(tmp_path, model, plan, dtype):
    options = {"steps": 20, **learning(model, dtype)}
    ended, found = ranks(tmp_path, model, plan, dtype, **options)
    assert [e.code for e in ended] == [0] * PLANS[plan].ranks, ended[0].text
    equal(found, model, dtype, **options)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dies", "rank 1 died at step 3"),
        pytest.param("fails", "rank 1 failed: ValueError: out of paper", marks=pytest.mark.full),
        pytest.param("hangs", "rank 1 hangs at step 3", marks=pytest.mark.full),
        pytest.param("diverges", "ranks 0 and 1 diverge", marks=pytest.mark.full),
    ],
)
def test_a_rank_that_ends_the_run_is_named_and_the_checkpoint_restores(tmp_path, kind, said):
    folder = tmp_path / "checkpoints"
    options = {"steps": 6, "every": 2, "check": 1, "folder": str(folder)}
    fault = {"rank": 1, "step": 3, "kind": kind}
    ended, found = ranks(tmp_path, "dlrm", "data", fault=fault, **options)
    assert found is None
    assert said in ended[0].text
    ended, found = ranks(tmp_path, "dlrm", "data", resume=True, **options)
    assert [e.code for e in ended] == [0, 0], ended[0].text
    assert found["first"] == 2
    step = training("models:dlrm:small", 8, "float64")
    losses, after = glue.single(step, Options(steps=6))
    assert found["losses"] == pytest.approx(losses[2:], rel=1e-9)
    for name, t in found["wholes"].items():
        torch.testing.assert_close(t, after[name], rtol=1e-9, atol=1e-12)
