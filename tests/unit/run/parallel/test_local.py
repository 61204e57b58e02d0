"""A rank's part of a node is torch's own call where that computes the same."""

from __future__ import annotations

import pytest
import torch

from whet.ir.graph import apply, leaf
from whet.ir.types import DType, TensorType
from whet.parallel.choice import Choice, Choices, Factors
from whet.run.parallel.local import bind

MESH = (("micro", 2), ("data", 2))


def given(name, *shape):
    return leaf("input", name, TensorType(DType.f32, shape))


def cut(node, axes):
    """The choice of a node whose result is cut by samples along some axes."""
    choices = Choices(Factors([node]), MESH, {node: (0, 1)}, frozenset(a for a, _ in MESH))
    fits = [c for c in choices.of(node) if {a for _, _, a in c.result.cuts} == set(axes)]
    assert fits
    return fits[0]


def gradient_of_values():
    q, k, v, g = (given(n, 8, 2, 4, 16) for n in "qkvg")
    return apply("attention~v", q, k, v, None, g, causal=False, group=1, scale=0.25)


NODES = {
    "one sample is left": lambda: apply("reshape", given("x", 4, 6, 8), size=(4, 6, 2, 4)),
    "an operand is not read": gradient_of_values,
}


@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
def test_parts_are_torchs_own_calls(make):
    node = make()
    choice = cut(node, ("micro", "data"))
    local = bind(node, choice, MESH, {"micro": 0, "data": 0})
    assert local.native
    whole = bind(node, Choice((), choice.operands, type(choice.result)()), (), {})
    draw = torch.Generator().manual_seed(0)
    wholes = [torch.randn(*map(int, map(str, a.shape)), generator=draw) for a in node.operands]
    parts = [x[: len(x) // 4].contiguous() for x in wholes]
    assert torch.allclose(local.call(parts), whole.call(wholes)[: len(parts[0])], atol=1e-6)
