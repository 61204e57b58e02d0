"""Measuring the machine that plans run on: this host, as processes that talk over loopback.

    Text := devices (peak, curves, launch, slowdown), links, timings        see whet.machine.preset

What is measured, in all processes at once as a plan would run, each with its share of the cores:

    kernels      contractions on a grid of sizes, convolutions, gathers; for each class the rate
                 that it gets
    operations   of a rank's program, by bytes: the smallest is the launch of a kernel
    collectives  each on a range of sizes, for each number of ranks: points for interpolation
    messages     latency and bandwidth of a link, from ping and pong
    overlap      how much a kernel and a collective slow each other down

`python -m whet.run.calibrate JOB.json` is one of the processes.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from whet.errors import WhetError
from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, TensorType
from whet.machine import Machine
from whet.machine.device import PROCESS
from whet.parallel import blocks
from whet.parallel.choice import Choice
from whet.parallel.compose import program
from whet.parallel.cut import known
from whet.parallel.pipeline import Turn
from whet.parallel.sharding import WHOLE
from whet.parallel.strategy import Part, Recipe, Strategy
from whet.run.parallel import cores, heap
from whet.run.parallel.proof import together
from whet.run.parallel.torchdist import TorchGroup

SIZES = (2, 16, 64, 256, 1024)  # of m, n and k of a contraction
STREAMS = tuple(1 << p for p in range(12, 28, 3))  # bytes that a stream moves
MESSAGES = tuple(1 << p for p in range(10, 27, 2))  # bytes of a collective's tensor
CHANNELS, IMAGES = (4, 16, 64, 256), (4, 7, 14, 28, 56)
PING, SOFTMAX = 8 << 20, (256, 1024)  # bytes of a long message; shape of what is normalized
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")
SAMPLES, SAMPLE_S = 7, 4e-3
TIMEOUT_S = 300.0
COLD = 64 << 20  # bytes that no cache holds
BETWEEN = 192  # rows of the product between two collectives
PRODUCTS, LEAVES = 12, 8  # of a program that is timed
SUMS, VIEWS = 3, 4  # of one turn of it
GIGA, MICRO = 1e9, 1e-6

Call = Callable[[], object]


def measured(ranks: int = 2, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The text of a machine: this host with `ranks` processes as its devices.

    Args:
        ranks: processes; the cores are shared out among them.
        progress: is told what is being measured.

    Raises:
        WhetError: fewer than two ranks, or a process failed.
    """
    if ranks < 2:
        raise WhetError("links are between processes", expected="2 ranks or more", got=ranks)
    host = Machine.detect()
    progress(f"measuring kernels and collectives with {ranks} processes")
    with tempfile.TemporaryDirectory(prefix="whet-calibrate-") as place:
        found = _in_processes(ranks, max(1, host.threads // ranks), Path(place))
    return _text(host, ranks, found)


def _in_processes(ranks: int, threads: int, folder: Path) -> dict[str, Any]:
    job = {"ranks": ranks, "threads": threads, "folder": str(folder)}
    workers = []
    for rank in range(ranks):
        file = folder / f"job{rank}.json"
        file.write_text(json.dumps({**job, "rank": rank}))
        log = (folder / f"log{rank}.txt").open("w")
        workers.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "whet.run.calibrate", str(file)],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
        log.close()
    try:
        for rank, worker in enumerate(workers):
            if worker.wait(TIMEOUT_S):
                lines = (folder / f"log{rank}.txt").read_text().strip().splitlines()
                raise WhetError(
                    f"measuring failed in process {rank}", got="\n".join(lines[-5:]) or "no output"
                )
    except subprocess.TimeoutExpired:
        raise WhetError(f"measuring took more than {TIMEOUT_S:.0f} s") from None
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    every = [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(ranks)]
    found: dict[str, Any] = _slowest(every)
    return found


def _slowest(every: Sequence[Any]) -> Any:
    """Of times that all processes took, the longest: a step waits for the last one."""
    first = every[0]
    if isinstance(first, dict):
        return {key: _slowest([e[key] for e in every]) for key in first}
    if isinstance(first, list):
        return [_slowest(list(each)) for each in zip(*every, strict=True)]
    return max(every)


def _text(host: Machine, ranks: int, found: dict[str, Any]) -> dict[str, Any]:
    launch, call = float(found["launch"]), float(found["call"])

    def rate(work: float, seconds: float) -> float:
        return round(work / max(seconds - call, 0.02 * seconds) / GIGA, 3)

    contraction = [[d, rate(2 * d[0] * d[1] * d[2], s)] for d, s in found["contraction"]]
    fastest = max(rate(2 * d[0] * d[1] * d[2], s) for d, s in found["contraction"])
    window = [[d, rate(2 * d[0] * d[1] * d[2], s)] for d, s in found["window"]]
    stream = [
        [[size], round(size / max(s - launch, 0.05 * launch) / GIGA, 3)]
        for size, s in found["stream"]
    ]
    gather = [[[size], rate(size, s)] for size, s in found["gather"]]
    pool = [[[size], rate(size, s)] for size, s in found["pool"]]
    latency, longer = found["link"]
    bandwidth = PING / max(longer - latency, 1e-9)
    device = {
        "memory": round(host.memory / ranks / GIGA, 3),
        "bandwidth": max(r for _, r in stream),
        "peak": {
            "float32": round(fastest / 1e3, 6),
            "vector_float32": round(SOFTMAX[0] * SOFTMAX[1] * 5 / found["vector"] / 1e12, 6),
        },
        "units": 1,
        "eager": True,
        "launch": round(launch / MICRO, 3),
        "slowdown": [round(x, 3) for x in found["slowdown"]],
        "grain": [64, 64, 1 << 62],
        "curves": [
            {"kind": "contraction", "points": contraction},
            {"kind": "window", "points": window},
            {"kind": "stream", "points": stream},
            {"kind": "gather", "points": gather},
            {"kind": "pool", "points": pool},
        ],
    }
    return {
        "version": 1,
        "name": f"{host.name}-{ranks}-ranks",
        "about": f"{ranks} processes on one host over loopback, measured by whet machine measure.",
        "sources": [
            f"measured on {host.processor}, {host.threads} threads, torch {torch.__version__}"
        ],
        "devices": {PROCESS: device},
        "links": {
            "loopback": {
                "latency": round(latency / MICRO, 3),
                "bandwidth": round(bandwidth / GIGA, 4),
                "medium": True,
            }
        },
        "nodes": [
            {
                "count": 1,
                "device": PROCESS,
                "inside": [{"name": "host", "units": ranks, "link": "loopback"}],
            }
        ],
        "timings": [
            {
                "what": what,
                "ranks": int(size),
                "points": [[b, round(s / MICRO, 2)] for b, s in rising(points)],
            }
            for size, by_name in found["collectives"].items()
            for what, points in by_name.items()
        ],
    }


def rising(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Times by size where no smaller size takes longer: what disturbed a measurement goes.

    >>> rising([(1, 3.0), (2, 1.0), (4, 2.0)])
    [(1, 1.0), (2, 1.0), (4, 2.0)]
    """
    found, least = [], math.inf
    for size, seconds in reversed(points):
        least = min(least, seconds)
        found.append((size, least))
    return found[::-1]


# ---- one process ----


def main(job: dict[str, Any]) -> None:
    """Measures as one of the processes, and writes what it found."""
    folder, rank, ranks = Path(job["folder"]), job["rank"], job["ranks"]
    torch.set_num_threads(job["threads"])
    cores.settle(rank, ranks)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=TIMEOUT_S / 2),
    )
    with torch.no_grad():
        heap.keep()
        small = torch.zeros(4)
        found: dict[str, Any] = {"call": _seconds(lambda: small + small)}
        found["launch"], found["stream"] = _streams()
        found["contraction"] = list(_contractions())
        found["window"] = list(_windows())
        found["gather"] = list(_gathers())
        found["pool"] = list(_pools())
        found["vector"] = _vector()
        found["collectives"] = _collectives(rank, ranks)
        found["link"] = _link(rank)
        found["slowdown"] = _overlap()
    (folder / f"found{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _streams() -> tuple[float, list[tuple[int, float]]]:
    """Seconds of an operation of a rank's program on next to no data, and those by bytes.

    As in a program, where products come between and leave little in the caches: what a program of
    sums, views and products takes longer than the same products alone.
    """
    times = []
    for size in (STREAMS[0] // 64, *STREAMS):
        turns = 2 if size <= 1 << 20 else 1
        products = PRODUCTS if size <= 1 << 20 else 2
        plain, mixed = (_program(products, n, max(16, size // 12)) for n in (0, turns))
        # One behind the other, so that what disturbs both for a while is in neither.
        differences = [_seconds(mixed) - _seconds(plain) for _ in range(3)]
        times.append(statistics.median(differences) / (products * turns))
    launch, rest = times[0] / (SUMS + VIEWS), times[1:]
    rows = [(size, (t - VIEWS * launch) / SUMS) for size, t in zip(STREAMS, rest, strict=True)]
    return launch, [(size // 12 * 12, t) for size, t in rising(rows)]


def _program(products: int, turns: int, elements: int) -> Call:
    """A rank's program: products, and behind each some turns of `SUMS` sums and `VIEWS` views."""
    shape = (elements // 16, 16)
    xs = [leaf("input", f"x{k}", TensorType(DType.f32, shape)) for k in range(LEAVES)]
    side = TensorType(DType.f32, (BETWEEN, BETWEEN))
    p, w = leaf("input", "p", side), leaf("input", "w", side)
    made, total, others = p, xs[0], itertools.cycle(xs)
    for _ in range(products):
        made = apply("matmul", made, w)
        for _ in range(turns):
            total = apply("add", total, next(others))
            for _ in range(2):
                total = apply("permute", total, dims=(1, 0))
            total = apply("mul", total, next(others))
            for size in (shape[::-1], shape):
                total = apply("reshape", total, size=size)
            total = apply("sub", total, next(others))
    sums = turns > 0
    outs = (made, total) if sums else (made,)
    leaves = (p, w, *(xs if sums else ()))
    model = blocks.model(Graph(leaves, outs), (), BETWEEN, whole=True)
    part = Part(0, 1, (0,), Recipe((("data", 1), ("tensor", 1))))
    plain = {
        n: Choice((), (WHOLE,) * len(n.operands), WHOLE) for n in model.layers[0].nodes
    }  # fmt: skip
    runner = together(program(model, Strategy((part,)), lambda *_: plain))
    runner.place({}, torch.optim.SGD)
    values = {x.name: torch.randn(*map(known, x.shape)) / BETWEEN for x in leaves}
    runner.begin(values)
    return lambda: runner.turn(Turn("forward", 0, 0), last=False)


def _seconds(call: Call) -> float:
    """Seconds of a call, while all processes make it; a sample is long enough to time.

    Processes start each sample together and take as many calls, so that none is timed while the
    others have ended. The median counts, as it does where steps are timed: what disturbs one sample
    in four disturbs one step in four too.
    """
    call()
    began = time.perf_counter()
    call()
    once = torch.tensor([time.perf_counter() - began])
    dist.all_reduce(once, op=dist.ReduceOp.MAX)
    longest = float(once)
    calls = max(1, round(SAMPLE_S / max(longest, 1e-7)))
    samples = []
    for _ in range(SAMPLES if longest < 0.05 else 3):
        dist.barrier()
        call()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - began) / calls)
    return statistics.median(samples)


def _low(samples: Sequence[float]) -> float:
    """The lower quartile."""
    return statistics.quantiles(samples, n=4, method="inclusive")[0]


def _contractions() -> Iterable[tuple[tuple[int, int, int], float]]:
    for m in SIZES:
        for n in SIZES:
            for k in SIZES:
                x, w = torch.randn(m, k), torch.randn(n, k)
                # Weights, and where gradients are written, were last touched a step ago.
                ws = itertools.cycle([w.clone() for _ in range(_copies(w))])
                out = torch.empty(m, n)
                ys = itertools.cycle([out.clone() for _ in range(_copies(out))])
                call = lambda x=x, ws=ws, ys=ys: torch.mm(x, next(ws).t(), out=next(ys))  # noqa: E731
                yield (m, n, k), _seconds(call)


def _copies(t: torch.Tensor) -> int:
    """How many of a tensor no cache holds."""
    return max(1, min(256, COLD // (t.numel() * t.element_size())))


def _windows() -> Iterable[tuple[tuple[int, int, int], float]]:
    for c in CHANNELS:
        for side in IMAGES:
            x, w = torch.randn(4, c, side, side), torch.randn(c, c, 3, 3)
            call = lambda x=x, w=w: torch.conv2d(x, w, padding=1)  # noqa: E731
            yield (4 * side * side, c, 9 * c), _seconds(call)


def _gathers() -> Iterable[tuple[int, float]]:
    """Rows of a table that no cache holds; read and written."""
    table = torch.randn(1 << 20, 64)
    for size in STREAMS[1:]:
        rows = max(1, size // 512)
        ids = torch.randint(len(table), (rows,))
        yield rows * 512, _seconds(lambda ids=ids: table[ids])  # type: ignore[misc]


def _pools() -> Iterable[tuple[int, float]]:
    """The largest of each window; read and written."""
    for side in IMAGES:
        x = torch.randn(4, 64, side, side)
        call: Call = lambda x=x: torch.max_pool2d(x, 2)  # type: ignore[misc]  # noqa: E731
        yield 5 * x.numel(), _seconds(call)


def _vector() -> float:
    """Seconds of a softmax, which stands for element-wise work: five operations an element."""
    x = torch.randn(*SOFTMAX)
    return _seconds(lambda: torch.softmax(x, -1))


def _collectives(rank: int, ranks: int) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Times of each collective by number of ranks: powers of two up to all."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    sizes = [n for n in (2, 4, 8, 16) if n < ranks] + [ranks]
    for n in sizes:
        # All groups of that size work at once, as they do in a plan.
        groups = [dist.new_group(list(range(g, g + n))) for g in range(0, ranks - n + 1, n)]
        own = groups[min(rank // n, len(groups) - 1)] if rank < n * len(groups) else None
        found[str(n)] = {what: _collective(what, n, own) for what in COLLECTIVES}
    return found


def _collective(what: str, n: int, group: Any) -> list[tuple[int, float]]:
    """Behind a few ms of kernels, as in a program: nothing of it is left in the caches, ranks do
    not arrive together, and threads have to wake. It takes twice as long as right behind another.

    Steps add up what collectives take, so it is the mean, without the tenth that was disturbed.
    """
    points, kernel = [], torch.randn(512, 512)
    streams = torch.randn(8, 1 << 18).unbind()  # which leave nothing else in the caches
    for size in MESSAGES:
        elements = size // 4 // n * n
        samples = []
        if group is not None:
            call = _call(what, elements, n, group)
            call()
            for _ in range(40 if size < 1 << 22 else 10):
                kernel @ kernel
                for x in streams:
                    x + x
                began = time.perf_counter()
                call()
                samples.append(time.perf_counter() - began)
        kept = sorted(samples)[: len(samples) * 9 // 10] or [0.0]
        points.append((elements * 4, statistics.mean(kept)))
        dist.barrier()
    return points


def _call(what: str, elements: int, n: int, group: Any) -> Call:
    """A collective on a flat tensor or on each rank's part of it, as ranks make it."""
    whole, part = torch.ones(elements), torch.ones(elements // n)
    own = TorchGroup(group.group_name, n, lambda _: None)
    match what:
        case "all_reduce":
            return lambda: own.all_reduce(whole, "sum")
        case "all_gather":
            return lambda: own.all_gather(part)
        case "reduce_scatter":
            return lambda: own.reduce_scatter(whole)
        case "all_to_all":
            return lambda: own.all_to_all(whole)
        case _:
            return lambda: dist.broadcast(whole, group_src=0, group=group)


def _together(call: Call, times: int) -> float:
    """Seconds of a call that ranks make together; not repeated by the clock of one rank."""
    call()
    samples = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        call()
        samples.append((time.perf_counter() - began) / 2)
    return _low(samples)


def _link(rank: int) -> tuple[float, float]:
    """Seconds of a short and of a long message between the first two processes."""
    small, large = torch.zeros(1), torch.zeros(PING // 4)

    def ping(x: torch.Tensor) -> Call:
        def call() -> None:
            if rank == 0:
                dist.send(x, 1)
                dist.recv(x, 1)
            elif rank == 1:
                dist.recv(x, 0)
                dist.send(x, 0)

        return call

    short, long = _together(ping(small), 15) / 2, _together(ping(large), 9) / 2
    dist.barrier()
    return (short, long) if rank < 2 else (0.0, 0.0)


def _overlap() -> tuple[float, float]:
    """How many times longer a kernel takes beside a collective, and a collective beside kernels.

    Small kernels follow each other until a large collective that was started with them is done.
    """
    x, big = torch.randn(192, 192), torch.zeros(1 << 22)
    product = _seconds(lambda: x @ x)
    kernel, move = [], []
    for _ in range(SAMPLES):
        dist.barrier()
        moving = _seconds_once(lambda: dist.all_reduce(big))
        dist.barrier()
        began = time.perf_counter()
        work, times = dist.all_reduce(big, async_op=True), 0
        while not work.is_completed():
            x @ x
            times += 1
        both = time.perf_counter() - began
        work.wait()
        kernel.append(both / max(times * product, product))
        move.append(both / moving)
    return max(1.0, statistics.median(kernel)), max(1.0, statistics.median(move))


def _seconds_once(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
