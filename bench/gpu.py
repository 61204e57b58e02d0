"""What whet gains on an NVIDIA GPU: correctness first, then every model of the zoo, in pieces.

    python -m bench.gpu --part check                     every kernel kind on the device
    python -m bench.gpu --part models [--models a,b]     against eager and torch.compile's modes
    python -m bench.gpu --part ablation --plans FOLDER   rewrites on and off, on the TASO five
    python -m bench.gpu --part kernels                   each kernel's share of the roofline

Needs torch, triton, numpy and this repository. Rows are written to bench/results/ as they come, the
chip in the file's name; a part that is begun again leaves out what is there, so that each run may
end after `--seconds`. Tuned schedules lie in the user's store (WHET_CACHE), plans that were made on
a machine with solvers in --plans, one MODEL.json each (`whet optimize zoo:MODEL --target h200`).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whet.backend.lowered import body_nodes
from whet.capture.source import load
from whet.capture.zoo import names
from whet.errors import WhetError
from whet.fuse.seed import seed
from whet.ir.cost import graph_floor
from whet.run.device import LIBRARY, Tuned, graphs, lowered_for, this_gpu, timed
from whet.run.elsewhere import read_plan
from whet.run.oracle import relative_error
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.store import Store

TASO = ("resnet50", "resnext50", "nasnet_a", "nasrnn", "bert_base")
MODES = {
    "compile": {}, "reduce-overhead": {"mode": "reduce-overhead"},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
}  # fmt: skip
KINDS = ("float32", "tf32", "bfloat16")
RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """One part; 0, or 1 where a result was wrong."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--part", choices=("check", "models", "ablation", "kernels"), default="check"
    )
    parser.add_argument("--models", default="", help="names with commas; all unless given")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--plans", type=Path)
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--small", action="store_true", help="the zoo's small sizes")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("torch finds no NVIDIA GPU: nothing can be measured here")
        return 2
    rows = Rows(args.part)
    end = time.monotonic() + args.seconds
    work: dict[str, Callable[..., Iterator[tuple[str, dict[str, Any]]]]] = {
        "check": check, "models": models, "ablation": ablation, "kernels": kernels,
    }  # fmt: skip
    wrong = 0
    for key, row in work[args.part](args, rows, end):
        rows.add(key, row)
        wrong += not row.get("right", True)
        print(key, json.dumps(row), flush=True)
        if time.monotonic() > end:
            print("time is up: the same command goes on from here")
            break
    rows.summary()
    return int(wrong > 0)


class Rows:
    """What was measured, kept as it comes."""

    def __init__(self, part: str) -> None:
        self.gpu = this_gpu()
        chip = torch.cuda.get_device_name().lower().replace(" ", "-")
        RESULTS.mkdir(exist_ok=True)
        found = sorted(RESULTS.glob(f"*-gpu-{chip}-{part}.json"))
        today = datetime.date.today().isoformat()
        self.path = found[-1] if found else RESULTS / f"{today}-gpu-{chip}-{part}.json"
        self.data: dict[str, Any] = {
            "chip": torch.cuda.get_device_name(), "torch": torch.__version__, "part": part,
            "rows": {},
        }  # fmt: skip
        if found:
            self.data = json.loads(self.path.read_text(encoding="utf-8"))

    def __contains__(self, key: str) -> bool:
        return key in self.data["rows"]

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.data["rows"][key] = row
        self.path.write_text(json.dumps(self.data, indent=1), encoding="utf-8")

    def summary(self) -> None:
        """Geometric mean of what is there, and the lowest."""
        gains = {k: r["gain"] for k, r in self.data["rows"].items() if r.get("gain")}
        if gains:
            mean = math.exp(sum(map(math.log, gains.values())) / len(gains))
            low = min(gains, key=gains.__getitem__)
            print(f"{len(gains)} rows: geometric mean {mean:.3f}, lowest {gains[low]:.3f} ({low})")
        print(self.path)


