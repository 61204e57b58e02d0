"""Models of the zoo on a device, against what torch makes of them."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import whet
from bench.device.rows import Record, Rows
from bench.worker import one_line, summary
from whet.capture.source import load
from whet.capture.torch import capture
from whet.capture.zoo import names
from whet.ir.cost import graph_floor
from whet.machine.gpu import Gpu
from whet.run.cuda import Cuda
from whet.run.measure import interleaved
from whet.run.oracle import relative_error
from whet.run.rewriting import rewritten
from whet.search import Budget
from whet.store import Store

TASO = ("resnet50", "resnext50", "nasnet_a", "nasrnn", "bert_base")
KINDS = ("float32", "tf32", "bfloat16")
MODES = {
    "compile": "default", "reduce-overhead": "reduce-overhead",
    "max-autotune-no-cudagraphs": "max-autotune-no-cudagraphs", "max-autotune": "max-autotune",
}  # fmt: skip
AXES = {"llama_decode": (0, 1, 1), "nasrnn": (1, 0), "nasrnn_shared": (1, 0), "lstm": (1,)}
"""Along which axis of each input samples lie, where that is not the first."""
ROWS = ("dlrm",)  # whose example is a batch already
Call = Callable[[], object]


@dataclass
class Case:
    """A model on a device.

    Attributes:
        key: its name, batch and element type.
        args, kwargs: inputs, on the device.
        want: results in float64.
        floor_s: seconds that no program can do without.
    """

    key: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    want: list[Tensor]
    floor_s: float
    cuda: Cuda

    def eager(self) -> object:
        return self.module(*self.args, **self.kwargs)

    def error(self, found: object) -> float:
        return relative_error([x.cpu() for x in flat(found)], self.want)


def cases(args: argparse.Namespace, rows: Rows) -> Iterator[tuple[str, int, str, str]]:
    """(name, batch, element type, key) of what is asked for and not measured yet."""
    for name in args.models.split(",") if args.models else names():
        for batch in map(int, args.batches.split(",")):
            for kind in args.kinds.split(","):
                if (key := f"{name}/{batch}/{kind}") not in rows:
                    yield name, batch, kind, key


def prepared(name: str, batch: int, kind: str, args: argparse.Namespace) -> Case:
    """A model with its inputs on the device, float32 products as the kind says."""
    use_tf32(kind)
    cuda: Cuda = args.cuda
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    source = load(f"zoo:{name}", scale="small" if args.small else "full")
    wide = batched(name, source.args, batch)
    exact = copy.deepcopy(source.module).to(cuda.device).double()
    with torch.no_grad():
        want = [x.cpu() for x in flat(exact(*(moved(x, torch.float64, cuda) for x in wide)))]
    del exact
    module = source.module.to(cuda.device).to(dtype).eval()
    given = tuple(moved(x, dtype, cuda) for x in wide)
    floor = floor_s(module, given, dict(source.kwargs), cuda.gpu, kind)
    return Case(f"{name}/{batch}/{kind}", module, given, dict(source.kwargs), want, floor, cuda)


def use_tf32(kind: str) -> None:
    """Whether libraries may round operands of float32 products."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"


def floor_s(
    module: nn.Module, given: tuple[Any, ...], kwargs: dict[str, Any], gpu: Gpu, kind: str
) -> float:
    """Seconds that no program can do without, by the device's data sheet."""
    with torch.no_grad():
        floor = graph_floor(capture(module, given, kwargs).graph)
    flops, moved_ = (float(x) if isinstance(x, int) else 0.0 for x in (floor.flops, floor.bytes))
    rate = gpu.rate("tfloat32" if kind == "tf32" else kind)
    return max(flops / rate, moved_ / gpu.bandwidth)


def batched(name: str, inputs: Sequence[Any], batch: int) -> tuple[Any, ...]:
    """A model's inputs with that many samples, each another one; the first is the zoo's.

    A sample of `moe` is its 64 tokens, one of `memchain` all its rows; of `dlrm` a row.
    """
    axes = AXES.get(name, (0,) * len(inputs))
    generator = torch.Generator().manual_seed(batch)
    found = []
    for x, axis in zip(inputs, axes, strict=True):
        if name in ROWS and x.shape[axis] >= batch:
            found.append(x.narrow(axis, 0, batch).contiguous())
            continue
        more = list(x.shape)
        more[axis] *= batch - 1
        if x.is_floating_point():
            new = torch.randn(more, generator=generator)
        else:
            new = x.flatten()[torch.randint(x.numel(), more, generator=generator)]
        whole = torch.cat([x, new], axis)
        found.append(whole.narrow(axis, 0, batch) if name in ROWS else whole)
    return tuple(found)


def moved(x: Any, dtype: torch.dtype, cuda: Cuda) -> Any:
    """A value on the device, floats of that type."""
    if not isinstance(x, Tensor):
        return x
    return x.to(cuda.device, dtype) if x.is_floating_point() else x.to(cuda.device)


def flat(found: Any) -> list[Tensor]:
    """The tensors of what a model returns, in order."""
    if isinstance(found, Tensor):
        return [found]
    return [t for x in (found.values() if isinstance(found, dict) else found) for t in flat(x)]


# -- systems ---------------------------------------------------------------------------------------
def compiled(case: Case, mode: str) -> Call:
    """A mode of torch.compile, warm."""
    made = torch.compile(case.module, mode=mode, dynamic=False)

    def call() -> object:
        torch.compiler.cudagraph_mark_step_begin()
        return made(*case.args, **case.kwargs)

    for _ in range(3):  # the third runs what the second recorded
        call()
    return call


