"""`whet profile MODEL`: where a native program spends its time, and what holds each of its calls.

MODEL is a model, which is optimized first, or the folder of a saved program. Where another engine
was faster, the native program that competed with it is what is shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from whet.cli.console import Console
from whet.cli.optimize import loaded, searched
from whet.cli.options import add_model, add_search, add_small, seconds
from whet.report import table

if TYPE_CHECKING:
    from whet.run.profile import Profile, Spent

TOP = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, how to search, how much to show."""
    add_model(parser)
    add_search(parser)
    add_small(parser)
    parser.add_argument(
        "--top", type=int, default=TOP, metavar="N", help="calls to show (default: 20; 0: all)"
    )
    parser.add_argument(
        "--run", type=seconds, default=2.0, metavar="TIME", help="time to spend running it"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the table.

    Raises:
        WhetError: there is no such model, or no native program for it.
    """
    found, name = profiled(args, console)
    console.print(page(found, name, args.top))
    console.finish(found.to_json() | {"model": name})
    return 0


def profiled(args: argparse.Namespace, console: Console) -> tuple[Profile, str]:
    """The profile of what `args` name, and its name."""
    folder = Path(args.model)
    if (folder / "manifest.json").exists():
        console.progress("loading torch")
        from whet.run.save import load
        from whet.run.trial import random_call, use_threads

        use_threads(args.threads)
        optimized = load(folder)
        call = random_call(optimized.signature)
        name = str(optimized.report.model)
    else:
        source = loaded(args, console)
        optimized = searched(source, args, console)
        call, name = (tuple(source.args), dict(source.kwargs)), source.name
    from whet.machine import Machine
    from whet.run.peaks import calibrated
    from whet.run.profile import of

    console.progress("measuring the machine")
    machine = calibrated(Machine.detect()).machine
    console.progress(f"running {name}")
    return of(optimized, *call, machine, budget_s=args.run), name


def page(found: Profile, name: str, top: int) -> str:
    """A profile as text: its slowest calls, then the whole."""
    total = sum(c.seconds for c in found.calls) or 1.0
    ranked = sorted(found.calls, key=lambda c: -c.seconds)
    shown = ranked[:top] if top else list(found.calls)
    head = ("call", "computes", "µs", "share", "GFLOP/s", "GB/s", "roofline", "held by")
    rows = [head, *(row(c, total) for c in shown)]
    rest = ranked[len(shown) :]
    if rest:
        spent = sum(c.seconds for c in rest)
        left = (f"{len(rest)} others", "", f"{spent * 1e6:.1f}", table.percent(spent / total))
        rows.append((*left, "", "", "", ""))
    share = found.floor_s / found.seconds if found.seconds else 0.0
    facts = [
        ["whole call", f"{table.duration(found.seconds)} from C, {found.threads} threads"],
        [
            "floor",
            f"{table.duration(found.floor_s)}, {table.percent(share)} of the whole call",
        ],
        ["held by", f"{found.held}, for the most part"],
        ["besides", f"{table.duration(found.overhead_s)} that no call accounts for"],
        ["memory", f"{found.peak:,} bytes at most; no plan can do with less than {found.bound:,}"],
    ]
    return "\n".join(
        [f"{name}: {len(found.calls)} calls", "", table.aligned(rows, left=(0, 1, 7)), "",
         table.aligned(facts, left=(0, 1))]
    )  # fmt: skip


def row(c: Spent, total: float) -> tuple[str, ...]:
    """A call as cells."""
    what = c.operators if len(c.operators) <= 40 else f"{c.operators[:37]}..."
    return (
        c.name, what, f"{c.seconds * 1e6:.1f}", table.percent(c.seconds / total),
        f"{c.flops_s / 1e9:.1f}", f"{c.bytes_s / 1e9:.1f}", table.percent(c.roofline), c.held,
    )  # fmt: skip
