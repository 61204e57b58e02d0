"""`whet bench --suite parallel`: the simulator and the search, in parts.

    published   the simulator against published training runs
    simulator   the delta simulation against the full one
    execute     plans on real ranks against one process
    real        simulated steps against steps run on this host
    search      strategies that the search finds against those of experts

A part is a module here with `measure(args, progress) -> (records, page)`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
from collections.abc import Callable
from typing import Any

from bench.suite import versions
from whet.errors import InputError
from whet.machine import Machine

PARTS = ("published", "simulator")
LONG = ("search", "execute", "real")  # only when asked for


def measure(
    args: argparse.Namespace, progress: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """One part, or all of them: the result and the page.

    Raises:
        InputError: no such part.
    """
    if args.part not in (None, *PARTS, *LONG):
        raise InputError("no such part", expected=", ".join((*PARTS, *LONG)), got=args.part)
    records, pages = [], []
    for part in PARTS if args.part is None else (args.part,):
        found, page = importlib.import_module(f"bench.parallel.{part}").measure(args, progress)
        records += [{"part": part, **record} for record in found]
        pages.append(page)
    machine = Machine.detect()
    result = {
        "suite": "parallel",
        "part": args.part,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": machine.threads,
        "complete": not args.models,  # some rows must not take the place of the table
        "versions": versions(),
        "machine": machine.to_json(),
        "records": records,
    }
    return result, "\n".join(pages)
