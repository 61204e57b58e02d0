"""Eight families of transformers, imported: each graph computes what its model computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.models.hf import Built, families
from whet.backend.library import run_opaque
from whet.capture.torch import capture
from whet.ir.interp import FLOAT64, evaluate

# Families whose code casts down to float32 whatever the model's type: to norm, to rotate, to route.
CASTS = ("llama", "t5_encoder", "mixtral")
FOREIGN = {"mixtral": {"aten.topk.default"}}


@pytest.mark.parametrize(("name", "build"), families().items(), ids=families())
def test_family_equals_its_graph(name: str, build: Callable[[], Built]) -> None:
    module, inputs = build()
    module = module.double()

    def wide(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    args, kwargs = tuple(map(wide, args)), {k: wide(v) for k, v in kwargs.items()}
    with torch.no_grad():
        want = module(*args, **kwargs)
    captured = capture(module, args, kwargs)
    results = evaluate(captured.graph, captured.feeds(args, kwargs), FLOAT64, run_opaque)
    got = captured.answer(results, args, kwargs)
    tolerance = 1e-5 if name in CASTS else 1e-9
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) <= tolerance
    assert {f.target for f in captured.foreign} == FOREIGN.get(name, set())
    assert len(captured.graph.inputs) == len(args) + len(kwargs)
