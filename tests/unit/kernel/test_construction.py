"""Schedules made from structure alone: right against the naive kernel, and of the wanted form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from whet.backend.cpp import function
from whet.ir import expr as ex
from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel import layout as lay
from whet.kernel.chain import chain
from whet.kernel.core import core
from whet.kernel.draft import points, turns
from whet.kernel.interpret import run
from whet.kernel.loops import Kernel, Loop, leaves, walk
from whet.kernel.lower import lower
from whet.kernel.schedule import Illegal, read, show
from whet.kernel.schedule import apply as scheduled
from whet.kernel.space import drafts
from whet.kernel.tile import prepared
from whet.machine.target import Target

NARROW = Target("avx512f", 16, 32, 2)  # four lanes: small sizes have tiles, tails and rests
WIDE = Target("avx512f", 64, 32, 2)


def x(name: str, *shape: int) -> Node:
    return leaf("input", name, TensorType(DType.f32, shape))


def linear(m: int, k: int, n: int) -> Graph:
    ins = x("x", m, k), x("w", n, k), x("v", n)
    return Graph(ins, (apply("gelu", apply("linear", *ins)),))


def convolution(n: int, c: int, o: int, size: int, taps: int, stride: int, groups: int) -> Graph:
    ins = x("x", n, c, size, size), x("w", o, c // groups, taps, taps), x("v", o)
    pad = (taps - 1) // 2
    y = apply(
        "conv2d", *ins, stride=(stride,) * 2, padding=(pad,) * 2, dilation=(1, 1), groups=groups
    )
    return Graph(ins, (apply("relu", y),))


def norm_chain() -> Graph:
    ins = x("x", 12, 20), x("w", 20), x("v", 20)
    y = apply("layer_norm", *ins, eps=1e-5, size=(20,))
    return Graph(ins, (apply("add", ins[0], apply("softmax", apply("gelu", y), axis=1)),))


def naive(graph: Graph) -> Kernel:
    """Images with their channels last."""
    k = lower(graph)
    for b in (k.buffer("x0"), k.buffer("y0")):
        if len(b.sizes) == 4:
            k = k.with_buffer(replace(b, layout=lay.dense(b.sizes, (0, 2, 3, 1))))
    return k


CASES = {
    "linear": linear(6, 5, 24),
    "linear with rests": linear(7, 5, 26),
    "one row": linear(1, 9, 50),
    "one row, prime": linear(1, 9, 53),
    "one row, one over": linear(1, 9, 33),
    "1x1": convolution(1, 3, 8, 8, 1, 1, 1),
    "3x3": convolution(2, 4, 9, 7, 3, 1, 1),
    "3x3 strided": convolution(1, 4, 8, 7, 3, 2, 1),
    "depthwise": convolution(1, 8, 8, 6, 3, 1, 8),
    "depthwise strided": convolution(1, 8, 8, 7, 3, 2, 8),
    "grouped": convolution(1, 8, 8, 5, 3, 1, 2),
    "pairs": convolution(1, 12, 12, 6, 3, 1, 6),
    "pairs strided": convolution(1, 20, 20, 7, 3, 2, 10),
    "pairs of three": convolution(1, 18, 12, 5, 3, 1, 6),
    "chain": norm_chain(),
}


@pytest.mark.parametrize("name", CASES)
def test_every_draft_computes_the_same(name: str) -> None:
    k = naive(CASES[name])
    rng = np.random.default_rng(0)
    arrays = {b.name: rng.standard_normal(b.sizes) for b in k.inputs}
    want = run(k, arrays)["y0"]
    found = drafts(k, frozenset({"x1", "x2"}), NARROW)
    assert found
    for d in found:
        again = scheduled(k, read(show(d.schedule)))
        assert not isinstance(again, Illegal), again
        assert again == d.kernel
        np.testing.assert_allclose(run(d.kernel, arrays)["y0"], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "one row", "1x1", "3x3", "depthwise"])
def test_sums_stay_in_registers(name: str) -> None:
    k = naive(CASES[name])
    best = drafts(k, frozenset({"x1", "x2"}), NARROW)[0]
    assert best.name != "chain"
    roles = {b.role for b in best.kernel.scratch if b.name.startswith("t")}
    assert roles == {"register"}
    assert points(best.kernel) <= 1.5 * points(k)


def test_a_chain_of_rows_is_one_loop_over_rows() -> None:
    k = chain(naive(CASES["chain"]), threads=1).kernel
    (rows,) = k.body
    assert isinstance(rows, Loop)
    inner = [s for s in rows.body if isinstance(s, Loop)]
    assert len(inner) == 5
    assert all(s.kind == "vector" for s in inner)
    assert all(b.role in ("register", "stack") for b in k.scratch)
    assert not any(isinstance(s, Loop) and s.kind == "parallel" for s in walk(k.body))


def test_threads_share_loops_that_were_collapsed() -> None:
    """Rows in steps within images' lines: fifty-six tiles in one loop."""
    k = naive(convolution(1, 8, 16, 28, 1, 1, 1))
    for d in drafts(k, frozenset({"x1", "x2"}), replace(NARROW, threads=4)):
        assert any(isinstance(s, Loop) and s.kind == "parallel" for s in d.kernel.body), d.name


