"""Plans are proven on every rank; rediscovery of known splits without a hint."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch
from torch import nn

from whet.capture.joint import capture_joint
from whet.machine import Mesh, topology
from whet.parallel import blocks, planfile
from whet.parallel.choice import Choice
from whet.parallel.explain import reasons
from whet.parallel.library import Library
from whet.parallel.placed import Optimizer
from whet.parallel.search import Search
from whet.parallel.sharding import WHOLE
from whet.parallel.strategy import Recipe
from whet.parallel.verify import PlanRefused, check


class Feed(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def mean(y, target):
    return ((y - target) ** 2).mean()


def step(dim=8, hidden=16, batch=8, tokens=4, dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    with torch.device(device):
        module = Feed(dim, hidden).to(dtype)
        x, y = (torch.randn(batch, tokens, dim, dtype=dtype) for _ in range(2))
    joint = capture_joint(module, (x,), mean, (y,))
    return joint, blocks.model(joint.graph, joint.gradients, batch, whole=True), (x, y)


@pytest.fixture(scope="module")
def small():
    joint, model, inputs = step()
    return joint, Library.of(model, topology("h100x8"), Optimizer()), inputs


RECIPES = [
    (Recipe((("data", 2), ("tensor", 2))), 2),
    (Recipe((("data", 2), ("tensor", 2)), style="tokens"), 1),
    (Recipe((("data", 4), ("tensor", 1)), frozenset()), 1),
]


@pytest.mark.parametrize(("recipe", "micro"), RECIPES, ids=str)
def test_solved_choices_are_equal_to_the_whole(small, recipe, micro):
    joint, library, inputs = small
    solved = library.solved(0, recipe, Mesh(recipe.axes, tuple(range(4))), micro)
    factors = library.choices(0, recipe, micro).factors
    error = check(
        joint.graph, solved.choices, library.axes(recipe, micro), factors, joint.feeds(inputs)
    )
    assert error < 1e-12


def test_any_choices_are_equal_to_the_whole(small):
    """Every choice that is offered is right: drawn at random, node by node."""
    joint, library, inputs = small
    recipe = Recipe((("data", 2), ("tensor", 2)), frozenset())
    listed = library.choices(0, recipe, 1)
    layer = library.model.layers[0]
    nodes = [*layer.nodes, *dict.fromkeys(a for n in layer.nodes for a in n.operands if a.is_leaf)]
    for seed in range(6):
        draw = random.Random(seed)
        choices = {}
        for n in nodes:
            options = [c for c in listed.of(n) if all(k == "sum" for _, k in c.result.partial)]
            choices[n] = draw.choice(options)
        mesh = library.axes(recipe, 1)
        assert check(joint.graph, choices, mesh, listed.factors, joint.feeds(inputs)) < 1e-12


def test_a_wrong_plan_is_refused(small):
    joint, library, inputs = small
    recipe, micro = RECIPES[0]
    solved = library.solved(0, recipe, Mesh(recipe.axes, tuple(range(4))), micro)
    broken = dict(solved.choices)
    node = next(n for n, c in broken.items() if c.result.partial and not n.is_leaf)
    c = broken[node]
    broken[node] = Choice(c.cuts, c.operands, type(WHOLE)(c.result.cuts), c.inner)
    with pytest.raises(PlanRefused, match="does not compute"):
        check(
            joint.graph, broken, library.axes(recipe, micro),
            library.choices(0, recipe, micro).factors, joint.feeds(inputs),
        )  # fmt: skip


def test_columns_then_rows_with_one_all_reduce_where_tokens_stay_whole():
    """Megatron's split of a feed-forward layer is the optimum when weights have to be cut.

    With samples and tokens whole, a product of w parameters costs its gradient's sum over all
    devices unless it is cut. Columns then rows leave one sum of the activations each way; any other
    cut of both gathers the hidden activations, which are larger.
    """
    joint, model, _ = step(1024, 4096, 8, 512, torch.bfloat16, "meta")
    library = Library.of(model, topology("h100x8"), Optimizer(12, 4, 12))
    recipe = Recipe((("data", 1), ("tensor", 8)), style="tokens")
    mesh = Mesh(recipe.axes, tuple(range(8)))
    solved = library.solved(0, recipe, mesh, 1)
    named = {
        p.name: c.result.on("tensor") for p, c in solved.choices.items() if p.op == "parameter"
    }
    assert named["up.weight"] == (0, 1)
    assert named["down.weight"] == (1, 1)
    block = library.block(0, recipe, mesh, 1)
    moved = [s.kind for s in block.forward if s.is_collective and s.bytes > 1 << 20]
    assert moved in (["all_reduce"], ["reduce_scatter", "all_gather"])
    del joint


def test_data_parallel_where_the_batch_is_large():
    _, model, _ = step(64, 128, 4096, 64, torch.float32, "meta")
    library = Library.of(model, topology("h100x8"), Optimizer())
    found = Search(library, seeds=False, budget=8.0, clock=time.process_time).run()
    # All devices take samples, along one axis of the mesh or two, and no parameter is cut.
    assert math.prod(size for _, size in found.best.parts[0].recipe.axes) == 8
    assert not any(reason.cuts for reason in reasons(library, found.best))
    text = planfile.write(planfile.data(library, found))
    again = planfile.read(text, model, library.cluster.fingerprint())
    assert again.parts == found.best.parts
    _, other, _ = step(64, 256, 4096, 64, torch.float32, "meta")
    with pytest.raises(planfile.PlanFileError, match="have another structure"):
        planfile.read(text, other)
    rows = planfile.differences(
        planfile.load(text), planfile.load(text.replace("zero: ", "zero: 1"))
    )
    assert all("zero" in r for r in rows)
