"""Records against torch over drawn shapes and attributes; and what every instance must obey."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.ir.cases import Case
from whet.ir.axes import classify
from whet.ir.cost import flops, touched
from whet.ir.graph import Graph
from whet.ir.interp import FIELD, evaluate, sample

Draw = Callable[[st.SearchStrategy], int]
SIZES = st.integers(1, 6)


def tensor(draw: Draw, *shape: int) -> Tensor:
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, generator=g, dtype=torch.float64)


def ids(draw: Draw, high: int, *shape: int) -> Tensor:
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(high, shape, generator=g)


def shape(draw: Draw, low: int = 0, high: int = 4) -> tuple[int, ...]:
    return tuple(draw(st.lists(SIZES, min_size=low, max_size=high)))


def axis_of(draw: Draw, rank: int) -> int:
    return draw(st.integers(-rank, rank - 1))


def broadcast(draw: Draw, full: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `full`."""
    kept = full[draw(st.integers(0, len(full))) :]
    return tuple(1 if draw(st.booleans()) else n for n in kept)


def pointwise(draw: Draw) -> Case:
    name = draw(st.sampled_from(["add", "sub", "mul", "div", "maximum", "lt", "remainder"]))
    full = shape(draw)
    a, b = tensor(draw, *broadcast(draw, full)), tensor(draw, *broadcast(draw, full))
    return Case(name, (a, b), {}, getattr(torch, name))


def selection(draw: Draw) -> Case:
    full = shape(draw)
    test = ids(draw, 2, *broadcast(draw, full)).bool()
    a, b = tensor(draw, *broadcast(draw, full)), tensor(draw, *broadcast(draw, full))
    return Case("where", (test, a, b), {}, torch.where)


def matmul(draw: Draw) -> Case:
    batch = shape(draw, 0, 2)
    m, k, n = (draw(SIZES) for _ in range(3))
    a = tensor(draw, *broadcast(draw, batch), m, k)
    return Case("matmul", (a, tensor(draw, *broadcast(draw, batch), k, n)), {}, torch.matmul)


def pair(draw: Draw, low: int, high: int) -> tuple[int, int]:
    return draw(st.integers(low, high)), draw(st.integers(low, high))


def convolution(draw: Draw) -> Case:
    g, c, o = (draw(st.integers(1, 3)) for _ in range(3))
    kernel, s, p, d = pair(draw, 1, 3), pair(draw, 1, 3), pair(draw, 0, 3), pair(draw, 1, 2)
    need = [max(1, d[k] * (kernel[k] - 1) + 1 - 2 * p[k]) for k in (0, 1)]
    size = [need[k] + draw(st.integers(0, 5)) for k in (0, 1)]
    x, w = tensor(draw, draw(SIZES), g * c, *size), tensor(draw, g * o, c, *kernel)
    bias = tensor(draw, g * o) if draw(st.booleans()) else None
    return Case(
        "conv2d", (x, w, bias), {"groups": g, "stride": s, "padding": p, "dilation": d},
        lambda x, w, b: F.conv2d(x, w, b, s, p, d, g),
    )  # fmt: skip


def transposed(draw: Draw) -> Case:
    g, c, o = (draw(st.integers(1, 2)) for _ in range(3))
    kernel, s, p, d = pair(draw, 1, 3), pair(draw, 1, 3), pair(draw, 0, 2), pair(draw, 1, 2)
    e = tuple(draw(st.integers(0, max(s[k], d[k]) - 1)) for k in (0, 1))
    size = [draw(st.integers(1, 5)) for _ in range(2)]
    for k in (0, 1):
        assume((size[k] - 1) * s[k] - 2 * p[k] + d[k] * (kernel[k] - 1) + e[k] + 1 > 0)
    x, w = tensor(draw, 2, g * c, *size), tensor(draw, g * c, o, *kernel)
    attrs = {"groups": g, "stride": s, "padding": p, "dilation": d, "output_padding": e}
    return Case(
        "conv_transpose2d", (x, w, None), attrs,
        lambda x, w, b: F.conv_transpose2d(x, w, b, s, p, e, g, d),
    )  # fmt: skip


