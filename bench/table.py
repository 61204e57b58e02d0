"""The results of a suite as aligned text: a row for each model, a column for each system.

Milliseconds are medians. Ratios say how many times as fast whet is as another: above 1 it is
faster. "best torch" is the quickest of PyTorch's own modes on that model, oneDNN routing excluded,
which stands beside it: choosing another library is a gain, but not a compiler's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.peers import OURS, SYSTEMS

Record = Mapping[str, Any]
Row = Mapping[str, Record]  # by system
Rows = dict[str, dict[str, Record]]  # by model


def text(result: Mapping[str, Any]) -> str:
    """The whole page: heading, times, ratios, the causes of whet's gain, errors, failures."""
    rows: Rows = {}
    for record in result["records"]:
        rows.setdefault(record["model"], {})[record["system"]] = record
    systems = [s for s in SYSTEMS if any(s in row for row in rows.values())]
    parts = [
        heading(result),
        section("median ms", rows, times(systems)),
        section("whet is as many times as fast as", rows, ratios(systems), mean=True),
        section("what each cause is worth", rows, causes(systems), mean=True),
        section("what holds whet", rows, held(systems)),
        section("relative error against float64", rows, column_each(systems, "error", "{:.1e}")),
        section("seconds to prepare", rows, preparing(systems)),
        reasons(result["records"]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, the number that stands below it for one model, and how to write it."""

    head: str
    get: Callable[[Row], float | None]
    form: str = "{:.2f}"

    def cell(self, number: float | None) -> str:
        return "-" if number is None else self.form.format(number)


def heading(result: Mapping[str, Any]) -> str:
    """What was measured, where, when, with which versions."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rates = [r for r in result["machine"]["rates"] if r["threads"] == result["threads"]]
    limits = ", ".join(
        f"{r['what']} {r['of']} {r['value'] / 1e9:.0f} G/s"
        for r in rates
        if (r["what"], r["of"]) in {("flops", "float32"), ("read", "L3"), ("read", "DRAM")}
    )
    partial = "" if result["complete"] else "\nINCOMPLETE: interrupted before the last model"
    return (
        f"suite {result['suite']}, {result['date']}, {result['machine']['processor']}, "
        f"{result['threads']} threads, float32\n{versions}\nmeasured limits: {limits}{partial}"
    )


def times(systems: Sequence[str]) -> list[Column]:
    """The floor, each system's median, and how far the quickest is from the floor."""
    each = [Column(s, partial(value, system=s, key="median_s", scale=1e3)) for s in systems]
    return [Column("floor", floor_ms), *each, Column("best/floor", over_floor)]


def ratios(systems: Sequence[str]) -> list[Column]:
    """whet against the best mode of PyTorch, and against each system that is none."""
    if "whet" not in systems:
        return []
    others = [s for s in systems if s not in OURS and not SYSTEMS[s].torch_mode]
    return [
        Column("best torch", over_best_torch),
        *(Column(s, partial(over_whet, system=s)) for s in others),
    ]


def causes(systems: Sequence[str]) -> list[Column]:
    """How much slower whet is with one cause of its gain switched off."""
    without = [s for s in OURS if s in systems and s != "whet"]
    return [Column(s.removeprefix("whet-no-"), partial(over_whet, system=s)) for s in without]


def held(systems: Sequence[str]) -> list[Column]:
    """How far whet is from the floor, the shares of its calls' time that each limit holds, and the
    memory that it works in over the least that any plan could do with."""
    if "whet" not in systems:
        return []
    shares = ("FLOPs", "bandwidth", "call overhead")
    return [
        Column("whet/floor", from_floor),
        *(Column(what, partial(share, what=what), "{:.0%}") for what in shares),
        Column("memory MB", partial(profiled, key="peak", scale=1e-6), "{:.1f}"),
        Column("memory/least", memory),
    ]


def preparing(systems: Sequence[str]) -> list[Column]:
    """Seconds that each system took once, and whet a second time, from its store."""
    again = Column("whet again", partial(value, system="whet", key="optimize_again_s"), "{:.1f}")
    return [*column_each(systems, "optimize_s", "{:.1f}"), *([again] if "whet" in systems else [])]


def column_each(systems: Sequence[str], key: str, form: str) -> list[Column]:
    """One number of each system's rows."""
    return [Column(s, partial(value, system=s, key=key), form) for s in systems]


def section(title: str, rows: Rows, columns: Sequence[Column], *, mean: bool = False) -> str:
    """A titled table; a dash where there is no number; a last row of geometric means if asked."""
    if not columns or not rows:
        return ""
    found = {model: [c.get(row) for c in columns] for model, row in rows.items()}
    lines = [[title, *(c.head for c in columns)]]
    lines += [[model, *cells(columns, numbers)] for model, numbers in found.items()]
    if mean:
        means = [geomean(numbers[k] for numbers in found.values()) for k in range(len(columns))]
        lines.append(["geometric mean", *cells(columns, means)])
    return aligned(lines)


def cells(columns: Sequence[Column], numbers: Sequence[float | None]) -> list[str]:
    """The texts of one line."""
    return [c.cell(number) for c, number in zip(columns, numbers, strict=True)]


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            word.ljust(width) if k == 0 else word.rjust(width)
            for k, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def reasons(records: Iterable[Record]) -> str:
    """A line for each system that failed; those that do not apply are no news."""
    failed = [r for r in records if "failed" in r]
    return "\n".join(f"failed: {r['system']} on {r['model']}: {r['failed']}" for r in failed)


def value(row: Row, system: str, key: str, scale: float = 1) -> float | None:
    """A number of one system's record; None if it has none."""
    found = row.get(system, {}).get(key)
    return None if found is None else float(found) * scale


def over_whet(row: Row, system: str) -> float | None:
    """How many times as long a system takes as whet."""
    return ratio(value(row, system, "median_s"), value(row, "whet", "median_s"))


def over_best_torch(row: Row) -> float | None:
    """How many times as long the quickest of PyTorch's modes takes as whet."""
    best = quickest(row, (s for s, system in SYSTEMS.items() if system.torch_mode))
    return ratio(best, value(row, "whet", "median_s"))


def over_floor(row: Row) -> float | None:
    """How far the quickest system is from the floor."""
    floor = floor_ms(row)
    return ratio(quickest(row, row), floor / 1e3 if floor else None)


def from_floor(row: Row) -> float | None:
    """How many times its floor whet takes."""
    floor = floor_ms(row)
    return ratio(value(row, "whet", "median_s"), floor / 1e3 if floor else None)


def profiled(row: Row, key: str, scale: float = 1) -> float | None:
    """A number of the profile of whet's program."""
    found = row.get("whet", {}).get("profile", {}).get(key)
    return None if found is None else float(found) * scale


def share(row: Row, what: str) -> float | None:
    """What of the time of whet's calls one limit holds."""
    shares = row.get("whet", {}).get("profile", {}).get("shares")
    return None if shares is None else float(shares.get(what, 0.0))


def memory(row: Row) -> float | None:
    """Working memory over the least that any plan could do with."""
    return ratio(profiled(row, "peak"), profiled(row, "bound"))


def floor_ms(row: Row) -> float | None:
    """The floor, which is the same in every record of a model."""
    return next((float(r["floor_s"]) * 1e3 for r in row.values() if "floor_s" in r), None)


def quickest(row: Row, systems: Iterable[str]) -> float | None:
    """The least median among some systems."""
    medians = (value(row, s, "median_s") for s in systems)
    return min((m for m in medians if m is not None), default=None)


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b where both are known."""
    return a / b if a is not None and b else None


def geomean(numbers: Iterable[float | None]) -> float | None:
    """The geometric mean of those that are known."""
    logs = [math.log(n) for n in numbers if n]
    return math.exp(sum(logs) / len(logs)) if logs else None
