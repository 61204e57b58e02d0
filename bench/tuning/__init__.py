"""`whet bench --suite tuning`: how few trials a search needs, replayed over recorded tables.

    --part gpu      tuning spaces of GPU kernels that others have measured exhaustively
    --part cpu      how well the cost model ranks schedules of tasks and of families of operators
                    that it has not seen, over the tables recorded here

A record is one search on one table: `median_s`, the median over seeds of the best seconds after all
trials; `slowdown`, the same against the best row of the table after 4, 8, … trials, with quartiles;
`regret`, how much slower than the best row the best so far was, averaged over the trials.
"""

from __future__ import annotations

import argparse
import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.tuning import replay
from bench.tuning.table import Table, read_kernel_tuner
from whet.errors import InputError
from whet.kernel.model import Ranker, shape_of
from whet.kernel.process import Array
from whet.report.table import aligned

TABLES = Path(__file__).parents[1] / "data" / "kernel_tuner"
SEEDS, TRIALS = 30, 100
MARKS = (4, 8, 16, 32, 64, 100)
PARTS = ("gpu", "cpu")

Progress = Callable[[str], None]


def measure(args: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], str]:
    """Replays every search over every table of the part.

    Raises:
        InputError: an unknown part, or a table that cannot be read.
    """
    from bench import suite
    from bench.tuning import train
    from whet.machine import Machine

    if args.part not in (None, *PARTS):
        raise InputError("no such part", expected=", ".join(PARTS), got=args.part)
    seeds = 3 if args.small else SEEDS
    gpu = args.part in (None, "gpu")
    tables = [read_kernel_tuner(f) for f in sorted(TABLES.glob("*.json*")) if gpu]
    result: dict[str, Any] = {
        "suite": "tuning",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": 1,
        "complete": False,
        "versions": suite.versions(),
        "machine": Machine.detect().to_json(),
        "seeds": seeds,
        "trials": TRIALS,
        "records": [],
        "ranking": [],
    }
    try:
        for table in tables:
            for name, run in searches(table, tables).items():
                progress(f"{table.name}: {name}")
                curves = replay.curves(run, table, seeds, TRIALS)
                result["records"].append(record(table, name, curves))
        if args.part in (None, "cpu"):
            recorded = [t for isa in ("avx512f", "avx2") for t in train.tables(isa)]
            some = recorded[::4] if args.small else recorded
            result["ranking"] = train.judged(some, lambda line: progress(f"ranking: {line}"))
        result["complete"] = True
    except KeyboardInterrupt:
        progress("interrupted: keeping what is done")
    return result, page(result)


def searches(table: Table, tables: list[Table]) -> dict[str, replay.Search]:
    """The searches of `replay`, and whet's with what other devices taught of the same task."""
    found = dict(replay.SEARCHES)
    others = [t for t in tables if t.task == table.task and t is not table]
    if others:
        learnt = [(t.relations(list(t.seconds)), _seconds(t)) for t in others]
        shape = shape_of(others[0].features(list(others[0].seconds)), _seconds(others[0]))
        found["whet"] = replay.led(Ranker.train(learnt), shape)
    return found


def _seconds(table: Table) -> Array:
    return np.asarray(list(table.seconds.values()))


def record(table: Table, name: str, curves: Array) -> dict[str, Any]:
    """One search on one table."""
    low, middle, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
    return {
        "model": table.name,
        "system": name,
        "median_s": float(middle[-1] * table.best),
        "spread": float((high[-1] - low[-1]) / middle[-1]),
        "regret": replay.regret(curves),
        "slowdown": {str(n): [_number(q[n - 1]) for q in (middle, low, high)] for n in MARKS},
        "rows": len(table.seconds),
    }


def _number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def page(result: dict[str, Any]) -> str:
    """The records as tables."""
    from bench.tuning import train

    head = ["table", "search", "regret", *(f"after {n}" for n in MARKS)]
    rows = [
        [r["model"], r["system"], f"{r['regret']:.3f}"]
        + [_shown(r["slowdown"][str(n)][0]) for n in MARKS]
        for r in result["records"]
    ]
    title = f"suite tuning, {result['date']}, {result['seeds']} seeds, {result['trials']} trials\n"
    if rows:
        title += (
            "times the seconds of the best row known; regret: the same less one, mean over all"
            " trials\n\n" + aligned([head, *rows], left=(0, 1)) + "\n"
        )
    if result["ranking"]:
        title += (
            f"\npairs that differ by 5% in the right order; the best of {train.TOP} against the"
            f" best known\n\n{train.shown(result['ranking'])}\n"
        )
    return title
