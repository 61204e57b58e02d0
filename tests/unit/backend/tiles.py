"""Kernels of every kind for devices, and the process in which Triton's interpreter runs them.

`python -m tests.unit.backend.tiles NAME …` under TRITON_INTERPRET=1 prints one line of JSON: for
each name, the largest error against float64 relative to the largest result, and how many programs
each launch had. Triton decides whether it interprets when it is first imported, so that is a
process of its own: a test in the same one could not compile any more.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel.cut import Cut

F16, F32, I64 = DType.f16, DType.f32, DType.i64
TORCH = {
    DType.bf16: torch.bfloat16,
    F16: torch.float16,
    F32: torch.float32,
    I64: torch.int64,
    DType.bool: torch.bool,
}
SMALL = Cut(rows=32, columns=32, depth=16)
Built = tuple[tuple[Node, ...], tuple[Node, ...]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of kernel.

    Attributes:
        build: leaves and results for an element type.
        cut: how it is cut.
        turned: leaves whose memory lies the other way round.
        channels: leaves whose channels lie together.
        gaps: leaves whose rows lie apart, with something else between them.
        quick: it belongs to the representative set.
        launches: that it takes, where a test holds it to that.
    """

    build: Callable[[DType], Built]
    cut: Cut = SMALL
    turned: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    quick: bool = False
    launches: int = 1


def value(name: str, *shape: int, dtype: DType = F32) -> Node:
    return leaf("input", name, TensorType(dtype, shape))


def _one(op: str, *shapes: tuple[int, ...], **attrs: object) -> Callable[[DType], Built]:
    def build(t: DType) -> Built:
        leaves = tuple(value(f"x{k}", *s, dtype=t) for k, s in enumerate(shapes))
        return leaves, (apply(op, *leaves, **attrs),)

    return build


def _linear(t: DType) -> Built:
    x, w, b = value("x", 70, 100, dtype=t), value("w", 90, 100, dtype=t), value("b", 90, dtype=t)
    return (x, w, b), (apply("gelu", apply("linear", x, w, b)),)


def _prologue(t: DType) -> Built:
    x, w = value("x", 40, 50, dtype=t), value("w", 50, 36, dtype=t)
    return (x, w), (apply("matmul", apply("silu", x), w),)


def _row(t: DType) -> Built:
    x, w = value("x", 1, 100, dtype=t), value("w", 90, 100, dtype=t)
    return (x, w), (apply("linear", x, w, None),)


