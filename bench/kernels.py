"""Generated kernels against libraries: products of 60 shapes, in five classes.

    class   := square | tall | flat | batched | row
    systems := whet      the fastest of the schedules that are derived from the nest's structure
             | onednn    with the weight packed ahead of time; it has no such call for batched
             | mkl       torch.linear and torch.bmm as they are

A call each in turns, medians; results are compared with float64. `--part CLASS` measures one class.
A ratio above 1 is in whet's favour, against the faster of the two. With `--threads 1` it is the
thread's own time that counts, so that what else runs on the machine matters less.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench import suite
from whet.backend.build import Loaded, compile_kernels
from whet.errors import InputError, WhetError
from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel.loops import Buffer
from whet.kernel.lower import lower
from whet.kernel.space import drafts
from whet.machine import Machine
from whet.machine.target import Target
from whet.store import Store

Shape = tuple[int, int, int, int]  # batch, m, n, k
Call = Callable[[], Any]
Clock = Callable[[], float]

# fmt: off
SHAPES: Mapping[str, tuple[Shape, ...]] = {
    "square": tuple(
        (1, n, n, n) for n in (96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048)
    ),
    "tall": (
        (1, 1024, 64, 256), (1, 2048, 64, 64), (1, 2048, 128, 128), (1, 3136, 64, 64),
        (1, 3136, 64, 256), (1, 3136, 256, 64), (1, 4096, 32, 512), (1, 4096, 96, 384),
        (1, 8192, 128, 64), (1, 12544, 32, 147), (1, 784, 128, 512), (1, 6272, 24, 144),
    ),
    "flat": (
        (1, 16, 1024, 1024), (1, 16, 4096, 1024), (1, 32, 768, 3072), (1, 32, 3072, 768),
        (1, 49, 2048, 512), (1, 49, 512, 2048), (1, 64, 1024, 4096), (1, 64, 4096, 1024),
        (1, 128, 768, 768), (1, 128, 2304, 768), (1, 128, 3072, 768), (1, 197, 3072, 768),
    ),
    "batched": (
        (8, 64, 64, 64), (12, 128, 128, 64), (12, 128, 64, 128), (12, 197, 197, 64),
        (12, 197, 64, 197), (16, 64, 64, 64), (16, 128, 128, 64), (16, 128, 64, 128),
        (32, 49, 49, 32), (4, 256, 256, 256), (8, 512, 64, 512), (64, 32, 32, 128),
    ),
    "row": (
        (1, 1, 512, 512), (1, 1, 1000, 2048), (1, 1, 1024, 1024), (1, 1, 1024, 4096),
        (1, 1, 2048, 512), (1, 1, 2048, 2048), (1, 1, 3072, 768), (1, 1, 4096, 1024),
        (1, 1, 4096, 4096), (1, 1, 8192, 1024), (1, 1, 11008, 4096), (1, 1, 32000, 1024),
    ),
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Case:
    """One product, ready to be called by each system: {system: call}, and what whet chose."""

    calls: Mapping[str, Call]
    schedule: str


def measure(args: argparse.Namespace, progress: suite.Progress) -> tuple[suite.Result, str]:
    """The result of the suite, and its page.

    Raises:
        InputError: there is no such class of shapes.
    """
    classes = [args.part] if args.part else list(SHAPES)
    if args.part and args.part not in SHAPES:
        raise InputError(
            "there is no such class of shapes", expected=", ".join(SHAPES), got=args.part
        )
    threads = args.threads or Machine.detect().threads
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    machine = Machine.detect()
    target = Target.of(machine, threads)
    records: list[dict[str, Any]] = []
    with Store.open() as store, torch.no_grad():
        for kind in classes:
            for shape in SHAPES[kind][: 2 if args.small else None]:
                case = prepared(shape, target, store, clock)
                found = timed(case.calls, min(args.budget, 20) / 20, 5 if args.small else 9, clock)
                name = f"{kind} {label(shape)}"
                for system, (median, spread) in found.items():
                    flops = 2 * shape[0] * shape[1] * shape[2] * shape[3]
                    records.append({
                        "model": name, "system": system, "median_s": median, "spread": spread,
                        "gflops": flops / median / 1e9,
                        **({"schedule": case.schedule} if system == "whet" else {}),
                    })  # fmt: skip
                progress(f"{name}: {case.schedule}, {ratio(found):.2f}x")
    result = {
        "suite": "kernels", "date": datetime.date.today().isoformat(), "threads": threads,
        "complete": True, "versions": suite.versions(), "machine": machine.to_json(),
        "models": [f"{kind} {label(s)}" for kind in classes for s in SHAPES[kind]],
        "records": records,
    }  # fmt: skip
    return result, page(result)


def label(shape: Shape) -> str:
    """A shape as people write it."""
    b, m, n, k = shape
    return (f"{b}x" if b > 1 else "") + f"{m}x{n}x{k}"


def ratio(found: Mapping[str, tuple[float, float]]) -> float:
    """The better library's time over whet's."""
    return min(t for s, (t, _) in found.items() if s != "whet") / found["whet"][0]


def page(result: suite.Result) -> str:
    """A line for each shape, and each class's geometric mean."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for r in result["records"]:
        rows.setdefault(r["model"], {})[r["system"]] = r
    lines = ["product                      whet     onednn        mkl   GFLOP/s    ratio  schedule"]
    means: dict[str, list[float]] = {}
    for name, systems in rows.items():
        found = {s: (r["median_s"], r["spread"]) for s, r in systems.items()}
        times = [f"{found[s][0] * 1e6:9.1f}u" if s in found else f"{'-':>10}" for s in
                 ("whet", "onednn", "mkl")]  # fmt: skip
        ours = systems["whet"]
        r = ratio(found)
        means.setdefault(name.split()[0], []).append(r)
        lines.append(
            f"{name:<24} {' '.join(times)} {ours['gflops']:8.1f} {r:8.2f}  {ours['schedule']}"
        )
    lines.append("")
    for kind, ratios in means.items():
        mean = statistics.geometric_mean(ratios)
        lines.append(f"{kind:<8} geometric mean {mean:.3f}  least {min(ratios):.2f}")
    command = f"whet bench --suite kernels --threads {result['threads']}"
    return "\n".join([f"{command}, against the faster library, above 1 is whet's", *lines, ""])


