"""An operator that a test adds to the table lowers and schedules like the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.property.test_schedule import data, holds
from whet.ir import ops
from whet.ir.graph import Graph, apply, leaf
from whet.ir.interp import evaluate
from whet.ir.ops import define, instance
from whet.ir.types import DType, TensorType
from whet.kernel.interpret import run
from whet.kernel.lower import lower
from whet.kernel.schedule import Illegal, read
from whet.kernel.schedule import apply as scheduled

RECORD = """
y = blended(x[*b, m, k], w[(g, o), k], s[(g, o),] or 1, groups=G)
r[*b, m] = max[k](x[*b, m, k])
e[*b, m, k] = exp(x[*b, m, k] - r[*b, m])
z[*b, m] = sum[k](e[*b, m, k])
y[*b, m, (g, o)] = sum[k](e[*b, m, k] * w[(g, o), k]) / z[*b, m] * s[(g, o),]
"""
# t0: the maximum, t1: the exponentials, t2: their sum, t3: the weighted sums.
FUSED = """
split(y0_m, 3)
compute_at(t3, y0_m_o)
compute_at(t2, y0_m_o)
compute_at(t1, y0_m_o)
compute_at(t0, y0_m_o)
split(t0_k, 4)
split(t1_k, 4)
split(t2_k, 4)
split(t3_k, 4)
reorder((t0_k_o, t0_m,))
reorder((t1_k_o, t1_m,))
reorder((t2_k_o, t2_m,))
reorder((t3_k_o, t3_m, t3_g, t3_o,))
online((t0_k_o, t1_k_o, t2_k_o, t3_k_o,))
reorder((t3_k_i, t3_g, t3_o,))
vectorize(t3_o)
parallelize(y0_b0)
"""


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    """The table, put back afterwards."""
    before = dict(ops.TABLE)
    define(RECORD)
    yield
    ops.TABLE.clear()
    ops.TABLE.update(before)
    instance.cache_clear()


def cluster() -> Graph:
    x = leaf("input", "x", TensorType(DType.f32, (2, 7, 10)))
    w = leaf("parameter", "w", TensorType(DType.f32, (6, 10)))
    s = leaf("parameter", "s", TensorType(DType.f32, (6,)))
    return Graph((x,), (apply("relu", apply("blended", x, w, s, groups=2)),))


def test_it_is_lowered() -> None:
    k = lower(cluster())
    arrays = data(k, 0)
    feeds = {n: torch.from_numpy(arrays[b]) for n, b in zip("xws", arrays, strict=True)}
    (want,) = evaluate(cluster(), feeds)
    np.testing.assert_allclose(run(k, arrays)["y0"], want.numpy(), rtol=1e-12)


def test_it_is_fused_in_one_pass() -> None:
    k = lower(Graph(cluster().inputs, cluster().outputs[0].operands))
    made = scheduled(k, read(FUSED))
    assert not isinstance(made, Illegal), f"{made}\n{k}"
    arrays = data(k, 1)
    np.testing.assert_allclose(run(made, arrays)["y0"], run(k, arrays)["y0"], rtol=1e-12)


def test_random_schedules_keep_it() -> None:
    assert sum(holds(lower(cluster()), seed, 40) for seed in range(3)) > 10
