"""`whet store`: what whet remembers between runs.

stats          rows and bytes by kind, and whether the folder can be written
export FILE    every row as JSON Lines
import FILE    such rows into this store, all or none
prune          the least recently used rows go until --cap is kept
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whet.cli.console import Console, check_writable
from whet.cli.options import amount
from whet.errors import WhetError
from whet.report import table
from whet.store import CAP, Store


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which file."""
    parser.add_argument("what", choices=ACTS, help="what to do")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="of export and import")
    parser.add_argument(
        "--cap", type=amount, default=CAP, metavar="SIZE", help="bytes that prune keeps: 512M, 4G"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Does it, on the user's own store.

    Raises:
        WhetError: `export` or `import` without a file, or with one that cannot be used; there is
            no store, and none can be made.
    """
    if args.what in ("export", "import") and args.file is None:
        raise WhetError(f"whet store {args.what} needs a file", expected=f"{args.what} FILE")
    with Store.open(strict=True) as store:
        console.finish(ACTS[args.what](store, args, console))
    return 0


def _stats(store: Store, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    stats = store.stats()
    console.print(f"store  {stats.path}")
    if stats.kinds:
        rows = [["kind", "rows", "size"]]
        rows += [[k, str(n), table.size(size)] for k, (n, size) in sorted(stats.kinds.items())]
        rows.append(["all", str(stats.rows), table.size(stats.bytes)])
        console.print(table.aligned(rows))
    else:
        console.print("it is empty")
    return asdict(stats) | {"rows": stats.rows, "bytes": stats.bytes}


def _export(store: Store, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    check_writable(args.file)
    rows = store.export(args.file)
    console.print(f"{table.counted(rows, 'row')} written to {args.file}")
    return {"rows": rows, "file": str(args.file)}


def _import(store: Store, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    rows = store.load(args.file)
    console.print(f"{table.counted(rows, 'row')} read from {args.file}")
    return {"rows": rows, "file": str(args.file)}


def _prune(store: Store, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    gone = store.prune(args.cap)
    left = store.stats()
    console.print(f"{table.counted(gone, 'row')} dropped, {left.rows} kept")
    return {"dropped": gone, "rows": left.rows, "bytes": left.bytes}


Act = Callable[[Store, argparse.Namespace, Console], dict[str, Any]]
ACTS: Mapping[str, Act] = {
    "stats": _stats,
    "export": _export,
    "import": _import,
    "prune": _prune,
}