# -- one product -----------------------------------------------------------------------------------
def prepared(shape: Shape, target: Target, store: Store, clock: Clock = time.perf_counter) -> Case:
    """Operands, the libraries' calls, and the fastest generated kernel.

    Raises:
        WhetError: a kernel computes something else.
    """
    b, m, n, k = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((b, m, k) if b > 1 else (m, k), dtype=np.float32)
    w = rng.standard_normal((b, k, n) if b > 1 else (n, k), dtype=np.float32)
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)
    a = leaf("input", "x", TensorType(DType.f32, x.shape))
    if b > 1:
        z = leaf("input", "w", TensorType(DType.f32, w.shape))
        graph = Graph((a, z), (apply("matmul", a, z),))
        want = x.astype(np.float64) @ w.astype(np.float64)
        libraries: dict[str, Call] = {"mkl": lambda: torch.bmm(tx, tw)}
        fixed = frozenset[str]()
    else:
        p = leaf("parameter", "w", TensorType(DType.f32, w.shape))
        graph = Graph((a,), (apply("linear", a, p, None),))
        want = x.astype(np.float64) @ w.T.astype(np.float64)
        packed = torch.ops.mkldnn._reorder_linear_weight(tw, m)
        pointwise = torch.ops.mkldnn._linear_pointwise
        libraries = {
            "onednn": lambda: pointwise(tx, packed, None, "none", [], ""),
            "mkl": lambda: torch.nn.functional.linear(tx, tw),
        }
        fixed = frozenset({"x1"})
    found = drafts(lower(graph), fixed, target)
    kernels = {f"k{j}": d.kernel for j, d in enumerate(found)}
    built = compile_kernels(kernels, target, store)
    loaded = built.load()
    calls: dict[str, Call] = {}
    names: dict[str, str] = {}
    for (symbol, kernel), draft in zip(kernels.items(), found, strict=True):
        one, two = kernel.inputs
        out = memory(kernel.outputs[0], None)
        call = bound(loaded, symbol, [memory(one, x), memory(two, w), out], built.scratch[symbol])
        call()
        got = out[places(kernel.outputs[0])].reshape(want.shape)
        if not np.allclose(got, want, rtol=1e-3, atol=1e-3 * np.sqrt(k)):
            raise WhetError("a generated kernel is wrong", got=draft.name, where=label(shape))
        calls[symbol], names[symbol] = call, draft.name
    best = min(timed(calls, 0.1, 5, clock).items(), key=lambda item: item[1][0])[0]
    return Case({"whet": calls[best], **libraries}, names[best])


def places(b: Buffer) -> Any:
    """Where each element of a buffer lies."""
    index = np.indices(b.sizes, sparse=True)
    total = np.zeros(b.sizes, np.int64)
    for p in b.layout.parts:
        outermost = max(q.step for q in b.layout.parts if q.dim == p.dim)
        at = index[p.dim] // p.step
        total += (at if p.step == outermost else at % p.size) * p.stride
    return total.reshape(-1)


def memory(b: Buffer, values: Any) -> Any:
    """A buffer's memory, at the start of a page, holding `values`."""
    count = b.layout.elements
    raw = np.zeros(count * 4 + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    flat = raw[start : start + count * 4].view(np.float32)
    if values is not None:
        flat[places(b)] = values.reshape(-1)
    return flat


def bound(loaded: Loaded, symbol: str, arrays: Sequence[Any], scratch: int) -> Call:
    """A kernel over these arrays."""
    function = loaded.library[symbol]
    function.restype = None
    region = np.zeros(scratch + 64, np.uint8)
    base = ctypes.c_void_p(-(-region.ctypes.data // 64) * 64)
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    kept = (arrays, region, loaded)

    def call() -> object:
        function(pointers, base)
        return kept

    return call


def timed(
    calls: Mapping[str, Call], budget_s: float, rounds: int, clock: Clock = time.perf_counter
) -> dict[str, tuple[float, float]]:
    """Median and spread of each call's time in seconds by a clock, taken in turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        call()
        start = clock()
        call()
        once = clock() - start
        repeats[name] = max(1, min(1000, int(2e-3 / max(once, 1e-7))))
    end = time.perf_counter() + budget_s
    while len(next(iter(samples.values()))) < rounds or time.perf_counter() < end:
        for name, call in calls.items():
            start = clock()
            for _ in range(repeats[name]):
                call()
            samples[name].append((clock() - start) / repeats[name])
    found = {}
    for name, times in samples.items():
        low, mid, high = statistics.quantiles(times, n=4)
        found[name] = (mid, (high - low) / mid)
    return found
