"""Attention in one pass over the keys, from moves alone; and what must not be folded so."""

from __future__ import annotations

import numpy as np
import pytest

from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel.interpret import Array, run
from whet.kernel.loops import Kernel
from whet.kernel.lower import lower
from whet.kernel.schedule import Illegal, attempt, read
from whet.kernel.schedule import apply as scheduled
from whet.kernel.text import parse

# t1: queries times keys, t0: scaled and masked, t2: their maximum, t3: exponentials, t4: their sum,
# t5: their sum weighted by the values.
ONE_PASS = """
inline(t0)
split(y0_i, 4)
compute_at(t5, y0_i_o)
compute_at(t4, y0_i_o)
compute_at(t3, y0_i_o)
compute_at(t2, y0_i_o)
compute_at(t1, y0_i_o)
split(t2_j, 3)
split(t3_j, 3)
split(t4_j, 3)
split(t5_j, 3)
reorder((t2_j_o, t2_i,))
reorder((t3_j_o, t3_i,))
reorder((t4_j_o, t4_i,))
reorder((t5_j_o, t5_i, t5_e,))
online((t2_j_o, t3_j_o, t4_j_o, t5_j_o,))
compute_at(t1, t2_j_o)
parallelize(y0_h)
"""


def attention(causal: bool) -> Kernel:
    def x(name: str, *shape: int) -> Node:
        return leaf("input", name, TensorType(DType.f32, shape))

    ins = (x("q", 2, 10, 5), x("k", 2, 7, 5), x("v", 2, 7, 6), x("mask", 1, 10, 7))
    return lower(Graph(ins, (apply("attention", *ins, scale=0.4, causal=causal, group=1),)))


def data(k: Kernel) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {b.name: rng.standard_normal(b.sizes) for b in k.inputs}


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_one_pass(causal: bool) -> None:
    k = attention(causal)
    made = scheduled(k, read(ONE_PASS))
    assert not isinstance(made, Illegal), made
    assert made.buffer("t1").sizes == made.buffer("t3").sizes == (1, 1, 4, 3)
    arrays = data(k)
    np.testing.assert_allclose(run(made, arrays)["y0"], run(k, arrays)["y0"], rtol=1e-12)


def test_a_masked_row_is_as_in_two_passes() -> None:
    """Blocks of minus infinity first, last and everywhere; infinity and NaN among the scores."""
    k = attention(causal=False)
    made = scheduled(k, read(ONE_PASS))
    assert not isinstance(made, Illegal), made
    arrays = data(k)
    mask = arrays["x3"]
    mask[0, 0, :3] = mask[0, 1, 3:] = mask[0, 2, :] = -np.inf
    mask[0, 3, 5], mask[0, 4, 0], mask[0, 5, 1] = np.inf, np.nan, -1e30
    got, want = run(made, arrays)["y0"], run(k, arrays)["y0"]
    assert np.isnan(want[:, 2]).all()
    assert np.isfinite(want[:, :2]).all()
    np.testing.assert_allclose(got, want, rtol=1e-12)


TWO = """
x: input[f32, 64]
w: input[f32, 64]
y: output[f32]
m: memory[f32]
z: memory[f32]
m[()] = -inf
z[()] = {start}
for j in range(64):
    m[()] = max(m[()], x[j])
for l in range(64):
    z[()] += {term}
y[()] = z[()]
"""


@pytest.mark.parametrize(
    ("start", "term", "kind"),
    [
        ("0", "exp(x[l] - m[()])", None),
        ("0", "w[l] * exp(x[l] - m[()]) / 3", None),
        ("0", "w[l] * (exp(x[l] - m[()]) if l < 60 else 0)", None),
        ("1", "exp(x[l] - m[()])", "algebra"),  # what it starts from would be scaled too
        ("0", "tanh(x[l] - m[()])", "algebra"),  # no law
        ("0", "exp(w[l] - m[()])", "algebra"),  # not what the maximum is of
        ("0", "exp(x[l] - m[()]) + 1", "algebra"),  # scales in part
        ("0", "exp(x[l] - m[()]) * exp(x[l] - m[()])", "algebra"),  # scales twice
        ("0", "x[l]", "algebra"),  # does not scale
    ],
)
def test_only_what_scales_is_folded(start: str, term: str, kind: str | None) -> None:
    k = parse(TWO.format(start=start, term=term))
    (move,) = read("online((j, l,))")
    made = attempt(k, move)
    if kind is not None:
        assert isinstance(made, Illegal)
        assert made.kind == kind
        assert str(made).startswith("online((j, l,)): algebra (buffer ")
        return
    assert not isinstance(made, Illegal), made
    np.testing.assert_allclose(run(made, data(k))["y"], run(k, data(k))["y"], rtol=1e-12)
