"""Steps by their model's name: forms of functions, batches, what is drawn, and what is refused."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from whet.capture.planned import batch, compared, lowered, refuse, single
from whet.capture.training import training
from whet.errors import CaptureError, WhetError
from whet.machine import topology
from whet.parallel.library import Library
from whet.parallel.pins import Pins
from whet.parallel.placed import Optimizer
from whet.parallel.search import Search
from whet.run.parallel.session import Options


class Net(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(8, 16), nn.Dropout(p), nn.Linear(16, 8)

    def forward(self, x):
        return self.down(self.drop(torch.relu(self.up(x))))


def mean(y, t):
    return ((y - t) ** 2).mean()


FORMS = {
    "with_targets": lambda b: (Net(), (torch.randn(b, 8),), (torch.randn(b, 8),), mean),
    "with_loss": lambda b: (Net(), (torch.randn(b, 8),), lambda y: y.sum()),
    "by_batch": lambda batch=2: (Net(), (torch.randn(batch, 8),)),
    "examples": lambda: (Net(), (torch.randn(3, 8),)),
    "by_name": lambda: (Net(), {"x": torch.randn(3, 8)}),
    "seeded": lambda seed=7: (Net(), (torch.randn(3, 8),)),
    "drops": lambda b: (Net(0.5), (torch.randn(b, 8),), (torch.randn(b, 8),), mean),
    "frozen": lambda b: (Net().requires_grad_(False), (torch.randn(b, 8),)),
    "wide": lambda b: (Net(), (torch.randn(b, 8),), (), lambda y: y),
    "other": lambda b: (Net(), (torch.randn(b + 1, 8),)),
    "fails": lambda b: 1 / 0,
}


@pytest.fixture(scope="module", autouse=True)
def module():
    made = types.ModuleType("a_users_module")
    vars(made).update(FORMS)
    sys.modules[made.__name__] = made
    yield
    del sys.modules[made.__name__]


@pytest.mark.parametrize(
    "form", ["with_targets", "with_loss", "by_batch", "examples", "by_name", "seeded"]
)
def test_forms_of_functions(form):
    step = training(f"a_users_module:{form}", 6, "float64")
    assert step.model.batch == 6
    assert step.inputs[0].shape == (6, 8)
    assert step.joint.gradients == ("up.weight", "up.bias", "down.weight", "down.bias")
    again = training(f"a_users_module:{form}", 6, "float64")
    assert all(torch.equal(t, again.wholes()[k]) for k, t in step.wholes().items())
    losses, _ = single(step, Options(steps=2, optimizer="sgd"))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", ["dlrm", "moe", "vit_b16"])
def test_models_of_the_zoo_are_trained_by_a_stand_in_loss(name):
    step = training(f"zoo:{name}:small", 4, "float32")
    assert step.model.training
    assert step.module.training
    forward = training(f"zoo:{name}:small", 4, "float32", inference=True)
    assert not forward.model.training
    assert not forward.module.training


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("frozen", "it depends on no parameter"),
        ("wide", "shape \\[4, 8\\]"),
        ("other", "no input has the samples of the batch"),
        ("fails", "ZeroDivisionError"),
        ("nothing", "has no nothing"),
    ],
)
def test_what_is_no_step_is_refused(form, text):
    with pytest.raises(CaptureError, match=text):
        training(f"a_users_module:{form}", 4, "float32")


def test_no_samples_and_files_without_a_loss():
    with pytest.raises(WhetError, match="a step has samples"):
        training("a_users_module:with_loss", 0, "float32")
    with pytest.raises(WhetError, match="a forward pass alone"):
        training("some.onnx", 4, "float32")


def test_what_is_drawn_is_an_input_that_every_rank_is_given():
    name = "a_users_module:drops"
    step = training(name, 8, "float64")
    assert list(step.joint.drawn.values()) == [0.5]
    one, two, again = batch(step, 1), batch(step, 2), batch(step, 1)
    flags = "drawn_0"
    assert torch.equal(one[flags], again[flags])
    assert not torch.equal(one[flags], two[flags])
    library = Library.of(step.model, topology("host"), Optimizer())
    best = Search(library, pins=Pins.of(["data=2", "offload=none"]), budget=1.0).run().best
    assert refuse(lowered(name, "float64", step, library, best)).error < 1e-9
    options = Options(steps=3, optimizer="sgd")
    losses, after = single(step, options)
    assert compared(step, options, losses, after)["loss_error"] < 1e-12
    assert losses[0] != losses[1]
