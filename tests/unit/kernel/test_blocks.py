"""Attention, worked out from its nests: blocks of rows, tiles of registers, one pass or two."""

from __future__ import annotations

import numpy as np
import pytest

from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel.blocks import blocks, fair
from whet.kernel.interpret import run
from whet.kernel.loops import Kernel, Loop, walk
from whet.kernel.lower import lower
from whet.kernel.schedule import Illegal, read, show
from whet.kernel.schedule import apply as scheduled
from whet.machine.target import Target

TARGET = Target("avx2", 16, 16, 2, l1=1 << 15, l2=1 << 20)  # four lanes: small cases have tiles


def x(name: str, *shape: int) -> Node:
    return leaf("input", name, TensorType(DType.f32, shape))


def heads(name: str, tokens: int, count: int, size: int) -> tuple[Node, Node]:
    """What a linear layer gives, and its heads."""
    whole = x(name, 1, tokens, count * size)
    split = apply("reshape", whole, size=(1, tokens, count, size))
    return whole, apply("permute", split, dims=(0, 2, 1, 3))


def attention(tokens: int, past: int, group: int = 1, causal: bool = False) -> Kernel:
    """Queries of `tokens`, keys and values of `past`, in the layout that linear layers leave."""
    q, a = heads("q", tokens, 2 * group, 8)
    k, b = heads("k", past, 2, 8)
    v, c = heads("v", past, 2, 12)
    y = apply("attention", a, b, c, None, scale=0.3, causal=causal, group=group)
    y = apply("reshape", apply("permute", y, dims=(0, 2, 1, 3)), size=(1, tokens, 2 * group * 12))
    return lower(Graph((q, k, v), (y,)))


def same(k: Kernel, made: Kernel) -> None:
    rng = np.random.default_rng(0)
    data = {b.name: rng.standard_normal(b.sizes) for b in k.inputs}
    np.testing.assert_allclose(run(made, data)["y0"], run(k, data)["y0"], rtol=1e-9)


@pytest.mark.parametrize("piece", [None, 7, 16])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_cut_into_blocks(piece: int | None, causal: bool) -> None:
    k = attention(13, 20, causal=causal)
    d = blocks(k, TARGET, piece)
    assert d is not None
    same(k, d.kernel)
    kinds = {s.kind for s in walk(d.kernel.body) if isinstance(s, Loop)}
    assert kinds == {"serial", "parallel", "vector", "unroll"}
    scores = [b for b in d.kernel.scratch if b.sizes[-1] == (piece or 20)]
    assert scores, "the scores of a block, or of a piece of it, are all that is kept"
    assert not any(b.count > fair(13, TARGET) * 20 for b in d.kernel.scratch if b.name[-2:] != "_s")
    assert any(b.role == "register" for b in d.kernel.scratch)


def layers(rows: int, sizes: tuple[int, int, int]) -> Kernel:
    """Two linear layers with an activation between them."""
    a, b, c = sizes
    ins = (x("x", rows, a), x("v", b, a), x("u", b), x("w", c, b))
    first = apply("linear", *ins[:3])
    return lower(Graph(ins, (apply("linear", apply("gelu", first), ins[3], None),)))


@pytest.mark.parametrize("sizes", [(5, 24, 8), (6, 17, 13), (3, 8, 30)])
def test_two_layers_keep_what_is_between_them(sizes: tuple[int, int, int]) -> None:
    """Only a block's rows of it; both weights lie as vectors read them, where they may."""
    k = layers(21, sizes)
    d = blocks(k, TARGET, fixed=frozenset({"x1", "x2", "x3"}))
    assert d is not None
    same(k, d.kernel)
    rows = fair(21, TARGET)
    assert all(b.sizes[0] <= rows for b in d.kernel.scratch)
    assert [b.role for b in d.kernel.scratch if b.name.endswith("_s")] == ["register"] * 2
    lies = {b.name: str(b.layout) for b in d.kernel.inputs}
    assert all(lies[w].split()[-1] in ("0%4:4", "0%8:8", "0%4", "0%8") for w in ("x1", "x3"))


def test_queries_share_the_heads_of_keys() -> None:
    k = attention(8, 12, group=3)
    d = blocks(k, TARGET)
    assert d is not None
    same(k, d.kernel)


def test_long_rows_are_taken_in_pieces() -> None:
    k = attention(4, 150)
    small = Target("avx2", 16, 16, 2, l1=1 << 12, l2=1 << 12)
    d = blocks(k, small)
    assert d is not None
    assert "online" in show(d.schedule)
    same(k, d.kernel)


def test_the_schedule_is_replayed() -> None:
    k = attention(8, 12)
    d = blocks(k, TARGET)
    assert d is not None
    again = scheduled(k, read(show(d.schedule)))
    assert not isinstance(again, Illegal)
    assert again == d.kernel


def test_what_waits_for_nothing_is_of_another_kind() -> None:
    plain = lower(Graph((x("x", 4, 5),), (apply("exp", x("x", 4, 5)),)))
    assert blocks(plain, TARGET) is None


def test_a_block_wastes_little() -> None:
    wide = Target("avx512f", 64, 32, 2)
    assert [fair(n, wide) for n in (128, 64, 56, 49)] == [8, 8, 14, 10]
    assert fair(3, wide) == 3