def pooling(draw: Draw) -> Case:
    kernel, s, d = pair(draw, 1, 4), pair(draw, 1, 3), pair(draw, 1, 2)
    p = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [max(1, d[k] * (kernel[k] - 1) + 1 - 2 * p[k]) + draw(st.integers(0, 5)) for k in (0, 1)]
    x = tensor(draw, 2, 3, *size)
    if draw(st.booleans()):
        attrs = {"kernel": kernel, "stride": s, "padding": p, "dilation": d, "extra": (0, 0)}
        return Case("max_pool2d", (x,), attrs, lambda x: F.max_pool2d(x, kernel, s, p, d))
    assume(all(size[k] + 2 * p[k] >= kernel[k] for k in (0, 1)))
    include = draw(st.booleans())
    attrs = {
        "kernel": kernel, "stride": s, "padding": p, "extra": (0, 0), "include_padding": include,
    }  # fmt: skip
    return Case("avg_pool2d", (x,), attrs, lambda x: F.avg_pool2d(x, kernel, s, p, False, include))


def adaptive(draw: Draw) -> Case:
    size = pair(draw, 1, 9)
    x = tensor(draw, 2, 3, *pair(draw, 1, 9))
    return Case(
        "adaptive_avg_pool2d", (x,), {"size": size}, lambda x: F.adaptive_avg_pool2d(x, size)
    )


def reduction(draw: Draw) -> Case:
    name = draw(st.sampled_from(["sum", "mean", "amax", "amin"]))
    x = tensor(draw, *shape(draw, 1))
    dims = tuple(draw(st.sets(st.integers(0, x.ndim - 1), min_size=1)))
    return Case(name, (x,), {"dims": dims}, lambda x: getattr(torch, name)(x, dims))


def along(draw: Draw) -> Case:
    name = draw(
        st.sampled_from(["softmax", "log_softmax", "logsumexp", "cumsum", "flip", "argmax"])
    )
    x = tensor(draw, *shape(draw, 1))
    axis = axis_of(draw, x.ndim)
    if name == "flip":
        return Case(name, (x,), {"axis": axis}, lambda x: x.flip(axis))
    return Case(name, (x,), {"axis": axis}, lambda x: getattr(torch, name)(x, axis))


def norm(draw: Draw) -> Case:
    x = tensor(draw, *shape(draw, 1), draw(st.integers(2, 6)))
    size = x.shape[draw(st.integers(0, x.ndim - 1)) :]
    gamma = tensor(draw, *size) if draw(st.booleans()) else None
    beta = tensor(draw, *size) if draw(st.booleans()) else None
    return Case(
        "layer_norm", (x, gamma, beta), {"size": tuple(size), "eps": 1e-3},
        lambda x, a, b: F.layer_norm(x, size, a, b, 1e-3),
    )  # fmt: skip


def attention(draw: Draw) -> Case:
    b, h, g, i, j, d, e = (draw(st.integers(1, 4)) for _ in range(7))
    causal = draw(st.booleans())
    q, k, v = tensor(draw, b, h * g, i, d), tensor(draw, b, h, j, d), tensor(draw, b, h, j, e)
    mask = None
    if not causal and draw(st.booleans()):
        dims = [1 if draw(st.booleans()) else n for n in (b, h * g, i, j)]
        mask = tensor(draw, *dims)
    return Case(
        "attention", (q, k, v, mask), {"scale": 0.4, "causal": causal, "group": g},
        lambda q, k, v, m: F.scaled_dot_product_attention(
            q, k, v, m, is_causal=causal, scale=0.4, enable_gqa=True
        ),
    )  # fmt: skip


