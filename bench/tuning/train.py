"""The cost model that ships with whet, trained on the recorded tables and judged on what it has
not seen.

    accuracy     of pairs of a task's schedules whose times differ by 5% or more, the share that the
                 model puts in the right order
    slowdown     of the best of the eight that the model likes most, against the best of the task
    task out     trained on all other tasks;   family out: on all other families of operators
    set out      trained on the wider instruction set alone, the same task among them
    trials       how many of the task's schedules are tried, in the model's order and with nothing
                 learnt from them, until one is within `APART` of the best; random: on average
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from whet.errors import InputError
from whet.kernel.features import NAMES
from whet.kernel.model import Ranker
from whet.kernel.prior import BASE, CARD, PLACE
from whet.kernel.process import Array
from whet.report.table import aligned

TABLES = Path(__file__).parents[1] / "data" / "schedules"
APART = 1.05  # times that differ by less may be noise
TOP = 8
LEAST = 16  # rows that a task needs to say anything
TREES = 100


@dataclass(frozen=True)
class Recorded:
    """A task's table.

    Attributes:
        isa: that it was measured with.
        name, family: of the task.
        features: (n, len(NAMES)).
        seconds: (n,), infinite where a schedule failed.
    """

    isa: str
    name: str
    family: str
    features: Array
    seconds: Array

    @cached_property
    def best(self) -> float:
        """Seconds of the fastest."""
        return float(self.seconds.min())


def tables(isa: str, folder: Path = TABLES) -> list[Recorded]:
    """The recorded tasks of an instruction set; none where there is no file.

    Raises:
        InputError: a file that is no such table, or one of other features.
    """
    file = folder / f"{isa}.json.gz"
    if not file.exists():
        return []
    try:
        data: Any = json.loads(gzip.decompress(file.read_bytes()))
        found = [
            Recorded(
                isa, t["name"], t["family"], np.array(t["features"], dtype=np.float64),
                np.array([math.inf if s is None else s for s in t["seconds"]]),
            )
            for t in data["tasks"]
        ]  # fmt: skip
    except (OSError, EOFError, ValueError, KeyError, TypeError) as fault:
        raise InputError("this is no table of schedules", where=file, got=fault) from fault
    for t in found:
        if t.features.shape != (len(t.seconds), len(NAMES)):
            raise InputError(
                "a table of other features", where=f"{file}: {t.name}", got=t.features.shape,
                expected=f"{len(t.seconds)} rows of {len(NAMES)}",
                hint="record it again with python -m bench.tuning.recorder",
            )  # fmt: skip
    return [t for t in found if np.isfinite(t.seconds).sum() >= LEAST]


def trained(some: Sequence[Recorded]) -> Ranker:
    """The model of some tasks."""
    return Ranker.train([(t.features, t.seconds) for t in some], base=BASE, trees=TREES)


def accuracy(scores: Array, seconds: Array) -> float:
    """Of pairs that differ by `APART` or more, the share in the right order; ties count half.

    >>> accuracy(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
    0.6666666666666666
    """
    a, b = np.triu_indices(len(seconds), 1)
    with np.errstate(invalid="ignore"):
        logs = np.log(np.minimum(seconds, 1e6))
    gap = logs[b] - logs[a]
    told = np.abs(gap) >= math.log(APART)
    if not told.any():
        return 1.0
    agree = np.sign(scores[b] - scores[a])[told] * np.sign(gap[told])
    return float((agree > 0).mean() + 0.5 * (agree == 0).mean())


def slowdown(scores: Array, seconds: Array, top: int = TOP) -> float:
    """The best of the `top` lowest scores, against the best of all."""
    chosen = np.argsort(scores, kind="stable")[:top]
    return float(seconds[chosen].min() / seconds.min())


def trials(scores: Array, seconds: Array) -> int:
    """How many of the lowest scores it takes until one is within `APART` of the best."""
    order = np.argsort(scores, kind="stable")
    return int(np.argmax(seconds[order] <= APART * seconds.min())) + 1


def judged(some: Sequence[Recorded], progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """What the model is worth on each task, without it and without its family."""
    models: dict[tuple[str, str], Ranker] = {}
    rows = []
    for t in some:
        row: dict[str, Any] = {"task": t.name, "family": t.family, "isa": t.isa}
        row["rows"] = len(t.seconds)
        for what, mine in (("task", "name"), ("family", "family")):
            # The same task on another instruction set is no task that was not seen.
            out = [o for o in some if getattr(o, mine) != getattr(t, mine)]
            if not out:
                continue
            key = what, str(getattr(t, mine))
            if key not in models:
                models[key] = trained(out)
            scores = models[key].score(t.features)
            row[f"accuracy, {what} out"] = accuracy(scores, t.seconds)
            row[f"slowdown, {what} out"] = slowdown(scores, t.seconds)
            row[f"slowdown of 16, {what} out"] = slowdown(scores, t.seconds, 16)
            row[f"trials, {what} out"] = trials(scores, t.seconds)
        # What a draw of as many would give, on average over draws.
        rng = np.random.default_rng(0)
        draws = [
            t.seconds[rng.permutation(len(t.seconds))[:TOP]].min() / t.best for _ in range(200)
        ]
        row["slowdown, random"] = float(np.exp(np.mean(np.log(np.minimum(draws, 1e3)))))
        if t.isa == "avx2" and (out := [o for o in some if o.isa != t.isa]):
            if ("set", t.isa) not in models:
                models["set", t.isa] = trained(out)
            scores = models["set", t.isa].score(t.features)
            row["accuracy, set out"] = accuracy(scores, t.seconds)
            row["trials, set out"] = trials(scores, t.seconds)
        good = int((t.seconds <= APART * t.best).sum())
        row["trials, random"] = (len(t.seconds) + 1) / (good + 1)
        progress(f"{t.name}")
        rows.append(row)
    return rows


FIGURES = (
    "accuracy, task out", "slowdown, task out", "accuracy, family out", "slowdown, family out",
    "slowdown, random", "slowdown of 16, task out", "trials, task out", "trials, family out",
    "trials, random", "accuracy, set out", "trials, set out",
)  # fmt: skip


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table, means last: geometric ones of slowdowns."""
    head = ["task", "family", "rows", *FIGURES]
    lines = [
        [
            r["task"],
            r["family"],
            str(r["rows"]),
            *(f"{r[f]:.3f}" if f in r else "-" for f in FIGURES),
        ]
        for r in rows
    ]
    lines.append(["all", "", str(sum(r["rows"] for r in rows)), *(
        f"{mean(rows, f):.3f}" for f in FIGURES
    )])  # fmt: skip
    return aligned([head, *lines], left=(0, 1))


def mean(rows: Sequence[dict[str, Any]], figure: str) -> float:
    """Of a figure over tasks: geometric for slowdowns."""
    values = [r[figure] for r in rows if figure in r]
    if not values:
        return math.nan
    if figure.startswith(("slowdown", "trials")):
        return float(np.exp(np.mean(np.log(np.minimum(values, 1e3)))))
    return float(np.mean(values))


def retrain(progress: Callable[[str], None]) -> str:
    """Trains on every recorded table, and writes the model and its data card.

    Raises:
        InputError: no tables were recorded.
    """
    some = [t for isa in ("avx512f", "avx2") for t in tables(isa)]
    if not some:
        raise InputError("there are no recorded tables", where=TABLES)
    rows = judged(some, progress)
    PLACE.write_text(trained(some).text, encoding="utf-8")
    count = sum(len(t.seconds) for t in some)
    ran = sum(int(np.isfinite(t.seconds).sum()) for t in some)
    families = sorted({t.family for t in some})
    page = f"""# Data card of the cost model

`prior.txt` is a ranking model of LightGBM over the {len(NAMES)} features that
`whet/kernel/features.py` reads off a scheduled nest; it mends the seconds that
`whet/kernel/issue.py` and `whet/kernel/traffic.py` estimate.

- **Trained on** {count} schedules of {len(some)} tasks, {ran} of which ran: clusters of the zoo's
  models (`bench/data/tasks.json`), each schedule built once and measured once by
  `python -m bench.tuning.recorder` on the machines named in `bench/data/schedules/`.
- **Families**: {", ".join(families)}.
- **Instruction sets**: {", ".join(sorted({t.isa for t in some}))}.
- **Not in it**: other processors, other thread counts, element types but float32.
- **Trained anew** by `whet tune --retrain`, which writes this page too.

What it is worth on what it has not seen (pairs differ by 5% or more; the slowdown is of the best of
the {TOP} that it likes most, against the best recorded):

```
{shown(rows)}
```
"""
    CARD.write_text(page, encoding="utf-8")
    return f"{PLACE}: {count} schedules of {len(some)} tasks\n\n{shown(rows)}"
