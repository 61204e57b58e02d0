"""What people found by hand is found without a hint: expert strategies are no seeds here.

Columns then rows of Megatron, closed-form optima and data parallelism are in `test_closed_form` and
`test_verify`.
"""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from whet.capture.joint import capture_joint
from whet.capture.models import mixtral, vision
from whet.machine import Mesh, topology
from whet.parallel import blocks
from whet.parallel.library import Library
from whet.parallel.placed import Optimizer
from whet.parallel.search import Search

MIXED = Optimizer(12, 4, 12)


class Feed(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def mean(y, target):
    return ((y - target) ** 2).mean()


def captured(module, inputs, targets, loss, dtype):
    cast = [
        tuple(x.to(dtype) if x.is_floating_point() else x for x in row) for row in (inputs, targets)
    ]
    joint = capture_joint(module.to(dtype), cast[0], loss, cast[1])
    return blocks.model(joint.graph, joint.gradients, len(inputs[0]), small=0)


def feeds(layers, dim, hidden, batch, tokens):
    with torch.device("meta"):
        module = nn.Sequential(*(Feed(dim, hidden) for _ in range(layers)))
        x, t = torch.randn(batch, tokens, dim), torch.randn(batch, tokens, dim)
    return captured(module, (x,), (t,), mean, torch.bfloat16)


def found(model, machine, optimizer=MIXED, budget=6.0):
    library = Library.of(model, topology(machine), optimizer)
    search = Search(library, seeds=False, budget=budget, clock=time.process_time)
    result = search.run()
    assert not result.baselines
    return library, result.best, result.simulated


def cuts(library, best):
    """Parameter's name → how it is cut, in every block."""
    rows = {}
    for part in best.parts:
        for place in range(part.first, part.last):
            choices = library.choices_of(part, place, best.microbatches)
            rows |= {n.name: c.result.cuts for n, c in choices.items() if n.op == "parameter"}
    return rows


def test_shards_of_everything_under_a_memory_limit():
    """FSDP: copies of the state do not fit, samples are cut, and parameters by ZeRO alone."""
    model = feeds(6, 1024, 4096, 64, 256)
    library, best, ran = found(model, "a100x8,device.memory=0.9", budget=8.0)
    (part,) = best.parts
    assert part.zero == 3
    assert not any(cuts(library, best).values())
    assert ran.fits
    whole = library.simulator.simulate(library.place(best.everywhere(zero=0)))
    assert not whole.fits


@pytest.mark.full
def test_stages_across_slow_links():
    """A pipeline where nodes are far apart, and Megatron's cuts inside of them."""
    model = feeds(8, 4096, 16384, 64, 128)
    library, best, _ = found(model, "a100x8:4,link.bandwidth=1", budget=20.0)
    assert best.groups == 4
    for part in best.parts:
        assert len({d // 8 for d in part.devices}) == 1
    rows = cuts(library, best)
    assert [dim for dim, _, _ in rows["0.up.weight"]] == [0]
    assert [dim for dim, _, _ in rows["0.down.weight"]] == [1]
    _, near, _ = found(model, "a100x8:4,link.bandwidth=50", budget=20.0)
    assert near.groups == 1


@pytest.mark.full
def test_one_weird_trick():
    """Convolutions cut samples, wide products cut parameters (Krizhevsky, 2014)."""
    with torch.device("meta"):
        given = vision.build(
            256, kind="vgg", stages=((64, 1), (128, 1), (256, 1)), wide=4096, classes=1000, image=64
        )
    model = captured(*given, torch.float32)
    library, best, _ = found(model, "p100x4:2", Optimizer(), budget=12.0)
    rows = cuts(library, best)
    wide = {n for n in rows if n in ("first.weight", "second.weight")}
    assert len(wide) == 2
    assert all(rows[n] for n in wide)
    assert not any(c for n, c in rows.items() if len(shape(model, n)) == 4)


@pytest.mark.full
def test_one_weird_trick_for_alexnet():
    """The network that the trick was found for, at its own size."""
    with torch.device("meta"):
        given = vision.build(
            1024, kind="alexnet", widths=(64, 192, 384, 256, 256), wide=4096, classes=1000,
            image=224,
        )  # fmt: skip
    model = captured(*given, torch.float32)
    library, best, _ = found(model, "p100x4:4", Optimizer(), budget=20.0)
    rows = cuts(library, best)
    assert all(part.recipe.size("data") > 1 for part in best.parts)
    assert all(rows[n] for n in ("first.weight", "second.weight"))
    kernels = [n for n in rows if len(shape(model, n)) == 4]
    assert len(kernels) == 5
    assert not any(rows[n] for n in kernels)


class Experts(nn.Module):
    def __init__(self, dim, hidden, experts):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(dim), mixtral.Mixture(dim, hidden, experts, 2)

    def forward(self, x):
        return x + self.inner(self.norm(x))


@pytest.mark.full
def test_experts_on_devices_of_their_own():
    """GShard: each device has some experts, tokens travel to them; all else cuts samples."""
    with torch.device("meta"):
        module = nn.Sequential(*(Experts(1024, 4096, 8) for _ in range(2)))
        x, t = torch.randn(64, 512, 1024), torch.randn(64, 512, 1024)
    model = captured(module, (x,), (t,), mean, torch.bfloat16)
    library, best, _ = found(model, "h100x8", budget=15.0)
    (part,) = best.parts
    assert part.recipe.axes[0] == ("data", 8)
    experts = {"gate", "up", "down"}
    for name, cut in cuts(library, best).items():
        expected = [(0, "data")] if name.rpartition(".")[2] in experts else []
        assert [(dim, axis) for dim, _, axis in cut] == expected, name
    mesh = Mesh(part.recipe.axes, part.devices)
    sent = [
        s.kind
        for number in range(len(model.layers))
        for s in library.block(number, part.recipe, mesh, best.microbatches).forward
        if s.is_collective
    ]
    assert sent.count("all_to_all") == 4  # to the experts and back, twice


def shape(model, name):
    return next(p.shape for layer in model.layers for p in layer.parameters if p.name == name)