# -- parts -----------------------------------------------------------------------------------------
def check(args: argparse.Namespace, rows: Rows, end: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every kernel kind on the device against float64."""
    from tests.unit.backend.tiles import KINDS as EVERY
    from tests.unit.backend.tiles import device_error
    from whet.ir.types import DType

    for name in EVERY:
        for dtype, allowed in ((DType.f32, 1e-5), (DType.f16, 2e-3), (DType.bf16, 2e-2)):
            key = f"{name} {dtype.name}"
            if key not in rows:
                try:
                    error = device_error(name, dtype, "cuda")
                    yield key, {"error": error, "right": error <= allowed}
                except Exception as fault:
                    yield key, {"right": False, "fault": f"{type(fault).__name__}: {fault}"[:300]}


def models(
    args: argparse.Namespace, rows: Rows, end: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every model, batch and element type."""
    for name in args.models.split(",") if args.models else names():
        for batch in map(int, args.batches.split(",")):
            for kind in args.kinds.split(","):
                key = f"{name} x{batch} {kind}"
                if key not in rows:
                    try:
                        yield key, measured(name, batch, kind, args, rows, end)
                    except (WhetError, RuntimeError) as fault:
                        yield key, {"fault": f"{type(fault).__name__}: {fault}"[:300]}


def ablation(
    args: argparse.Namespace, rows: Rows, end: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same program with and without the rewrites of its plan."""
    if args.plans is None:
        raise SystemExit("the ablation needs --plans FOLDER: made where there are solvers")
    for name in args.models.split(",") if args.models else TASO:
        for kind in args.kinds.split(","):
            key = f"{name} {kind}"
            if key in rows:
                continue
            try:
                source, _, precision = prepared(name, 1, kind, args.small)
                plain = program(source, None, precision, rows, end)
                better = program(source, args.plans / f"{name}.json", precision, rows, end)
                with torch.no_grad():
                    a, b = clock(plain), clock(better)
                yield key, {"plain": a, "rewritten": b, "gain": a / b}
            except (WhetError, RuntimeError) as fault:
                yield key, {"fault": f"{type(fault).__name__}: {fault}"[:300]}


def kernels(
    args: argparse.Namespace, rows: Rows, end: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each group of each model: what runs it, and its share of the roofline measured here."""
    peak, band = roofline()
    for name in args.models.split(",") if args.models else names():
        key = f"{name} kernels"
        if key in rows:
            continue
        source, _, precision = prepared(name, 1, "bfloat16", args.small)
        graph = source.capture().graph
        tuned = Tuned(rows.gpu, Store.open(), torch.device("cuda"), precision, until=end)
        found = []
        for closed in seed(graph, body_nodes(graph)).clusters:
            d = tuned.decision(closed)
            floor = graph_floor(closed.graph)
            flops, moved = (
                float(x) if isinstance(x, int) else 0.0 for x in (floor.flops, floor.bytes)
            )
            least = max(flops / peak, moved / band)
            found.append({
                "group": tuned.names[closed.digest], "seconds": d.seconds, "library": d.library,
                "kernel": "library" if d.schedule == LIBRARY else "triton",
                "roofline": least / d.seconds if d.seconds else 0.0,
            })  # fmt: skip
        yield key, {"groups": found, "peak": peak, "bandwidth": band}


# -- one model -------------------------------------------------------------------------------------
def prepared(name: str, batch: int, kind: str, small: bool) -> tuple[Any, Any, str]:
    """The model on the device, its float64 results on a copy, and the precision of products."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    source = load(f"zoo:{name}", scale="small" if small else "full")
    wide = tuple(_batched(x, batch) for x in source.args)
    exact = copy.deepcopy(source.module).cuda().double()
    with torch.no_grad():
        want = _flat(exact(*(_to(x, torch.float64) for x in wide)))
    want = [x.cpu() for x in want]
    del exact
    torch.cuda.empty_cache()
    object.__setattr__(source, "module", source.module.cuda().to(dtype).eval())
    object.__setattr__(source, "args", tuple(_to(x, dtype) for x in wide))
    object.__setattr__(source, "captured", None)
    return source, want, "tf32" if kind == "tf32" else "ieee"


def _batched(x: Any, batch: int) -> Any:
    if batch > 1 and isinstance(x, Tensor) and x.dim() and x.shape[0] == 1:
        return x.repeat(batch, *([1] * (x.dim() - 1)))
    return x


def _to(x: Any, dtype: torch.dtype) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.cuda().to(dtype) if x.is_floating_point() else x.cuda()


def _flat(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [t for x in (found.values() if isinstance(found, dict) else found) for t in _flat(x)]


def program(
    source: Any, plan: Path | None, precision: str, rows: Rows, end: float
) -> Callable[[], list[Tensor]]:
    """whet's program for a model, by a plan where there is one."""
    captured = source.capture()
    graph, given = captured.graph, {}
    if plan is not None:
        graph, given = read_plan(plan, graph)
    device = torch.device("cuda")
    tuned = Tuned(rows.gpu, Store.open(), device, precision, given, until=end)
    lowered = lowered_for(graph, tuned, device)
    constants = {k: v.cuda() for k, v in graph.constants.items() if isinstance(v, Tensor)}
    parameters = Parameters(constants, source.module, [n.name for n in graph.parameters])
    made = Program(lowered, parameters, graphs(lowered, device), "cuda")
    leaves = captured.signature.flatten(source.args, dict(source.kwargs))
    inputs = captured.signature.inputs(leaves)
    return lambda: made(inputs)


def clock(call: Callable[[], object]) -> float:
    """Seconds of a call: the median of rounds, waiting for the device after each."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    begin = time.monotonic()
    while len(times) < 10 or (time.monotonic() - begin < 1.0 and len(times) < 200):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def measured(
    name: str, batch: int, kind: str, args: argparse.Namespace, rows: Rows, end: float
) -> dict[str, Any]:
    """One row: every system's seconds, errors, and whet's gain over the best of the others."""
    source, want, precision = prepared(name, batch, kind, args.small)
    plan = args.plans / f"{name}.json" if args.plans else None
    if plan is not None and (batch != 1 or kind != "float32" or not plan.exists()):
        plan = None  # plans hold for the graph that they were made from
    row: dict[str, Any] = {}
    with torch.no_grad():
        eager = lambda: source.module(*source.args, **source.kwargs)  # noqa: E731
        row["eager_error"] = relative_error([x.cpu() for x in _flat(eager())], want)
        ours = program(source, plan, precision, rows, end)
        row["error"] = relative_error([x.cpu() for x in _flat(ours())], want)
        row["right"] = row["error"] <= max(2 * row["eager_error"], 1e-6)
        row["whet"], row["eager"] = clock(ours), clock(eager)
        for mode, options in MODES.items():
            torch._dynamo.reset()
            try:
                compiled = torch.compile(source.module, **options)
                row[mode] = clock(lambda c=compiled: c(*source.args, **source.kwargs))  # type: ignore[misc]
            except Exception as fault:
                row[f"{mode} fault"] = f"{type(fault).__name__}"
    best = min(row[m] for m in ("eager", *MODES) if m in row)
    # The original is kept where nothing is faster, as `whet.optimize` does.
    row["kept"] = "program" if row["right"] and row["whet"] < row["eager"] else "original"
    row["gain"] = best / (row["whet"] if row["kept"] == "program" else row["eager"])
    return row


def roofline() -> tuple[float, float]:
    """Operations a second of a large bfloat16 product, and bytes a second of a large copy, here."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    peak = 2 * 8192**3 / timed(lambda: a @ a, a.device)
    x = torch.empty(1 << 28, device="cuda", dtype=torch.float32)
    y = torch.empty_like(x)
    return peak, 2 * x.numel() * 4 / timed(lambda: y.copy_(x), x.device)


if __name__ == "__main__":
    raise SystemExit(main())
