"""`whet run FOLDER`: load a saved program, run it on random inputs, say how fast and how right.

`whet run PLAN.yaml` runs a parallel plan on ranks instead (`whet.cli.ranks`).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from whet.cli import ranks
from whet.cli.console import Console
from whet.cli.explain import read
from whet.cli.options import add_threads, seconds
from whet.report import table


def arguments(parser: argparse.ArgumentParser) -> None:
    """The program, and how to run it."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a saved program, or a plan")
    add_threads(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random inputs")
    parser.add_argument(
        "--budget", type=seconds, default=2.0, metavar="TIME", help="time to spend timing it"
    )
    ranks.arguments(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints seconds and error.

    Raises:
        WhetError: there is no program in the folder, or it is not for this machine.
    """
    if args.folder.suffix in ranks.SUFFIXES:
        return ranks.run(args, console)
    report = read(args.folder)
    console.progress("loading torch")
    from whet.run.trial import trial, use_threads

    count = use_threads(args.threads)
    console.progress(f"running {args.folder}")
    found = trial(args.folder, budget_s=args.budget, seed=args.seed)
    rows = [
        ["program", f"{report.model}, engine {found.engine}"],
        ["load", table.duration(found.load_s)],
        ["call", f"{table.duration(found.seconds)}, spread {table.percent(found.spread)}"],
        ["threads", f"{count}, chosen for {report.threads}"],
        ["error", f"{table.small(found.error)} against float64 on random inputs"],
    ]
    console.print(table.aligned(rows, left=(0, 1)))
    console.finish(asdict(found) | {"model": report.model, "threads": count})
    return 0
