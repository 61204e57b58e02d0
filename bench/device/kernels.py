"""Generated kernels on a device: right first, then against the library, then the roofline."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import torch

from bench.device.models import cases, prepared, use_tf32
from bench.device.rows import Record, Rows
from bench.worker import one_line
from whet.backend.lowered import body_nodes
from whet.capture.torch import capture
from whet.fuse.partition import Cluster
from whet.fuse.seed import seed
from whet.ir.cost import graph_floor
from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.run.cuda import Cuda
from whet.run.device import Decision, Tuned
from whet.store import Store

TOLERANCE = {DType.f32: 1e-5, DType.f16: 2e-3, DType.bf16: 2e-2}

PRODUCTS = (
    [(m, n, n) for m in (1, 16, 64, 128, 512, 2048, 4096, 8192) for n in (1024, 2048, 4096)]
    + [(m, 4 * n, n) for m in (128, 2048) for n in (768, 1024, 2048, 4096)]
    + [(m, n, 4 * n) for m in (128, 2048) for n in (768, 1024, 2048, 4096)]
)
"""Rows, columns, depth: 40 shapes, square weights and both sides of feed-forward blocks."""
ATTENTION = [(1, 16, n, n, 64) for n in (128, 512, 2048, 4096)] + [
    (8, 16, 1024, 1024, 128), (1, 32, 1, 4096, 128), (8, 32, 1, 2048, 128),
]  # fmt: skip
"""Batch, heads, queries, keys, features of a head; one query is a step of decoding."""
ROWS = [(8192, 1024), (16384, 4096), (4096, 16384)]
"""Rows and their lengths: 16 MB in bfloat16, and more."""


def check(args: argparse.Namespace, rows: Rows) -> Iterator[list[Record]]:
    """Every kernel kind on the device against float64."""
    from tests.unit.backend.tiles import KINDS, device_error

    for name in [n for n in args.models.split(";") if n in KINDS] or KINDS:
        if name in rows:
            continue
        found = []
        for dtype, allowed in TOLERANCE.items():
            if args.pretend and dtype is DType.bf16:  # the interpreter's is wrong
                continue
            record: Record = {"model": name, "system": dtype.value}
            try:
                error = device_error(name, dtype, str(args.cuda.device))
                record |= {"error": error, "right": error <= allowed}
            except Exception as fault:  # whatever a compiler raises is its result
                record |= {"failed": one_line(fault), "right": False}
            found.append(record)
        yield found


def shapes(args: argparse.Namespace, rows: Rows) -> Iterator[list[Record]]:
    """Generated kernels against the library's, each alone, in bfloat16."""
    few = args.pretend
    dtype = DType.f16 if few else DType.bf16
    every = [*_products(dtype), *_attention(dtype), *_rows(dtype)]
    with closing(_tuned(args.cuda)) as tuned:
        for key, graph in [every[0], every[-1]] if few else every:
            if key in rows:
                continue
            rows.begin(key)
            small = Graph(graph.inputs, graph.outputs) if not few else _shrunk(graph)
            with torch.no_grad():
                parts = seed(small, body_nodes(small)).clusters
                found = [r for c in parts for r in _record(key, c, tuned, args.cuda)]
            yield found


def groups(args: argparse.Namespace, rows: Rows) -> Iterator[list[Record]]:
    """Each group of each model: what runs it, and its share of the roofline measured here."""
    peaks = rows.data.setdefault("measured", {})
    args.batches = "1"
    for name, batch, kind, key in cases(args, rows):
        rows.begin(key)
        if kind not in peaks:
            peaks |= roofline(args.cuda, kind)
        with torch.no_grad():
            case = prepared(name, batch, kind, args)
            graph = capture(case.module, case.args, case.kwargs).graph
            tuned = _tuned(args.cuda)
            parts = seed(graph, body_nodes(graph)).clusters
            with closing(tuned):
                tuned.prepare(parts)
            calls = Counter(c.digest for c in parts)
            records = []
            for closed in {c.digest: c for c in parts}.values():
                d = tuned.decision(closed)
                floor = _floor(closed, peaks[kind], peaks["bytes"])
                records.append({
                    "model": key, "system": "library" if d.schedule == "library" else "triton",
                    "group": tuned.names[closed.digest], "calls": calls[closed.digest],
                    "median_s": d.seconds, "library_s": d.library, "source": d.source,
                    "roofline": floor / d.seconds if d.seconds else 0.0,
                })  # fmt: skip
        yield sorted(records, key=lambda r: -r["calls"] * r["median_s"])


