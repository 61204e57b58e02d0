"""The search against expert strategies, in simulation, over a table that was fixed beforehand.

    TABLE := model, batch on each machine          batches are of one step, in samples

A run goes on where the file of `--json` ends, so the table can be made in pieces.

Baselines are tuned over their own degrees and microbatches (`whet.parallel.expert`). With no seeds,
the search has to find its own way.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from typing import Any

from bench.cli import split
from bench.suite import write
from whet.capture.training import captured
from whet.cli.parallelize import optimizer
from whet.errors import SearchError
from whet.machine import topology
from whet.parallel.library import Library
from whet.parallel.search import Search

MACHINES = ("h100x8", "h100x8:128", "p100x4:4", "k80x4:16", "a100-t4")
# fmt: off
TABLE: dict[str, tuple[int | None, ...]] = {
    # model          8 H100  1,024 H100  16 P100  64 K80  A100 + T4      None: does not fit
    "bert_large":   (256,    8192,       128,     256,    256),
    "gpt3_2.7b":    (64,     2048,       32,      64,     64),
    "gpt3_175b":    (None,   1536,       None,    None,   None),
    "llama3_8b":    (16,     1024,       None,    None,   None),
    "llama3_70b":   (None,   1024,       None,    None,   None),
    "mixtral_8x7b": (None,   1024,       None,    None,   None),
    "resnet50":     (2048,   32768,      512,     1024,   1024),
    "inception_v3": (1024,   32768,      512,     1024,   1024),
    "vgg16":        (1024,   32768,      1024,    1024,   1024),
    "alexnet":      (4096,   65536,      1024,    4096,   4096),
    "nmt_lstm":     (2048,   16384,      1024,    1024,   1024),
    "dlrm":         (16384,  262144,     8192,    16384,  16384),
}
# fmt: on
WIDE = frozenset({"resnet50", "inception_v3", "vgg16", "alexnet", "nmt_lstm", "dlrm"})


def measure(
    args: argparse.Namespace, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], str]:
    """Search every cell that `args.json` does not hold yet; it is written after each one.

    `args.models` chooses rows. `args.budget` is the processor's seconds of each cell's search, so
    that what else runs on the machine decides nothing.
    """
    chosen = split(getattr(args, "models", None)) or list(TABLE)
    file = getattr(args, "json", None)
    records: list[dict[str, Any]] = []
    if file is not None and file.exists():
        records = json.loads(file.read_text(encoding="utf-8"))["records"]
    known = {(r["model"], r["system"]) for r in records}
    for name in chosen:
        for machine, batch in zip(MACHINES, TABLE[name], strict=True):
            if batch is None or (name, machine) in known:
                continue
            progress(f"{name} on {machine}, batch {batch}")
            records.append(cell(name, machine, batch, args.budget, progress))
            if file is not None:
                write(file, json.dumps({"records": records}, indent=1))
    order = [(n, m) for n in TABLE for m in MACHINES]
    records.sort(key=lambda r: order.index((r["model"], r["system"])))
    return records, page(records)


def cell(
    name: str, machine: str, batch: int, budget: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """One model on one machine."""
    narrow = name not in WIDE and machine.startswith("h100")
    dtype = "bfloat16" if narrow else "float32"
    record: dict[str, Any] = {"model": name, "system": machine, "batch": batch, "dtype": dtype}
    began = time.process_time()
    model = captured(f"models:{name}", batch, dtype)
    capture = time.process_time() - began
    library = Library.of(model, topology(machine), optimizer(dtype))
    try:
        found = Search(library, budget=budget, clock=time.process_time, says=progress).run()
    except SearchError as fault:
        return {**record, "error": str(fault)}
    baselines = {k: r.seconds for k, (_, r) in found.baselines.items()}
    simple = [v for k, v in baselines.items() if k in ("data", "fsdp")]
    best = found.simulated.seconds
    return {
        **record,
        "median_s": best, "strategy": str(found.best), "bound_s": found.bound, "gap": found.gap,
        "memory_GiB": max(found.simulated.memory) / 2**30,
        "baselines": baselines,
        "members": {k: str(s) for k, (s, _) in found.baselines.items()},
        "over_simple": min(simple) / best if simple else None,
        "over_expert": min(baselines.values()) / best if baselines else None,
        "capture_cpu_s": capture, "search_cpu_s": found.seconds, "tried": found.tried,
        "solved": found.solved,
        "peak_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip


def page(records: list[dict[str, Any]]) -> str:
    """The table, and geometric means."""
    lines = ["search against expert strategies (simulated seconds; search: seconds of one core)"]
    for r in records:
        head = f"  {r['model']:<14}{r['system']:<12}"
        if "error" in r:
            lines.append(head + r["error"].splitlines()[0])
            continue
        over = [f"{r[k]:.2f}x" if r[k] else "none fits" for k in ("over_simple", "over_expert")]
        lines.append(
            f"{head}{r['median_s']:10.4g} s  data/FSDP {over[0]:>9}  expert {over[1]:>9}"
            f"  bound {r['bound_s']:9.3g} s  search {r['search_cpu_s']:3.0f} s  {r['strategy']}"
        )
    for key, label in (("over_simple", "data parallel and FSDP"), ("over_expert", "all experts")):
        ratios = [r[key] for r in records if r.get(key)]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            lines.append(f"  geometric mean over the best of {label}: {mean:.3f} ({len(ratios)})")
    return "\n".join(lines) + "\n"
