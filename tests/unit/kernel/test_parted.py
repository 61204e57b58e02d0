"""What is computed in several ways, told apart by where it lies: one pass, way beside way."""

from __future__ import annotations

import numpy as np
import pytest

from whet.ir import expr as ex
from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel.interpret import run
from whet.kernel.loops import leaves
from whet.kernel.lower import lower
from whet.kernel.parted import parted
from whet.kernel.schedule import Illegal, read, show
from whet.kernel.schedule import apply as scheduled
from whet.kernel.space import drafts
from whet.machine.target import Target

LANES = 4


def x(name: str, *shape: int) -> Node:
    return leaf("input", name, TensorType(DType.f32, shape))


def stacked() -> Graph:
    """Sums and differences side by side along a new axis."""
    a, b = x("a", 6, 10), x("b", 6, 10)
    ways = (apply("add", a, b), apply("sub", a, b), apply("mul", a, b))
    return Graph((a, b), (apply("stack", *ways, axis=0),))


def interleaved(rows: int) -> Graph:
    """Two values, taking turns along the rows; an odd number of rows leaves one out."""
    a, b = x("a", 8, 12), x("b", 8, 12)
    both = apply("stack", apply("exp", a), apply("add", a, b), axis=1)
    whole = apply("reshape", both, size=(16, 12))
    return Graph((a, b), (apply("slice", whole, axis=0, start=0, stop=rows, step=1),))


GRAPHS = {"stacked": stacked(), "in turn": interleaved(16), "in turn, odd": interleaved(13)}


@pytest.mark.parametrize("name", GRAPHS)
def test_each_way_is_a_statement_of_its_own(name: str) -> None:
    k = lower(GRAPHS[name])
    d = parted(k, 1, LANES)
    assert d is not None
    again = scheduled(k, read(show(d.schedule)))
    assert not isinstance(again, Illegal)
    assert again == d.kernel
    rng = np.random.default_rng(0)
    arrays = {b.name: rng.standard_normal(b.sizes) for b in k.inputs}
    np.testing.assert_allclose(run(d.kernel, arrays)["y0"], run(k, arrays)["y0"], rtol=1e-12)
    assert not d.kernel.scratch
    assert any(s.kind == "unroll" for s in map(d.kernel.loop, d.kernel.loops))
    assert any(s.kind == "vector" for s in map(d.kernel.loop, d.kernel.loops))


def test_it_is_a_draft_among_others() -> None:
    names = [d.name for d in drafts(lower(stacked()), frozenset(), Target("avx512f", 16, 32, 2))]
    assert names == ["parted", "chain"]


def test_one_way_of_computing_is_not_parted() -> None:
    a = x("a", 6, 10)
    assert parted(lower(Graph((a,), (apply("exp", a),))), 1, LANES) is None
    margin = apply("pad", a, axis=0, before=1, after=1, value=0.0)
    k = lower(Graph((a,), (apply("exp", margin),)))
    selects = [
        e for s, _, _ in leaves(k.body) for e in ex.walk(s.value) if isinstance(e, ex.Select)
    ]
    assert selects  # a margin is no way of computing
    assert parted(k, 1, LANES) is None


def test_too_many_ways_are_not_written_out() -> None:
    a = x("a", 4, 8)
    ways = tuple(apply("mul", a, apply("exp", a)) if n % 2 else a for n in range(40))
    assert parted(lower(Graph((a,), (apply("stack", *ways, axis=0),))), 1, LANES) is None
