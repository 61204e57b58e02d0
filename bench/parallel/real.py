"""Simulated steps against the same steps run: two Gloo ranks on the cores of this host.

    machine     measured first (`whet machine measure`), or the file of WHET_BENCH_MACHINE
    models      `bench.parallel.held_out`, which the measurement has not seen
    strategies  of a grid of degrees, microbatches, schedules, ZeRO, recomputation and styles, those
                that ranks execute; as many as `COUNT` at even distances by their simulated time

Reported: for each model Spearman's rank correlation, the mean error, and how much slower the best
by simulation is than the best by running; pooled over all models too. A run goes on where the
file of `--json` ends, a model at a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.cli import split
from bench.parallel.held_out import BATCHES
from bench.suite import write
from whet.capture import planned as glue
from whet.capture.training import training
from whet.errors import WhetError
from whet.machine import preset, topology
from whet.parallel import executable
from whet.parallel.expert import divisors
from whet.parallel.library import Library
from whet.parallel.strategy import Recipe, Strategy, even
from whet.run.calibrate import measured
from whet.run.parallel.launch import launch
from whet.run.parallel.session import Options, Session
from whet.run.parallel.torchdist import connect, leave
from whet.run.parallel.watch import Watch

RANKS, COUNT, STEPS, WARM = 2, 12, 12, 5  # the first steps take memory that later ones keep


def measure(
    args: argparse.Namespace, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], str]:
    """Run all models that the file of `args.json` does not hold; `args.models` chooses some."""
    file = getattr(args, "json", None)
    records: list[dict[str, Any]] = []
    if file is not None and file.exists():
        records = json.loads(file.read_text(encoding="utf-8"))["records"]
    known = {r["model"] for r in records}
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory() as folder:
        given = os.environ.get("WHET_BENCH_MACHINE")
        machine = Path(given) if given else Path(folder) / "machine.yaml"
        if given is None:
            machine.write_text(preset.write(measured(RANKS, progress)), encoding="utf-8")
        for name in split(getattr(args, "models", None)) or list(BATCHES):
            if name not in known:
                progress(f"{name}: running strategies")
                records += _rows(name, machine, Path(folder))
                if file is not None:
                    write(file, json.dumps({"records": records}, indent=1))
    return records, page(records)


def _rows(name: str, machine: Path, folder: Path) -> list[dict[str, Any]]:
    """Every strategy of a model, run in one pair of processes."""
    out = folder / f"{name}.json"
    job = {"model": name, "machine": str(machine), "out": str(out)}
    ended = launch([sys.executable, "-m", "bench.parallel.real", json.dumps(job)], RANKS, limit=900)
    if not out.exists():
        raise WhetError(f"{name} did not run", got="\n".join(e.text[-2000:] for e in ended))
    found: list[dict[str, Any]] = json.loads(out.read_text())
    return found


def strategies(library: Library) -> list[tuple[Strategy, float]]:
    """Those that are run, with their simulated seconds."""
    limits = executable.limits(library)
    found: dict[float, Strategy] = {}
    for s in _grid(library):
        if not limits.allow(s):
            continue
        try:
            ran = library.simulator.simulate(library.place(s))
        except WhetError:
            continue
        if ran.fits and ran.seconds not in found and executable.refusal(library, s) is None:
            found[ran.seconds] = s
    times = sorted(found)
    if len(times) > COUNT:
        times = [times[round(k * (len(times) - 1) / (COUNT - 1))] for k in range(COUNT)]
    return [(found[t], t) for t in times]


def _grid(library: Library) -> Iterator[Strategy]:
    batch, weights = library.model.batch, library.weights()
    counts = [m for m in divisors(batch) if m <= 8]
    cells = itertools.product((1, 2), (1, 2), counts, (False, True))
    for depth, tensor, micro, recompute in cells:
        data = RANKS // (depth * tensor)
        if data < 1 or batch % (data * micro) or depth > len(weights):
            continue
        size = RANKS // depth
        groups = [tuple(range(k * size, (k + 1) * size)) for k in range(depth)]
        for style in ("free", "tokens") if tensor > 1 else ("free",):
            recipe = Recipe((("data", data), ("tensor", tensor)), frozenset({"data"}), style)
            for zero in (0, 1, 2, 3) if data > 1 else (0,):
                for schedule in ("gpipe", "1f1b") if depth > 1 else ("1f1b",):
                    parts = even(
                        [weights] * depth, groups, [recipe] * depth, zero=zero, recompute=recompute
                    )
                    yield Strategy(parts, micro, schedule, 1, "grid")


def main(job: dict[str, Any]) -> int:
    """One of the ranks."""
    torch.set_num_threads(1)
    name = f"bench.parallel.held_out:{job['model']}"
    step = training(name, BATCHES[job["model"]], "float32")
    library = Library.of(step.model, topology(job["machine"]), glue.optimizer("float32"))
    rank, size, store = connect(600)
    watch = Watch(store, rank, size)
    batch, rows = glue.batch(step, 0), []
    for s, predicted in strategies(library):
        plan = glue.lowered(name, "float32", step, library, s)
        session = Session(plan.program, plan.orders, step.wholes(), Options().make(), watch)
        seconds = []
        for _ in range(STEPS):
            torch.distributed.barrier()
            began = time.perf_counter()
            session.step(batch)
            took = torch.tensor([time.perf_counter() - began])
            torch.distributed.all_reduce(took, op=torch.distributed.ReduceOp.MAX)
            seconds.append(float(took))
        rows.append(
            {"model": job["model"], "strategy": str(s), "predicted_s": predicted,
             "median_s": statistics.median(seconds[WARM:]), "seconds": seconds}
        )  # fmt: skip
    if rank == 0:
        Path(job["out"]).write_text(json.dumps(rows))
    leave(None, 0)
    return 0


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The correlation of ranks; equal values share the mean of their ranks."""
    return statistics.correlation(_ranks(xs), _ranks(ys))


def _ranks(xs: Sequence[float]) -> list[float]:
    order = sorted(xs)
    return [order.index(x) + (order.count(x) - 1) / 2 for x in xs]


def page(records: list[dict[str, Any]]) -> str:
    """One line for each model and for all."""
    lines = [f"simulated against run on {RANKS} Gloo ranks of this host"]
    names = list(dict.fromkeys(r["model"] for r in records))
    within = []
    for name in [*names, "all"] if len(names) > 1 else names:
        rows = [r for r in records if name in ("all", r["model"])]
        said, real = [r["predicted_s"] for r in rows], [r["median_s"] for r in rows]
        error = statistics.mean(abs(a / b - 1) for a, b in zip(said, real, strict=True))
        rho = spearman(said, real)
        line = (
            f"  {name:<8}{len(rows):3} strategies  Spearman {rho:6.3f}  error {100 * error:5.1f}%"
        )
        if name != "all":
            within.append(rho)
            picked = real[said.index(min(said))] / min(real) - 1
            line += f"  the best by simulation {100 * picked:.1f}% behind the best"
            line += f"  ({1e3 * min(real):.0f} to {1e3 * max(real):.0f} ms)"
        lines.append(line)
    lines.append(f"  mean Spearman within models: {statistics.mean(within):.3f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