def _attention(
    heads: int, group: int, queries: int, keys: int, causal: bool, masked: bool = False
) -> Callable[[DType], Built]:
    def build(t: DType) -> Built:
        q = value("q", 2, heads, queries, 32, dtype=t)
        k, v = (value(n, 2, heads // group, keys, 32, dtype=t) for n in "kv")
        m = value("m", 2, heads, queries, keys, dtype=t) if masked else None
        leaves = (q, k, v) if m is None else (q, k, v, m)
        return leaves, (apply("attention", q, k, v, m, causal=causal, scale=0.2, group=group),)

    return build


def _conv(
    groups: int, channels: int, out: int, size: tuple[int, ...], stride: tuple[int, ...],
    window: int = 3, dilation: int = 1,
) -> Callable[[DType], Built]:  # fmt: skip
    def build(t: DType) -> Built:
        x = value("x", 2, channels, *size, dtype=t)
        w = value("w", out, channels // groups, window, window, dtype=t)
        b = value("b", out, dtype=t)
        padding = (dilation * (window // 2),) * 2
        attrs = {"groups": groups, "stride": stride, "padding": padding,
                 "dilation": (dilation, dilation)}  # fmt: skip
        return (x, w, b), (apply("relu", apply("conv2d", x, w, b, **attrs)),)

    return build


def _embedding(t: DType) -> Built:
    table, ids = value("t", 50, 33, dtype=t), value("i", 7, dtype=I64)
    return (table, ids), (apply("embedding", table, ids),)


def _gather(t: DType) -> Built:
    x, ids = value("x", 9, 70, dtype=t), value("i", 5, dtype=I64)
    return (x, ids), (apply("relu", apply("index_select", x, ids, axis=0)),)


def _norm_of_sum(t: DType) -> Built:
    x, r, w, b = (value(n, *s, dtype=t) for n, s in
                  (("x", (9, 70)), ("r", (9, 70)), ("w", (70,)), ("b", (70,))))  # fmt: skip
    added = apply("add", x, r)
    return (x, r, w, b), (added, apply("layer_norm", added, w, b, eps=1e-5, size=(70,)))


def _chain(t: DType) -> Built:
    x, w, v = value("x", 40, 48, dtype=t), value("w", 64, 48, dtype=t), value("v", 40, 64, dtype=t)
    return (x, w, v), (apply("linear", apply("relu", apply("linear", x, w, None)), v, None),)


def _unlike(t: DType) -> Built:
    """Products of other sizes, and a sum: nothing of one is needed for another."""
    x, w, v = value("x", 40, 48, dtype=t), value("w", 36, 48, dtype=t), value("v", 65, 48, dtype=t)
    z = value("z", 33, 70, dtype=t)
    left, right = apply("linear", x, w, None), apply("relu", apply("linear", x, v, None))
    return (x, w, v, z), (left, right, apply("sum", z, dims=(1,)))


def _masked(t: DType) -> Built:
    x, m = value("x", 9, 37, dtype=t), value("m", 9, 37, dtype=t)
    return (x, m), (apply("softmax", apply("add", x, m), axis=1),)


def _beside(t: DType) -> Built:
    x, w, v = value("x", 40, 48, dtype=t), value("w", 36, 48, dtype=t), value("v", 36, 48, dtype=t)
    return (x, w, v), (apply("linear", x, w, None), apply("relu", apply("linear", x, v, None)))


KINDS: Mapping[str, Kind] = {
    "pointwise": Kind(_one("gelu", (5, 37)), quick=True),
    "broadcast": Kind(_one("add", (3, 5, 37), (5, 1)), turned=(0,)),
    "sum": Kind(_one("sum", (5, 37), dims=(1,)), quick=True),
    "norm": Kind(_one("layer_norm", (5, 37), (37,), (37,), eps=1e-5, size=(37,)), quick=True),
    "norm, long rows": Kind(
        _one("layer_norm", (3, 700), (700,), (700,), eps=1e-5, size=(700,)), Cut(row=256)
    ),
    "norm, one row": Kind(
        _one("layer_norm", (1, 700), (700,), (700,), eps=1e-5, size=(700,)), quick=True
    ),
    "norm, one long row": Kind(
        _one("layer_norm", (1, 900), (900,), (900,), eps=1e-5, size=(900,)),
        Cut(row=256),
        launches=2,
    ),
    "norm of a sum": Kind(_norm_of_sum),
    "sum, two axes": Kind(_one("sum", (3, 37, 9), dims=(0, 2))),
    "maximum": Kind(_one("amax", (5, 37), dims=(1,))),
    "sum, long rows": Kind(_one("sum", (3, 700), dims=(1,)), Cut(row=256)),
    "softmax, mask": Kind(_masked),
    "softmax": Kind(_one("softmax", (5, 37), axis=1), quick=True),
    "softmax, long rows": Kind(_one("softmax", (3, 700), axis=1), Cut(row=256)),
    "softmax, columns": Kind(_one("softmax", (37, 5), axis=0)),
    "linear": Kind(_linear, quick=True),
    "matmul": Kind(_one("matmul", (33, 48), (48, 65)), turned=(0, 1)),
    "matmul, batched": Kind(_one("matmul", (3, 33, 48), (3, 48, 35))),
    "matmul, split": Kind(
        _one("matmul", (33, 160), (160, 35)), Cut(32, 32, 16, splits=2), launches=2
    ),
    "matmul, split, batched": Kind(
        _one("matmul", (3, 33, 160), (3, 160, 35)), Cut(32, 32, 16, splits=3), launches=2
    ),
    "matmul, gaps": Kind(_one("matmul", (33, 48), (48, 65)), gaps=(0, 1)),
    "matmul, few rows": Kind(_one("matmul", (3, 48), (48, 65)), quick=True),
    "matmul, tiles in groups": Kind(
        _one("matmul", (120, 48), (48, 65)), Cut(32, 32, 16, group=2), turned=(1,)
    ),
    "matmul, persistent": Kind(
        _one("matmul", (70, 48), (48, 90)), Cut(32, 32, 16, persistent=4), quick=True
    ),
    "matmul, prologue": Kind(_prologue),
    "matmul, one row": Kind(_row, quick=True),
    "chain of two": Kind(_chain),
    "side by side": Kind(_beside),
    "side by side, other shapes": Kind(_unlike, Cut(32, 32, 16, beside=True), quick=True),
    "side by side, split": Kind(_unlike, Cut(32, 32, 16, splits=3, beside=True), launches=2),
    "side by side, persistent": Kind(_unlike, Cut(32, 32, 16, persistent=3, beside=True)),
    "attention": Kind(_attention(3, 1, 45, 45, False)),
    "attention, causal": Kind(_attention(2, 1, 45, 45, True), quick=True),
    "attention, causal, long": Kind(_attention(1, 1, 90, 90, True)),
    "attention, mask": Kind(_attention(2, 1, 20, 33, False, True)),
    "attention, grouped heads": Kind(_attention(4, 2, 33, 33, True)),
    "attention, decode": Kind(_attention(4, 1, 1, 77, False)),
    "attention, decode, split": Kind(
        _attention(4, 1, 1, 77, False), Cut(32, 32, 16, splits=2), quick=True, launches=2
    ),
    "attention, grouped heads, decode": Kind(_attention(8, 4, 1, 77, False)),
    "attention, grouped heads, decode, split": Kind(
        _attention(8, 4, 1, 77, False), Cut(32, 32, 16, splits=2), quick=True, launches=2
    ),
    "attention, grouped heads, decode, mask, split": Kind(
        _attention(6, 3, 1, 90, False, True), Cut(32, 32, 16, splits=4), launches=2
    ),
    "attention, few queries, split": Kind(
        _attention(2, 1, 3, 90, False), Cut(32, 32, 16, splits=3), launches=2
    ),
    "attention, decode, mask, split": Kind(
        _attention(2, 1, 1, 90, False, True), Cut(32, 32, 16, splits=4), launches=2
    ),
    "conv": Kind(_conv(1, 20, 40, (9, 11), (2, 1)), quick=True),
    "conv, few channels": Kind(_conv(1, 3, 17, (7, 8), (1, 1))),
    "conv, grouped": Kind(_conv(2, 32, 34, (6, 6), (1, 1))),
    "conv, depthwise": Kind(_conv(8, 8, 8, (7, 9), (1, 1))),
    "conv, 1x1": Kind(_conv(1, 20, 40, (9, 7), (1, 1), window=1)),
    "conv, dilated": Kind(_conv(1, 16, 33, (9, 11), (1, 2), window=3, dilation=2)),
    "conv, channels last": Kind(_conv(1, 20, 40, (9, 11), (1, 1)), channels=(0, 1)),
    "embedding": Kind(_embedding, quick=True),
    "gather": Kind(_gather),
}


def graph(name: str, dtype: DType) -> Graph:
    leaves, results = KINDS[name].build(dtype)
    return Graph(leaves, results)


def sized(name: str, dtype: DType) -> Graph:
    """A kind at sizes that a model has."""
    if name.startswith("attention"):
        q, k, v = (value(n, 2, 4, 512, 64, dtype=dtype) for n in "qkv")
        attrs = {"causal": True, "scale": 0.1, "group": 1}
        return Graph((q, k, v), (apply("attention", q, k, v, None, **attrs),))
    if name == "conv":
        x, w = value("x", 4, 64, 56, 56, dtype=dtype), value("w", 64, 64, 3, 3, dtype=dtype)
        attrs = {"groups": 1, "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        return Graph((x, w), (apply("relu", apply("conv2d", x, w, None, **attrs)),))
    x, w, b = (value(n, *s, dtype=dtype) for n, s in
               (("x", (512, 512)), ("w", (512, 512)), ("b", (512,))))  # fmt: skip
    return Graph((x, w, b), (apply("gelu", apply("linear", x, w, b)),))


def feeds(name: str, g: Graph) -> dict[str, Tensor]:
    """Tensors for a graph's inputs; the same for the same name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    found = {}
    for n in g.inputs:
        shape = [int(str(size)) for size in n.shape]
        if n.dtype.is_float:
            found[n.name] = torch.randn(shape, generator=generator).to(TORCH[n.dtype])
        else:
            found[n.name] = torch.randint(0, 7, shape, generator=generator).to(TORCH[n.dtype])
    return found


def modules(name: str, dtype: DType):  # type: ignore[no-untyped-def]
    """The kernel of a kind: graph, scheduled kernel, Triton."""
    from dataclasses import replace

    from whet.backend.triton_text import module
    from whet.kernel.block import launch_of
    from whet.kernel.grid import grid
    from whet.kernel.layout import dense, strided
    from whet.kernel.lower import lower

    g = graph(name, dtype)
    k = lower(g)
    for place in KINDS[name].turned:
        b = k.buffer(f"x{place}")
        k = k.with_buffer(replace(b, layout=dense(b.sizes, list(range(len(b.sizes)))[::-1])))
    for place in KINDS[name].channels:
        b = k.buffer(f"x{place}")
        k = k.with_buffer(replace(b, layout=dense(b.sizes, [0, 2, 3, 1])))
    for place in KINDS[name].gaps:
        b = k.buffer(f"x{place}")
        k = k.with_buffer(replace(b, layout=strided(b.sizes, _apart(b.sizes))))
    d = grid(k, KINDS[name].cut)
    return g, d, module("kernel", d.kernel, launch_of(d.schedule))


def _apart(sizes: Sequence[int]) -> tuple[int, ...]:
    """Strides of rows with a gap of five elements after each."""
    found = [1]
    for n in reversed(sizes[1:]):
        found.insert(0, found[0] * n + (5 if len(found) == 1 else 0))
    return tuple(found)


def device_error(name: str, dtype: DType, device: str) -> float:
    """A kind on a device: its largest error against float64, relative to the largest result."""
    from whet.backend.triton import run
    from whet.ir.interp import evaluate

    g, _, m = modules(name, dtype)
    given = feeds(name, g)
    exact = evaluate(g, {k: x.double() if x.is_floating_point() else x for k, x in given.items()})
    flat = {}
    for k, n in enumerate(g.inputs):
        x = given[n.name]
        if k in KINDS[name].turned:
            x = x.permute(*range(x.dim())[::-1])
        if k in KINDS[name].channels:
            x = x.permute(0, 2, 3, 1)
        if k in KINDS[name].gaps:
            strides = _apart(x.shape)
            wide = torch.full((strides[0] * x.shape[0],), float("nan"), dtype=x.dtype)
            wide.as_strided(x.shape, strides).copy_(x)
            x = wide
        flat[f"x{k}"] = x.flatten().to(device)
    got = run(m, flat, device)
    worst = 0.0
    for k, want in enumerate(exact):
        have, want = got[f"y{k}"].cpu().double(), want.double().flatten()
        worst = max(worst, float((have - want).abs().max() / want.abs().max()))
    return worst


def errors(names: list[str]) -> Iterator[tuple[str, dict[str, object]]]:
    """Run kinds on the CPU, each in both element types."""
    for name in names:
        for dtype in (F32, F16):
            _, _, m = modules(name, dtype)
            worst = device_error(name, dtype, "cpu")
            found = {"error": worst, "grids": [p.grid for p in m.programs]}
            yield f"{name} {dtype.name}", found


if __name__ == "__main__":
    print(json.dumps(dict(errors(sys.argv[1:]))))
