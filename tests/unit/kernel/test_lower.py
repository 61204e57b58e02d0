"""Every operator of the table, lowered: its naive kernel computes what the record says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.ir.cases import case, every
from whet.ir.graph import Graph
from whet.ir.interp import evaluate
from whet.kernel.interpret import run
from whet.kernel.lower import lower, operands


def computed(graph: Graph, feeds: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """The results of the cluster's naive kernel."""
    kernel = lower(graph)
    arrays = {f"x{k}": feeds[n.name].numpy() for k, n in enumerate(operands(graph))}
    found = run(kernel, arrays)
    return [found[f"y{k}"] for k in range(len(found))]


@pytest.mark.parametrize("row", every(), ids=lambda r: f"{r[0]}-{r[1]}")
def test_kernel_equals_the_interpreter(row: tuple[str, int]) -> None:
    c = case(*row)
    node = c.node()
    graph = Graph(tuple(dict.fromkeys(node.operands)), (node,))
    (got,) = computed(graph, c.feeds())
    (want,) = evaluate(graph, c.feeds())
    np.testing.assert_allclose(got, want.numpy().astype(got.dtype), rtol=1e-9, atol=1e-9)