def roofline(cuda: Cuda, kind: str) -> dict[str, float]:
    """Operations a second of a large product of an element type, and bytes a second of a large
    copy, on this device."""
    n, words = (8192, 1 << 28) if cuda.kind == "cuda" else (64, 1 << 12)
    use_tf32(kind)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    a = torch.randn(n, n, device=cuda.device, dtype=dtype)
    x, y = (torch.empty(words, device=cuda.device) for _ in range(2))
    product, copy = cuda.seconds(lambda: (a @ a,), lambda: (y.copy_(x),))
    return {kind: 2 * n**3 / product, "bytes": 2 * 4 * words / copy}


def _tuned(cuda: Cuda) -> Tuned:
    return Tuned(cuda.gpu, Store.open(), cuda, cuda.precision)


def _floor(closed: Cluster, peak: float, band: float) -> float:
    floor = graph_floor(closed.graph)
    flops, moved = (float(x) if isinstance(x, int) else 0.0 for x in (floor.flops, floor.bytes))
    return max(flops / peak, moved / band)


def _record(key: str, closed: Cluster, tuned: Tuned, cuda: Cuda) -> Iterator[Record]:
    d: Decision = tuned.decision(closed)
    floor = _floor(closed, cuda.gpu.rate("bfloat16"), cuda.gpu.bandwidth)
    yield {"model": key, "system": "library", "median_s": d.library, "floor_s": floor}
    yield {
        "model": key, "system": f"triton {key.split(maxsplit=1)[0]}",
        "median_s": d.kernel, "floor_s": floor,
        "schedule": d.schedule, "gain": d.library / d.kernel if d.kernel < 1e9 else 0.0,
        "failures": dict(tuned.failures),
    }  # fmt: skip


def _leaf(name: str, dtype: DType, *shape: int) -> Node:
    return leaf("input", name, TensorType(dtype, shape))


def _products(dtype: DType) -> Iterator[tuple[str, Graph]]:
    for m, n, k in PRODUCTS:
        x, w = _leaf("x", dtype, m, k), _leaf("w", dtype, n, k)
        yield f"product {m}x{n}x{k}", Graph((x, w), (apply("linear", x, w, None),))


def _attention(dtype: DType) -> Iterator[tuple[str, Graph]]:
    for batch, heads, queries, keys, size in ATTENTION:
        q = _leaf("q", dtype, batch, heads, queries, size)
        k, v = (_leaf(n, dtype, batch, heads, keys, size) for n in "kv")
        made = apply("attention", q, k, v, None, causal=queries > 1, scale=size**-0.5, group=1)
        yield f"attention {batch}x{heads}x{queries}x{keys}x{size}", Graph((q, k, v), (made,))


def _rows(dtype: DType) -> Iterator[tuple[str, Graph]]:
    for m, n in ROWS:
        x, w = _leaf("x", dtype, m, n), _leaf("w", dtype, n)
        norm = apply("layer_norm", x, w, w, eps=1e-5, size=(n,))
        yield f"rows norm {m}x{n}", Graph((x, w), (norm,))
        yield f"rows softmax {m}x{n}", Graph((x,), (apply("softmax", x, axis=1),))


def _shrunk(graph: Graph) -> Graph:
    """The same operator over sizes that an interpreter gets through."""
    (result,) = graph.outputs
    small = {a: _leaf(a.name, a.dtype, *(min(int(str(n)), 32) for n in a.shape))
             for a in graph.inputs}  # fmt: skip
    attrs = dict(result.attrs)
    operands = [None if a is None else small[a] for a in result.args]
    return Graph(tuple(small.values()), (apply(result.op, *operands, **attrs),))
