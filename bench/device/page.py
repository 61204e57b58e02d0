"""Results of a device as text: a line for each model, or for each kernel its share of the roofline.

Milliseconds are medians. A floor is the longer of a model's arithmetic and its traffic at the
device's data sheet; a share of the roofline is the same over a kernel's time, at the peak of its
element type and the bandwidth that were measured on the chip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.table import aligned

Record = Mapping[str, Any]


def text(result: Mapping[str, Any]) -> str:
    """Heading and table of a part."""
    records: Sequence[Record] = result["records"]
    measured = [f"{name} {rate:.4g}/s" for name, rate in result.get("measured", {}).items()]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    head = f"{result['suite']}, {result['date']}, {result['machine']['name']}\n{versions}"
    head += f"\nmeasured here: {', '.join(measured)}" if measured else ""
    shares = [r for r in records if "roofline" in r]
    others = [r for r in records if "roofline" not in r]
    tables = [_kernels(shares) if shares else "", _systems(others) if others else ""]
    failed = [f"failed: {r['system']} on {r['model']}: {r['failed']}"
              for r in records if "failed" in r]  # fmt: skip
    return "\n\n".join([head, *filter(None, tables), *(["\n".join(failed)] if failed else [])])


def _kernels(records: Sequence[Record]) -> str:
    head = ["model", "kernel", "by", "calls", "us", "library us", "roofline"]
    rows = [
        [r["model"], r["group"][:56], r["system"], str(r["calls"]), _number(r, "median_s", 1e6),
         _number(r, "library_s", 1e6), f"{100 * r['roofline']:.0f}%"]
        for r in records
    ]  # fmt: skip
    return aligned([head, *rows])


def _systems(records: Sequence[Record]) -> str:
    """A line for each model: every system's time, what whet gains, and its error."""
    systems = list(dict.fromkeys(r["system"] for r in records))
    rows: dict[str, dict[str, Record]] = {}
    for r in records:
        rows.setdefault(r["model"], {})[r["system"]] = r
    lines = [["ms", "floor", *systems, "gain", "error"]]
    for model, row in rows.items():
        ours = next((r for r in row.values() if "gain" in r), {})
        wrong = max((r["error"] for r in row.values() if "error" in r), default=None)
        floor = next((r for r in row.values() if "floor_s" in r), {})
        lines.append([
            model, _number(floor, "floor_s", 1e3),
            *(_number(row.get(s, {}), "median_s", 1e3) for s in systems), _number(ours, "gain", 1),
            "-" if wrong is None else f"{wrong:.1e}",
        ])  # fmt: skip
    return aligned(lines)


def _number(r: Record, key: str, scale: float) -> str:
    found = r.get(key)
    return "-" if found is None or not 0 < found < 1e9 else f"{found * scale:.4g}"
