"""The sequential reference executor, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.plans import PLANS, Plan, planned
from whet.capture import planned as glue
from whet.errors import WhetError
from whet.machine import topology
from whet.parallel.choice import Choice
from whet.parallel.library import Library
from whet.parallel.program import NotExecutable
from whet.parallel.sharding import Sharding
from whet.parallel.strategy import Strategy
from whet.parallel.traffic import issued, predicted
from whet.run.parallel.proof import PlanRefused
from whet.run.parallel.torchdist import TorchGroup


@pytest.mark.parametrize(
    "name", ["tensor", "pipeline", "gpipe", "interleaved", "fsdp", "data x tensor"]
)
def test_a_plan_is_equal_in_one_process(name):
    proof = glue.refuse(planned("dlrm", PLANS[name], "float32"))
    assert proof.error < 1e-12
    assert proof.seeds == 2
    assert proof.mirrored
    assert proof.values > 20
    assert proof.ranks == PLANS[name].ranks


def test_stages_of_different_meshes_are_equal():
    """Two replicas hand over to two halves of a tensor, and gradients come back."""
    plan = Plan(stages=2, data=2, micro=2, style="tokens", tensors=(1, 2))
    assert glue.refuse(planned("dlrm", plan)).error < 1e-12


def test_uneven_stages_are_equal():
    plan = Plan(stages=2, micro=2, weights=(9.0,) + (1.0,) * 10)
    made = planned("dlrm", plan)
    assert made.strategy.parts[0].last < 4 < len(made.training.model.rows) - 4
    assert glue.refuse(made).error < 1e-12


@pytest.mark.parametrize("name", ["tensor", "pipeline x data", "fsdp x 4"])
def test_a_forward_pass_is_equal_in_one_process(name):
    proof = glue.refuse(planned("dlrm", PLANS[name], "float32", inference=True))
    assert proof.error < 1e-12
    assert (proof.seeds, proof.values) == (2, 1)
    assert proof.ranks == PLANS[name].ranks


@pytest.mark.full
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("model", ["bert_large", "llama3_8b", "resnet50", "mixtral_8x7b", "vgg16"])
def test_all_plans_of_all_forward_passes_are_equal(model, name):
    assert glue.refuse(planned(model, PLANS[name], inference=True), seeds=1).error < 1e-12


@pytest.mark.full
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("model", ["bert_large", "llama3_8b", "resnet50", "mixtral_8x7b", "vgg16"])
def test_all_plans_of_all_models_are_equal(model, name):
    assert glue.refuse(planned(model, PLANS[name]), seeds=1).error < 1e-9


def test_gradients_that_cancel_out_are_held_to_the_others():
    """A key's bias moves all scores of a row alike: its gradient is rounding, and nothing else."""
    proof = glue.refuse(planned("bert_large", PLANS["data"]), seeds=1)
    assert proof.error < 1e-9


@pytest.mark.parametrize("name", ["fsdp", "pipeline x data", "data x tensor"])
def test_a_program_issues_what_the_simulator_prices(name):
    plan = planned("dlrm", PLANS[name], "float32", batch=16)
    for stage in range(len(plan.program.stages)):
        assert issued(plan.program, stage) == predicted(plan.placed, stage)


def test_a_wrong_choice_is_refused():
    """A partial sum that is taken for the sum: no operator objects, the comparison does."""
    plan = planned("bert_large", PLANS["tensor"])

    wronged = []

    def chosen(part, place):
        found = dict(plan.chosen(part, place))
        for n, c in found.items():
            if any(a == "tensor" for a, _ in c.result.partial):
                kept = tuple(p for p in c.result.partial if p[0] != "tensor")
                wronged.append(n)
                found[n] = Choice(c.cuts, c.operands, Sharding(c.result.cuts, kept), c.inner)
        return found

    step = plan.training
    wrong = glue.completed(plan.name, plan.dtype, step, plan.library, plan.strategy, chosen)
    assert wronged, "a plan with sums in parts"
    with pytest.raises(PlanRefused, match="does not compute what the model computes"):
        glue.prove(
            wrong.program, wrong.orders, step.joint.graph, step.joint.gradients,
            dict(step.wholes()), step.feeds(step.inputs, step.targets),
            make=lambda p: torch.optim.SGD(p, lr=0.1),
        )  # fmt: skip


def test_a_forward_pass_that_is_wrong_is_refused():
    """Half a sum handed out as the whole."""
    plan = planned("dlrm", PLANS["tensor"], inference=True)

    def chosen(part, place):
        found = dict(plan.chosen(part, place))
        for n, c in found.items():
            kept = tuple(p for p in c.result.partial if p[0] != "tensor")
            if kept != c.result.partial:
                found[n] = Choice(c.cuts, c.operands, Sharding(c.result.cuts, kept), c.inner)
        return found

    wrong = glue.completed(
        plan.name, plan.dtype, plan.training, plan.library, plan.strategy, chosen
    )
    step = plan.training
    with pytest.raises(PlanRefused, match="does not compute what the model computes"):
        glue.prove(
            wrong.program, wrong.orders, step.joint.graph, (), dict(step.wholes()),
            step.feeds(step.inputs, ()), make=torch.optim.SGD,
        )  # fmt: skip


def test_what_ranks_exchange_is_compared_too(monkeypatch):
    """A gather of the ranks' own that joins along another dim: the reference does not see it."""
    plan = planned("dlrm", PLANS["tensor"])
    gather = TorchGroup.all_gather
    monkeypatch.setattr(TorchGroup, "all_gather", lambda self, t: gather(self, t).flip(0))
    with pytest.raises(PlanRefused, match="does not compute what the model computes"):
        glue.refuse(plan, seeds=1)


def test_what_is_simulated_only_says_so():
    plan = planned("dlrm", PLANS["pipeline"])
    s = plan.strategy
    for changed in (
        replace(s, schedule="zero_bubble"), s.everywhere(offload=frozenset({"optimizer"})),
    ):  # fmt: skip
        with pytest.raises(NotExecutable, match="simulated only"):
            glue.lowered(plan.name, plan.dtype, plan.training, plan.library, changed)


def test_samples_that_depend_on_each_other_take_one_microbatch():
    plan = planned("resnet50", PLANS["data"], "float32")
    two = Strategy(plan.strategy.parts, 2, "1f1b")
    with pytest.raises(WhetError, match="microbatch|no way leads"):
        glue.lowered(plan.name, plan.dtype, plan.training, plan.library, two)


def test_a_plan_that_does_not_fit_is_refused():
    plan = planned("dlrm", PLANS["data"], "float32")
    tight = Library.of(plan.training.model, topology("h100x8,device.memory=0.000001"),
                       plan.library.optimizer)  # fmt: skip
    with pytest.raises(PlanRefused, match="does not fit in memory"):
        glue.check(replace(plan, library=tight))
