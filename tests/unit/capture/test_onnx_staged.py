"""Plans of a forward pass as ONNX files: run one after the other, they are the model."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from torch import nn

from tests.plans import PLANS, Plan, planned
from whet.capture import planned as glue
from whet.capture.onnx.sequence import Steps, under_onnx_runtime, under_whet
from whet.capture.onnx.staged import write
from whet.errors import UnsupportedError, WhetError
from whet.parallel.library import Library
from whet.parallel.program import NotExecutable
from whet.parallel.strategy import Part, Recipe, Strategy
from whet.run.parallel.session import Options


def apart(plan, folder, session, batch=1):
    """How far the files are from the module, for a batch in another order than the examples."""
    found = Steps.of(folder, session).run(glue.batch(plan.training, batch))
    return glue.compared(plan.training, Options(steps=batch + 1), (), glue.named(found))


def holds(plan, folder, session, tolerance):
    write(plan.program, plan.training.wholes(), folder)
    assert apart(plan, folder, session)["result_error"] < tolerance


@pytest.mark.parametrize("model", ["llama3_8b", "resnet50"])
def test_two_stages_are_two_files_and_equal_the_original(model, tmp_path):
    pytest.importorskip("onnxruntime")
    plan = planned(model, PLANS["pipeline"], "float32", inference=True)
    holds(plan, tmp_path, under_onnx_runtime, 1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "plan.json", "stage0.onnx", "stage1.onnx",
    ]  # fmt: skip
    one, two = (onnx.load(tmp_path / f"stage{k}.onnx").graph for k in range(2))
    assert [v.name for v in two.input] == ["boundary0"]
    assert one.output[0].type.tensor_type.shape.dim[0].dim_value == 2  # a microbatch


@pytest.mark.parametrize(
    ("model", "name"), [("dlrm", "pipeline x tensor"), ("bert_large", "pipeline x data")]
)
def test_in_float64_nothing_is_lost(model, name, tmp_path):
    holds(planned(model, PLANS[name], inference=True), tmp_path, under_whet, 1e-12)


def test_ranks_that_talk_have_files_between(tmp_path):
    pytest.importorskip("onnxruntime")
    plan = planned("mixtral_8x7b", PLANS["tensor"], "float32", inference=True)
    holds(plan, tmp_path, under_onnx_runtime, 1e-5)
    said = json.loads((tmp_path / "plan.json").read_text())
    moves = [s for s in said["steps"] if s["do"] in ("all_reduce", "reduce_scatter", "all_gather")]
    assert moves
    assert all(s["ranks"] == [0, 1] for s in moves)
    assert {s["rank"] for s in said["steps"] if s["do"] == "run"} == {0, 1}


def test_replicas_share_a_file_and_stages_of_other_meshes_get_their_samples(tmp_path):
    plan = Plan(stages=2, data=2, micro=2, style="tokens", tensors=(1, 2))
    holds(planned("dlrm", plan, inference=True), tmp_path, under_whet, 1e-12)
    assert (tmp_path / "stage0.onnx").exists()


@pytest.mark.full
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("model", ["bert_large", "llama3_8b", "resnet50", "dlrm", "mixtral_8x7b"])
def test_every_plan_of_every_model(model, name, tmp_path):
    holds(planned(model, PLANS[name], inference=True), tmp_path, under_whet, 1e-12)
    plan = planned(model, PLANS[name], "float32", inference=True)
    holds(plan, tmp_path / "narrow", under_onnx_runtime, 1e-5)


class Heads(nn.Module):
    """A softmax over what ranks have parts of."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.down(torch.softmax(self.up(x), -1))


def heads():
    torch.manual_seed(0)
    return Heads(), (torch.randn(4, 6),)


def test_what_is_combined_inside_an_operator_is_a_step_between_files(tmp_path):
    """The largest and the sum of a softmax over two ranks."""
    from whet.capture.training import training
    from whet.machine import topology

    step = training("tests.unit.capture.test_onnx_staged:heads", 4, "float64", inference=True)
    library = Library.of(step.model, topology("h100x8"), glue.optimizer("float64"))
    recipe = Recipe((("tensor", 2),), frozenset(), "free")
    strategy = Strategy((Part(0, len(step.model.order), (0, 1), recipe),), 1)
    free = glue.lowered("heads", "float64", step, library, strategy)

    def chosen(part, place):
        found = dict(free.chosen(part, place))
        options = library.choices(step.model.order[place], recipe, 1)
        for n in found:
            inner = [c for c in options.of(n) if c.inner]
            if inner:
                found[n] = inner[0]
        return found

    plan = glue.completed("heads", "float64", step, library, strategy, chosen)
    said = write(plan.program, step.wholes(), tmp_path)
    ways = [s["how"] for s in said["steps"] if s["do"] == "all_reduce"]
    assert ways[:2] == ["max", "sum"]
    assert apart(plan, tmp_path, under_whet)["result_error"] < 1e-12


def test_what_is_refused(tmp_path):
    with pytest.raises(NotExecutable, match="ONNX files hold a forward pass"):
        write(planned("dlrm", PLANS["data"]).program, {}, tmp_path)
    plan = planned("dlrm", PLANS["data"], "float32", inference=True)
    away = {k: t.to("meta") for k, t in plan.training.wholes().items()}
    with pytest.raises(UnsupportedError, match="has no data to write"):
        write(plan.program, away, tmp_path)
    with pytest.raises(WhetError, match=r"plan\.json cannot be read"):
        Steps.of(tmp_path / "nothing", under_whet)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(WhetError, match="not the steps of a plan"):
        Steps.of(tmp_path, under_whet)
    write(plan.program, plan.training.wholes(), tmp_path)
    with pytest.raises(WhetError, match="does not fit"):
        Steps.of(tmp_path, under_whet).run({})
