"""Random legal schedules of random clusters compute what the naive kernel does."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator

import numpy as np
import pytest

from tests.unit.ir.cases import case, every
from whet.ir.graph import Graph, Node, apply, leaf, topological
from whet.ir.types import DType, TensorType
from whet.kernel import fold, inline, mark, order, place, stage, trim
from whet.kernel.interpret import Array, run
from whet.kernel.layout import blocked
from whet.kernel.loops import Kernel, Loop, check, walk
from whet.kernel.lower import lower
from whet.kernel.move import Move
from whet.kernel.schedule import Illegal, attempt, read, show
from whet.kernel.text import parse

Case = tuple[str, Graph]


def x(*shape: int, name: str = "x", kind: str = "input") -> Node:
    return leaf(kind, name, TensorType(DType.f32, shape))


def clusters() -> dict[str, Graph]:
    """What is fused in models: products with epilogues, norms, attention, windows, views."""

    def of(*results: Node) -> Graph:
        return Graph(tuple(n for n in topological(results) if n.op == "input"), results)

    w, b = x(13, 7, name="w", kind="parameter"), x(13, name="b", kind="parameter")
    linear = apply("linear", x(5, 7), w, b)
    image = x(1, 8, 6, 7)
    conv = functools.partial(
        apply, "conv2d", groups=1, stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    )
    pointwise = conv(image, x(6, 8, 1, 1, name="w"), None, padding=(0, 0))
    deep = apply(
        "conv2d", apply("relu", pointwise), x(6, 1, 3, 3, name="d"), None,
        groups=6, stride=(2, 2), padding=(1, 1), dilation=(1, 1),
    )  # fmt: skip
    grouped = apply(
        "conv2d", image, x(8, 2, 3, 3, name="w"), None,
        groups=4, stride=(1, 1), padding=(1, 1), dilation=(1, 1),
    )  # fmt: skip
    q, k, v = x(2, 4, 5, name="q"), x(2, 6, 5, name="k"), x(2, 6, 3, name="v")
    attention = apply("attention", q, k, v, None, scale=0.5, causal=False, group=1)
    causal = apply("attention", q, k, v, None, scale=0.5, causal=True, group=1)
    norm = apply(
        "layer_norm", apply("add", x(6, 9), x(6, 9, name="z")), None, None, size=(9,), eps=1e-5
    )
    up, gate = x(11, 7, name="u"), x(11, 7, name="g")
    mlp = apply(
        "linear",
        apply("mul", apply("silu", apply("linear", x(5, 7), gate, None)),
              apply("linear", x(5, 7), up, None)),
        x(7, 11, name="o"), None,
    )  # fmt: skip
    heads = apply("permute", apply("reshape", linear, size=(5, 13, 1)), dims=(1, 0, 2))
    chain = apply("tanh", apply("mul", apply("exp", x(3, 1, 10)), x(4, 10, name="z")))
    return {
        "linear": of(apply("relu", linear)),
        "pointwise": of(apply("add", apply("relu", pointwise), x(1, 6, 6, 7, name="r"))),
        "window": of(apply("relu", conv(image, x(6, 8, 3, 3, name="w"), x(6, name="b")))),
        "chain of windows": of(deep),
        "grouped": of(apply("silu", grouped)),
        "attention": of(attention),
        "causal": of(causal),
        "norm": of(norm, apply("relu", norm)),
        "mlp": of(mlp),
        "heads": of(heads),
        "chain": of(chain),
        "softmax": of(apply("softmax", apply("mul", x(6, 20), x(1, 20, name="s")), axis=1)),
        "pool": of(apply("relu", apply(
            "max_pool2d", image, kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1),
            extra=(0, 0)))),
        "two results": of(linear, apply("sum", apply("square", linear), dims=(1,))),
    }  # fmt: skip


def proposals(k: Kernel, rng: random.Random) -> Move:
    """Any move, legal or not."""
    loops = list(k.loops) or ["none"]
    buffers = [b.name for b in k.buffers]
    scratch = [b.name for b in k.scratch] or buffers
    a, b = rng.choice(loops), rng.choice(loops)
    nests = [s for s in walk(k.body) if isinstance(s, Loop)]
    chain = [a]
    if nests:
        s: object = rng.choice(nests)
        chain = []
        while isinstance(s, Loop) and rng.random() < 0.8:
            chain.append(s.var)
            s = s.body[0]
        rng.shuffle(chain)
        chain = chain or [a]
    t = rng.choice(scratch)
    inside = k.loop(a).body if a in k.loops else ()
    child = inside[0].var if len(inside) == 1 and isinstance(inside[0], Loop) else b
    bl = k.buffer(rng.choice(buffers))
    dim = rng.randrange(max(len(bl.sizes), 1))
    dims = list(range(len(bl.sizes)))
    rng.shuffle(dims)
    laid = blocked(bl.sizes, dims, [(dim, rng.choice((2, 3, 4)))] if bl.sizes else [])
    return rng.choice(
        [
            lambda: order.Split(a, rng.choice((2, 3, 4, 5))),
            lambda: order.Reorder(tuple(chain)),
            lambda: order.Tile(tuple(chain[:2]), (2, 3)[: len(chain[:2])]),
            lambda: order.Collapse(a, child),
            lambda: order.Join(a, b),
            lambda: order.Peel(a, rng.randrange(1, 5)),
            lambda: mark.Parallelize(a),
            lambda: mark.Vectorize(a),
            lambda: mark.Unroll(a),
            lambda: mark.SetLayout(bl.name, str(laid)),
            lambda: inline.Inline(t),
            lambda: place.ComputeAt(t, a),
            lambda: place.ComputeAt(t, a),
            lambda: place.Recompute(t, a),
            lambda: stage.Stage(rng.choice(buffers), a),
            lambda: fold.SplitReduction(a),
            lambda: trim.Trim(a),
            lambda: trim.Beside(a, b),
        ]
    )()


def scheduled(k: Kernel, rng: random.Random, tries: int) -> Iterator[tuple[Move, Kernel]]:
    """Kernels after each of the moves that were legal."""
    for _ in range(tries):
        move = proposals(k, rng)
        made = attempt(k, move)
        if not isinstance(made, Illegal):
            k = made
            yield move, k


def data(k: Kernel, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        b.name: rng.uniform(-2, 2, b.sizes) if b.dtype.is_float
        else rng.integers(0, 2 if b.dtype is DType.bool else 3, b.sizes)
        for b in k.inputs
    }  # fmt: skip


def holds(k: Kernel, seed: int, tries: int) -> int:
    """Checks a random schedule; gives how many moves it has."""
    arrays = data(k, seed)
    want = run(k, arrays)
    done: list[Move] = []
    made = k
    for move, after in scheduled(k, random.Random(seed), tries):
        done.append(move)
        made = after
    text = f"{k}\n{show(done)}\n{made}"
    check(made)
    try:
        got = run(made, arrays)
    except Exception as fault:
        raise AssertionError(text) from fault
    for y in want:
        np.testing.assert_allclose(got[y], want[y], rtol=1e-9, atol=1e-9, err_msg=text)
    assert read(show(done)) == tuple(done)
    assert str(parse(str(made))) == str(made)
    return len(done)


@pytest.mark.parametrize("name", sorted(clusters()))
def test_schedules_keep_a_cluster(name: str) -> None:
    k = lower(clusters()[name])
    assert sum(holds(k, seed, 40) for seed in range(5)) > 20


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(clusters()))
def test_many_schedules_keep_a_cluster(name: str) -> None:
    k = lower(clusters()[name])
    for seed in range(100, 200):
        holds(k, seed, 60)


@pytest.mark.full
@pytest.mark.parametrize("row", every(), ids=lambda r: f"{r[0]}-{r[1]}")
def test_schedules_keep_every_operator(row: tuple[str, int]) -> None:
    c = case(*row)
    node = c.node()
    k = lower(Graph(tuple(dict.fromkeys(node.operands)), (node,)))
    for seed in range(3):
        holds(k, seed, 30)
