"""The search against expert strategies, in simulation, over a table that was fixed beforehand.

    TABLE := model, batch on each machine          batches are of one step, in samples

Baselines are tuned over their own degrees and microbatches (`whet.parallel.expert`). With no seeds,
the search has to find its own way.
"""

from __future__ import annotations

import argparse
import math
import resource
from collections.abc import Callable
from typing import Any

from whet.capture.training import captured
from whet.cli.parallelize import optimizer
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
    """Search every cell; `args.models` chooses rows, `args.budget` seconds of each cell."""
    chosen = getattr(args, "models", None) or list(TABLE)
    budget = float(getattr(args, "budget", None) or 45.0)
    records: list[dict[str, Any]] = []
    for name in chosen:
        for machine, batch in zip(MACHINES, TABLE[name], strict=True):
            if batch is None:
                continue
            narrow = name not in WIDE and machine.startswith("h100")
            dtype = "bfloat16" if narrow else "float32"
            progress(f"{name} on {machine}, batch {batch}")
            model = captured(f"models:{name}", batch, dtype)
            library = Library.of(model, topology(machine), optimizer(dtype))
            try:
                found = Search(library, budget=budget).run()
            except Exception as fault:
                records.append({"model": name, "system": machine, "batch": batch,
                                "error": str(fault).splitlines()[0]})  # fmt: skip
                continue
            baselines = {k: r.seconds for k, (_, r) in found.baselines.items()}
            simple = [v for k, v in baselines.items() if k in ("data", "fsdp")]
            records.append(
                {
                    "model": name, "system": machine, "batch": batch,
                    "median_s": found.simulated.seconds, "strategy": str(found.best),
                    "baselines": baselines, "gap": found.gap, "search_s": found.seconds,
                    "tried": found.tried,
                    "over_simple": min(simple) / found.simulated.seconds if simple else None,
                    "over_expert": min(baselines.values()) / found.simulated.seconds
                    if baselines else None,
                    "peak_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                }
            )  # fmt: skip
    return records, page(records)


def page(records: list[dict[str, Any]]) -> str:
    """The table, and geometric means."""
    lines = ["search against expert strategies (simulated seconds of a step)"]
    for r in records:
        if "error" in r:
            lines.append(f"  {r['model']:<14}{r['system']:<12} {r['error']}")
            continue
        over = [f"{r[k]:.2f}x" if r[k] else "none fits" for k in ("over_simple", "over_expert")]
        lines.append(
            f"  {r['model']:<14}{r['system']:<12}{r['median_s']:10.4g} s  data/FSDP {over[0]:>9}"
            f"  expert {over[1]:>9}  search {r['search_s']:.0f} s  {r['strategy']}"
        )
    for key, label in (("over_simple", "data parallel and FSDP"), ("over_expert", "all experts")):
        ratios = [r[key] for r in records if r.get(key)]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            lines.append(f"  geometric mean over the best of {label}: {mean:.3f} ({len(ratios)})")
    return "\n".join(lines)
