"""`whet explain MODEL`: everything that was done to a model, with what it was worth and why.

MODEL may also be the folder of a saved program: its report is read then, and nothing is searched.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from whet.cli.console import Console
from whet.cli.optimize import INTERRUPTED, loaded, searched
from whet.cli.options import MODEL, add_search
from whet.report import text
from whet.run.record import Report, ReportError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model or the program, and how to search."""
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL}, or the folder of a program")
    add_search(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the whole report.

    Raises:
        WhetError: the model cannot be brought in, or the folder holds no report.
    """
    if Path(args.model).is_dir():
        report = read(Path(args.model))
    else:
        report = searched(loaded(args, console), args, console).report
    console.print(text.whole(report))
    console.finish(report.to_json())
    return 130 if report.stop == INTERRUPTED and not Path(args.model).is_dir() else 0


def read(folder: Path) -> Report:
    """The report of a saved program.

    Raises:
        ReportError: there is none, or a damaged one.
    """
    file = folder / "report.json"
    try:
        return Report.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as fault:
        raise ReportError(
            "there is no report in this folder",
            expected="a folder that `whet optimize` has written",
            got=fault,
            where=folder,
        ) from fault
