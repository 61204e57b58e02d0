"""`whet plan`: look at plans without a machine.

whet plan diff A B     how two plans differ, one line for each place
whet plan check FILE   whether a plan still fits its model and machine, and what has changed
"""

from __future__ import annotations

import argparse
from pathlib import Path

from whet.cli.console import Console
from whet.errors import WhetError
from whet.parallel import planfile

DEEDS = ("diff", "check")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the files."""
    parser.add_argument("deed", metavar="DEED", help=" or ".join(DEEDS))
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="plans")


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the differences; 1 if there are any.

    Raises:
        WhetError: no such deed, or a file that is no plan.
    """
    match args.deed, args.files:
        case "diff", [one, two]:
            rows = planfile.differences(_read(one), _read(two))
            console.print("\n".join(rows) if rows else "the plans are equal")
        case "check", [one]:
            rows = _changed(one)
            console.print("\n".join(rows) if rows else "the plan still holds")
        case _:
            raise WhetError(
                "whet plan takes a deed and plans", expected="diff A B, or check FILE",
                got=" ".join([args.deed, *map(str, args.files)]),
            )  # fmt: skip
    console.finish({"rows": rows})
    return 1 if rows else 0


def _read(file: Path) -> planfile.Data:
    try:
        return planfile.load(file.read_text(encoding="utf-8"))
    except OSError as fault:
        raise WhetError(f"{file} cannot be read", got=fault.strerror) from fault


def _changed(file: Path) -> list[str]:
    from whet.capture.training import captured
    from whet.machine import topology

    data = _read(file)
    source = data.get("source")
    if not source:
        raise WhetError("the plan does not say its model and machine", where=file)
    model = captured(
        source["model"], int(data["model"]["batch"]), source["dtype"],
        inference=source.get("pass") == "forward",
    )  # fmt: skip
    return planfile.stale(data, model, topology(source["machine"]).fingerprint())
