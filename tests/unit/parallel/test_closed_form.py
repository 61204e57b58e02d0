"""Blocks on 1-D and 2-D meshes against an optimum that is derived here, by the bytes moved.

The price of a step: a product costs its operations, so dearly that every axis of the mesh cuts it;
a collective of a value of V bytes over n ranks costs what each rank sends at least: an all_reduce
2 (n-1)/n V, any other (n-1)/n V.

With many samples the activations are far larger than the parameters. Whatever cuts a product
otherwise than by samples moves activations; cutting samples along every axis moves the gradients
alone, once: 2 (n-1)/n W for parameters of W bytes on n ranks in all, on a mesh of any shape.

With few samples the parameters are larger, so they are cut and stay. Two products in a row are cut
by columns, then by rows; the parts of the result are added up once, for every rank, since the loss
and all that flows back read it whole: 2 (n-1)/n V for a result of V bytes. (Left in parts for the
loss alone, it would be gathered again: 3 (n-1)/n V.)
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from whet.capture.joint import capture_joint
from whet.machine import topology
from whet.parallel import blocks
from whet.parallel.intra import Problem
from whet.parallel.library import TIME, Library
from whet.parallel.placed import Optimizer
from whet.parallel.strategy import Recipe

SIZE = 4  # bytes of an element
SCALE = 1e-9  # seconds of a byte: what the solver calls impossible is far away


class Feed(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.up, self.down = (
            nn.Linear(dim, hidden, bias=False),
            nn.Linear(hidden, dim, bias=False),
        )

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x):
        y = nn.functional.scaled_dot_product_attention(
            self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        )
        return self.o(y.transpose(1, 2).reshape(x.shape))


def mean(y, target):
    return ((y - target) ** 2).mean()


def solved(module, shape, axes, style="free"):
    """The block's choices on a mesh whose axes cut anything, priced by bytes."""
    with torch.device("meta"):
        x, t = torch.randn(shape), torch.randn(shape)
    joint = capture_joint(module.to("meta"), (x,), mean, (t,))
    model = blocks.model(joint.graph, joint.gradients, shape[0], whole=True)
    library = Library.of(model, topology("h100x8"), Optimizer())
    recipe = Recipe(axes, frozenset(), style)
    sizes = dict(axes)

    def price(step):
        if not step.is_collective:
            return step.flops * SCALE if step.dims else 0.0
        n = 1
        for a in step.axes:
            n *= sizes[a]
        return (2 if step.kind == "all_reduce" else 1) * (n - 1) / n * step.bytes * SCALE

    problem = Problem(
        model.layers[0], library.choices(0, recipe, 1), TIME, price, hidden=0.0, most=64
    )
    found = problem.solve(seconds=30.0)
    ranks = 1
    for size in sizes.values():
        ranks *= size
    kernels = sum(problem.node_s(n, found.choices[n]) for n in model.layers[0].nodes)
    cuts = {p.name: c.result for p, c in found.choices.items() if p.op == "parameter"}
    return (found.seconds - kernels) / SCALE, cuts


MESHES = [(("tensor", 4),), (("tensor", 8),), (("data", 2), ("tensor", 4))]


@pytest.mark.parametrize("axes", MESHES, ids=["4", "8", "2x4"])
def test_feed_forward(axes):
    rows, dim, hidden = 4096, 32, 64
    moved, cuts = solved(Feed(dim, hidden), (rows, dim), axes)
    ranks = math.prod(n for _, n in axes)
    assert moved == pytest.approx(2 * (ranks - 1) / ranks * 2 * dim * hidden * SIZE, rel=2e-3)
    assert not any(s.cuts for s in cuts.values())


@pytest.mark.parametrize("axes", MESHES[:2], ids=["4", "8"])
def test_attention(axes):
    rows, tokens, dim = 256, 64, 32
    moved, cuts = solved(Attention(dim, 8), (rows, tokens, dim), axes)
    ranks = math.prod(n for _, n in axes)
    assert moved == pytest.approx(2 * (ranks - 1) / ranks * 4 * dim * dim * SIZE, rel=2e-3)
    assert not any(s.cuts for s in cuts.values())


@pytest.mark.parametrize("axes", MESHES, ids=["4", "8", "2x4"])
def test_feed_forward_of_few_samples(axes):
    rows, dim, hidden = 64, 256, 1024
    moved, cuts = solved(Feed(dim, hidden), (rows, dim), axes)
    ranks = math.prod(n for _, n in axes)
    assert moved == pytest.approx(2 * (ranks - 1) / ranks * rows * dim * SIZE, rel=2e-3)
    for name, _ in axes:
        assert [cuts[f"{p}.weight"].on(name)[0] for p in ("up", "down")] == [0, 1]


@pytest.mark.parametrize("axes", MESHES, ids=["4", "8", "2x4"])
def test_attention_of_few_samples(axes):
    rows, tokens, dim = 2, 32, 512
    moved, cuts = solved(Attention(dim, 8), (rows, tokens, dim), axes)
    ranks = math.prod(n for _, n in axes)
    assert moved == pytest.approx(2 * (ranks - 1) / ranks * rows * tokens * dim * SIZE, rel=2e-3)
    for name, _ in axes:
        assert [cuts[f"{p}.weight"].on(name)[0] for p in "qkvo"] == [0, 0, 0, 1]


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@pytest.mark.parametrize("axes", MESHES[:2], ids=["4", "8"])
def test_heads_then_rows_with_one_all_reduce_where_tokens_stay_whole(axes):
    """Megatron's split of attention: queries, keys, values by heads, the last product by rows.

    Two in a row, whose tokens are not cut. Each one's result is added up once ahead; what flows
    back to the first one, through queries, keys, values and past them, once too; the input needs no
    gradient. Three all_reduces, and nothing else.
    """
    rows, tokens, dim = 8, 32, 512
    module = nn.Sequential(*(Residual(Attention(dim, 8)) for _ in range(2)))
    moved, cuts = solved(module, (rows, tokens, dim), axes, style="tokens")
    ranks = math.prod(n for _, n in axes)
    value = rows * tokens * dim * SIZE
    assert moved == pytest.approx(3 * 2 * (ranks - 1) / ranks * value, rel=2e-3)
    for k in range(2):
        split = [cuts[f"{k}.inner.{p}.weight"].on("tensor")[0] for p in "qkvo"]
        assert split == [0, 0, 0, 1]