def optimized(case: Case, args: argparse.Namespace, **options: Any) -> tuple[Call, Record]:
    """whet's program, and what it says of itself."""
    with Store.open() as store:
        fast = whet.optimize(
            case.module, case.args, case.kwargs, device=case.cuda, store=store,
            budget_s=min(args.budget, max(5.0, 0.5 * (args.end - time.monotonic()))), **options,
        )  # fmt: skip
    report = fast.report
    facts = {
        "engine": report.engine, "kernels": dict(report.kernels), "rewrites": len(report.rewrites),
        "stop": report.stop, "failures": dict(report.failures),
        "stages": {s.name: s.seconds for s in report.stages if s.seconds == s.seconds},
    }  # fmt: skip
    return (lambda: fast(*case.args, **case.kwargs)), facts


def timed(case: Case, calls: dict[str, Call], budget_s: float) -> dict[str, Record]:
    """Seconds of each call until the device is done, in turns."""
    waited = {name: case.cuda.waited(call) for name, call in calls.items()}
    found = interleaved(waited, budget_s=budget_s, min_rounds=9)
    return {name: summary(t) for name, t in found.items()}


def ready(case: Case, systems: dict[str, Callable[[], tuple[Call, Record]]]) -> tuple[
    dict[str, Call], dict[str, Record]
]:  # fmt: skip
    """Each system's call, with what it cost and how wrong it is; or why there is none."""
    calls: dict[str, Call] = {}
    records: dict[str, Record] = {}
    for name, prepare in systems.items():
        record = records[name] = {"model": case.key, "system": name, "floor_s": case.floor_s}
        began = time.perf_counter()
        try:
            call, facts = prepare()
            record |= {"error": case.error(call()), "optimize_s": time.perf_counter() - began}
            record |= facts
            calls[name] = call
        except Exception as fault:  # whatever a system raises is its result
            record |= {"failed": one_line(fault), "optimize_s": time.perf_counter() - began}
    return calls, records


# -- parts -----------------------------------------------------------------------------------------
def against(args: argparse.Namespace, rows: Rows) -> Iterator[list[Record]]:
    """Every model, batch and element type against eager and torch.compile's modes."""
    for name, batch, kind, key in cases(args, rows):
        tries = rows.begin(key)
        torch._dynamo.reset()
        with torch.no_grad():
            try:
                case = prepared(name, batch, kind, args)
            except Exception as fault:
                yield [{"model": key, "system": "eager", "failed": one_line(fault)}]
                continue
            systems: dict[str, Callable[[], tuple[Call, Record]]] = {
                "eager": lambda c=case: (c.eager, {}),  # type: ignore[misc]
                **{n: lambda c=case, m=m: (compiled(c, m), {}) for n, m in MODES.items()},  # type: ignore[misc]
                "whet": lambda c=case: optimized(c, args),  # type: ignore[misc]
            }
            late = {n: f"took more than {args.seconds:.0f} s twice" for n in MODES if "max" in n}
            for left_out in late if tries >= 2 else ():
                del systems[left_out]
            calls, records = ready(case, systems)
            for system, facts in timed(case, calls, 20.0 if not args.pretend else 0.1).items():
                records[system] |= facts
        best = min(r["median_s"] for n, r in records.items() if n != "whet" and "median_s" in r)
        if "median_s" in (ours := records["whet"]):
            allowed = max(2 * records["eager"].get("error", 0.0), 1e-6)
            ours |= {"gain": best / ours["median_s"], "right": ours["error"] <= allowed}
        lost = late if tries >= 2 else {}
        more = [{"model": key, "system": n, "failed": why} for n, why in lost.items()]
        yield [*records.values(), *more]


def ablation(args: argparse.Namespace, rows: Rows) -> Iterator[list[Record]]:
    """The same search with and without rewrites, in turns."""
    args.models, args.batches = args.models or ",".join(TASO), "1"
    for name, batch, kind, key in cases(args, rows):
        rows.begin(key)
        with torch.no_grad():
            case = prepared(name, batch, kind, args)
            calls, records = ready(case, {
                "whet": lambda c=case: optimized(c, args),  # type: ignore[misc]
                "whet-no-rewrites": lambda c=case: optimized(c, args, disable={"rewrites"}),  # type: ignore[misc]
            })  # fmt: skip
            for system, facts in timed(case, calls, 10.0 if not args.pretend else 0.1).items():
                records[system] |= facts
        plain, ours = records["whet-no-rewrites"], records["whet"]
        if "median_s" in plain and "median_s" in ours:
            ours["gain"] = plain["median_s"] / ours["median_s"]
        yield list(records.values())


def rewrites(args: argparse.Namespace, rows: Rows) -> Iterator[list[Record]]:
    """What rules lead to, filed in the store for machines without solvers. Needs no device."""
    for name, batch, kind, key in cases(args, rows):
        if kind == "tf32":  # the same graph as float32
            continue
        rows.begin(key)
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        source = load(f"zoo:{name}", scale="small" if args.small else "full")
        module = source.module.to(dtype).eval()
        wide = batched(name, source.args, batch)
        given = tuple(moved(x, dtype, args.cuda) for x in wide)
        began = time.perf_counter()
        with torch.no_grad(), Store.open() as store:
            graph = capture(module, given, dict(source.kwargs)).graph
            best = rewritten(graph, store, Budget(seconds=args.budget))[0]
        yield [{
            "model": key, "system": "rewrites", "optimize_s": time.perf_counter() - began,
            "steps": len(best.steps), "stop": best.stop, "graph": graph.digest,
        }]  # fmt: skip