def movement(draw: Draw) -> Case:
    x = tensor(draw, *shape(draw, 1))
    axis = axis_of(draw, x.ndim)
    n = x.shape[axis]
    match draw(st.sampled_from(["slice", "pad", "roll", "permute", "concat", "stack", "select"])):
        case "slice":
            start = draw(st.integers(0, n))
            stop, step = draw(st.integers(start, n)), draw(st.integers(1, 3))
            index = [slice(None)] * x.ndim
            index[axis] = slice(start, stop, step)
            attrs = {"axis": axis, "start": start, "stop": stop, "step": step}
            return Case("slice", (x,), attrs, lambda x: x[tuple(index)])
        case "pad":
            before, after = draw(st.integers(-n, 3)), draw(st.integers(0, 3))
            assume(n + before + after > 0)
            flat = [0, 0] * x.ndim
            at = x.ndim - 1 - axis % x.ndim
            flat[2 * at : 2 * at + 2] = [before, after]
            attrs = {"axis": axis, "before": before, "after": after, "value": 2.5}
            return Case("pad", (x,), attrs, lambda x: F.pad(x, flat, value=2.5))
        case "roll":
            by = draw(st.integers(-7, 7))
            return Case("roll", (x,), {"axis": axis, "shift": by}, lambda x: x.roll(by, axis))
        case "permute":
            dims = tuple(draw(st.permutations(range(x.ndim))))
            return Case("permute", (x,), {"dims": dims}, lambda x: x.permute(dims))
        case "concat":
            sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
            parts = []
            for size in sizes:
                dims = list(x.shape)
                dims[axis] = size
                parts.append(tensor(draw, *dims))
            return Case("concat", tuple(parts), {"axis": axis}, lambda *x: torch.cat(x, axis))
        case "stack":
            parts = [tensor(draw, *x.shape) for _ in range(draw(st.integers(1, 5)))]
            return Case("stack", tuple(parts), {"axis": axis}, lambda *x: torch.stack(x, axis))
    index = draw(st.integers(0, n - 1))
    return Case("select", (x,), {"axis": axis, "index": index}, lambda x: x.select(axis, index))


def reshape(draw: Draw) -> Case:
    x = tensor(draw, *shape(draw, 0))
    rest, size = x.numel(), []
    while rest > 1 or draw(st.booleans()):
        n = draw(st.sampled_from([k for k in range(1, rest + 1) if rest % k == 0]))
        size.append(n)
        rest //= n
        if len(size) > 6:
            size.append(rest)
            break
    return Case("reshape", (x,), {"size": tuple(size)}, lambda x: x.reshape(size))


def lookup(draw: Draw) -> Case:
    x = tensor(draw, *shape(draw, 1))
    axis = axis_of(draw, x.ndim)
    if draw(st.booleans()):
        at = ids(draw, x.shape[axis], draw(SIZES))
        return Case("index_select", (x, at), {"axis": axis}, lambda x, i: x.index_select(axis, i))
    dims = list(x.shape)
    dims[axis] = draw(SIZES)
    at = ids(draw, x.shape[axis], *dims)
    return Case("gather", (x, at), {"axis": axis}, lambda x, i: x.gather(axis, i))


def einsum(draw: Draw) -> Case:
    sizes = {letter: draw(SIZES) for letter in "abcd"}
    terms = [
        "".join(
            draw(st.permutations(draw(st.sampled_from(["a", "ab", "abc", "bd", "cd", "abcd"]))))
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    used = sorted(set("".join(terms)))
    out = "".join(draw(st.permutations(used))[: draw(st.integers(0, len(used)))])
    equation = f"{','.join(terms)}->{out}"
    xs = tuple(tensor(draw, *(sizes[c] for c in t)) for t in terms)
    return Case("einsum", xs, {"equation": equation}, lambda *x: torch.einsum(equation, *x))


FAMILIES = (
    pointwise, selection, matmul, convolution, transposed, pooling, adaptive, reduction, along,
    norm, attention, movement, reshape, lookup, einsum,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@given(data=st.data())
def test_float64_evaluation_is_torchs(family: Callable[[Draw], Case], data: st.DataObject) -> None:
    c = family(data.draw)
    node = c.node()
    (got,) = evaluate(Graph(node.operands, (node,)), c.feeds())
    want = c.want()
    assert node.shape == tuple(want.shape)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=lambda m: f"{c}\n{m}")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@given(data=st.data())
def test_what_is_derived_is_consistent(family: Callable[[Draw], Case], data: st.DataObject) -> None:
    """Costs are those of the shapes, axes cover the result, the field keeps the shape."""
    c = family(data.draw)
    node, made = c.node(), c.instance
    assert isinstance(flops(made), int)
    for name, x in zip(made.operands, node.operands, strict=True):
        assert 0 <= touched(made, name) <= math.prod(x.shape)
    kinds = classify(made)
    assert {a for s in made.results.values() for a in s.flat} <= set(kinds)
    g = torch.Generator().manual_seed(0)
    feeds = {
        a.name: sample(a.type, FIELD, g) if x.is_floating_point() else x
        for a, x in zip(node.operands, (x for x in c.operands if x is not None), strict=True)
    }
    (got,) = evaluate(Graph(node.operands, (node,)), feeds, FIELD)
    assert tuple(got.shape) == node.shape