def test_a_tile_of_registers_lies_along_its_vectors() -> None:
    """Each row of it is whole vectors, with a rest of lanes at the end."""
    k = naive(convolution(1, 8, 6, 8, 1, 1, 1))
    (d, *_) = drafts(k, frozenset({"x1", "x2"}), NARROW)
    (tile,) = (b for b in d.kernel.scratch if b.role == "register")
    strides = tile.layout.strides
    assert strides is not None
    assert [n for n, s in zip(tile.sizes, strides, strict=True) if n > 1 and s == 1] == [6]
    assert "vf t" in function("f", d.kernel, NARROW).text


def test_a_copy_of_what_is_padded_lies_as_its_source() -> None:
    k = naive(CASES["3x3"])
    for d in drafts(k, frozenset({"x1", "x2"}), NARROW):
        (copy,) = (b for b in d.kernel.scratch if b.name.startswith("x0_s"))
        assert [p.dim for p in copy.layout.parts] == [0, 2, 3, 1]


@pytest.mark.parametrize(
    ("name", "size", "taps", "stride"),
    [("depthwise", 6, 3, 1), ("wide", 23, 3, 1), ("strided", 23, 3, 2), ("five", 21, 5, 1)],
)
def test_a_window_slides_without_a_copy(name: str, size: int, taps: int, stride: int) -> None:
    """Tiles at both ends are nests of their own; nothing is read under a condition."""
    k = naive(convolution(1, 8, 8, size, taps, stride, 8))
    found = drafts(k, frozenset({"x1", "x2"}), NARROW)
    assert all("sliding" in d.name for d in found)
    rng = np.random.default_rng(0)
    arrays = {b.name: rng.standard_normal(b.sizes) for b in k.inputs}
    want = run(k, arrays)["y0"]
    for d in found:
        assert {b.role for b in d.kernel.scratch} == {"register"}
        values = [leaf.value for leaf, _, _ in leaves(d.kernel.body)]
        assert not any(isinstance(e, ex.Select) for v in values for e in ex.walk(v))
        np.testing.assert_allclose(run(d.kernel, arrays)["y0"], want, rtol=1e-10, atol=1e-12)


def test_groups_of_channels_are_tiles() -> None:
    """Vectors run along the channels of a group: its loop is one of the result's."""
    k = naive(CASES["grouped"])
    for d in drafts(k, frozenset({"x1", "x2"}), NARROW):
        assert d.name[0].isdigit()
        assert {b.role for b in d.kernel.scratch if b.name.startswith("t")} == {"register"}


