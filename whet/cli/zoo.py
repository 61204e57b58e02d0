"""`whet zoo`: the models that come with whet, each used as `zoo:NAME`."""

from __future__ import annotations

import argparse

from whet.cli.console import Console
from whet.report import table


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but `list`, which may be left out."""
    parser.add_argument("what", nargs="?", choices=["list"], default="list", help="list them")


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the zoo's table."""
    from whet.capture.zoo import ZOO

    rows = [["model", "kind", ""]]
    rows += [[f"zoo:{name}", entry.kind, entry.summary] for name, entry in ZOO.items()]
    console.print(table.aligned(rows, left=(0, 1, 2)))
    console.finish(
        [{"model": name, "kind": e.kind, "summary": e.summary} for name, e in ZOO.items()]
    )
    return 0