@pytest.mark.parametrize("name", ["pairs", "pairs strided", "pairs of three"])
def test_a_vector_holds_channels_of_several_groups(name: str) -> None:
    first, *_ = drafts(naive(CASES[name]), frozenset({"x1", "x2"}), NARROW)
    assert first.name.startswith("groups ")
    assert {b.role for b in first.kernel.scratch} == {"register"}
    lanes = [
        s.extent for s in walk(first.kernel.body) if isinstance(s, Loop) and s.kind == "vector"
    ]
    assert min(lanes) > 2


def test_few_drafts_are_made() -> None:
    for name in CASES:
        assert len(drafts(naive(CASES[name]), frozenset({"x1", "x2"}), NARROW)) <= 4, name


def test_threads_share_what_is_large_enough() -> None:
    ins = (x("x", 512, 64),)
    k = lower(Graph(ins, (apply("exp", *ins),)))
    assert [s.kind for s in chain(k, 2).kernel.body if isinstance(s, Loop)] == ["parallel"]
    assert [s.kind for s in chain(k, 1).kernel.body if isinstance(s, Loop)] != ["parallel"]


def test_vectors_run_along_what_lies_together() -> None:
    p = prepared(naive(CASES["depthwise"])).kernel
    c = core(p, frozenset({"x1", "x2"}))
    assert c is not None
    assert (c.vector, c.row) == ("y0_b1", "y0_b3")
    assert core(p, frozenset()) is None  # the weights lie apart, and must stay so
    assert core(prepared(naive(CASES["chain"])).kernel, frozenset()) is None


def test_what_only_stores_runs_as_its_results_lie() -> None:
    ins = (x("x", 1, 24, 5, 6),)
    k = naive(Graph(ins, (apply("tanh", *ins),)))
    d = chain(k, 2)
    (inner,) = [s for s in walk(d.kernel.body) if isinstance(s, Loop) and s.kind == "vector"]
    assert inner.extent == 24
    feeds = {"x0": np.random.default_rng(0).standard_normal((1, 24, 5, 6)).astype(np.float32)}
    assert np.array_equal(run(d.kernel, feeds)["y0"], run(k, feeds)["y0"])


def test_a_pool_that_is_added_to_itself_is_a_tile() -> None:
    ins = (x("x", 1, 8, 9, 7),)
    window = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "extra": (0, 0)}
    pool = apply("avg_pool2d", *ins, include_padding=1, **window)
    k = naive(Graph(ins, (apply("add", pool, pool),)))
    c = core(prepared(k).kernel, frozenset())
    assert c is not None
    assert c.extent(c.vector) == 8
    feeds = {"x0": np.random.default_rng(0).standard_normal((1, 8, 9, 7)).astype(np.float32)}
    want = run(k, feeds)["y0"]
    for d in drafts(k, frozenset(), NARROW):
        np.testing.assert_allclose(run(d.kernel, feeds)["y0"], want, rtol=1e-6, atol=1e-6)


def nests_of(graph: Graph, name: str, fixed: frozenset[str]) -> list[int]:
    """How many loops over the reduction each outermost nest of a draft has."""
    found = next(d.kernel for d in drafts(lower(graph), fixed, WIDE) if d.name == name)
    return [sum(isinstance(s, Loop) and turns(s) == 40 for s in walk((n,))) for n in found.body]


def test_rows_that_a_tile_leaves_over_read_a_panel_while_it_is_near() -> None:
    """By themselves they would read the whole weight again."""
    assert nests_of(linear(197, 40, 768), "64x6 por", frozenset({"x1"})) == [2]


def test_rows_left_over_stay_apart_where_threads_could_not_share_the_panels() -> None:
    assert nests_of(linear(197, 40, 192), "64x6 por", frozenset({"x1"})) == [1, 1]  # three panels
    assert nests_of(linear(197, 40, 256), "64x6 por", frozenset({"x1"})) == [2]
