"""The verb `whet bench`: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import suite, table
from bench.peers import OURS, PEERS
from whet.errors import InputError, WhetError

# Suites that are no table of models against systems. Each module has
#     measure(args, progress) -> result, page       the JSON of `bench.suite`, and the same as text
# and reads of `args` what makes sense to it; with --part it measures only that part of itself.
OTHERS = {
    "fusion": "bench.fusion",
    "fuzz": "bench.fuzz",
    "kernels": "bench.kernels",
    "overhead": "bench.overhead",
    "parallel": "bench.parallel",
    "rewrites": "bench.rewrites",
    "tuning": "bench.tuning",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` reads to the parser of the verb."""
    names = ", ".join(["cpu", *OTHERS])
    parser.add_argument("--suite", default="cpu", help=f"one of {names} (default: cpu, the zoo)")
    parser.add_argument("--part", metavar="NAME", help="only this part of a suite that has parts")
    parser.add_argument(
        "--peers",
        default=",".join(PEERS),
        help="systems to compare with, separated by commas (default: all: %(default)s)",
    )
    parser.add_argument("--models", help="of the suite, only these, separated by commas")
    parser.add_argument("--threads", type=int, help="for each system (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go as JSON")
    parser.add_argument(
        "--budget", type=float, default=20.0, metavar="S", help="seconds of timing for each model"
    )
    parser.add_argument(
        "--split", action="store_true", help="also whet with each cause of its gain switched off"
    )
    parser.add_argument(
        "--through", metavar="CMD", help="what a measuring process is started through (rewrites)"
    )
    parser.add_argument("--without-whet", action="store_true", help="the peers alone")
    parser.add_argument("--small", action="store_true", help="small models: a trial of the harness")


def run(args: argparse.Namespace) -> int:
    """Runs the suite and prints the tables; and `bench/results/` for a whole suite.

    Returns:
        0; 130 if it was interrupted, with what was measured until then written all the same.

    Raises:
        InputError: an unknown suite, peer or model, or no thread.
    """
    if args.suite in OTHERS:
        return other(args)
    available = suite.suites()
    (name,) = known("suite", [args.suite], [*available, *OTHERS])
    models = known("model", split(args.models) or available[name], available[name])
    peers = known("peer", split(args.peers), PEERS)
    if args.threads is not None and args.threads < 1:
        raise InputError(
            "a system needs a thread", expected="--threads 1 or more", got=args.threads
        )
    ours = [] if args.without_whet else list(OURS) if args.split else ["whet"]
    result = suite.run_suite(
        models,
        [*peers, *ours],
        suite=name,
        threads=args.threads,
        budget_s=args.budget,
        scale="small" if args.small else "full",
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    page = table.text(result)
    print(page, end="")
    data = json.dumps(result, indent=1)
    if args.json is not None:
        suite.write(args.json, data)
    # A part must not take the place of the whole.
    if (
        result["complete"]
        and (set(models), set(peers)) == (set(available[name]), set(PEERS))
        and not args.small
    ):
        stem = suite.result_stem(result)
        suite.write(suite.RESULTS / f"{stem}.json", data)
        suite.write(suite.RESULTS / f"{stem}.txt", page)
    return 0 if result["complete"] else 130


def other(args: argparse.Namespace) -> int:
    """Runs a suite of its own kind; whole ones are filed under `bench/results/`."""
    module = OTHERS[args.suite]
    try:
        measure = importlib.import_module(module).measure
    except ModuleNotFoundError as fault:
        hint = f"pip install {fault.name}, or ./run setup bench"
        raise WhetError(f"the suite {args.suite} cannot run", got=fault, hint=hint) from fault
    result, page = measure(args, lambda line: print(line, file=sys.stderr, flush=True))
    print(page, end="")
    data = json.dumps(result, indent=1)
    if args.json is not None:
        suite.write(args.json, data)
    if result["complete"] and not args.small:
        stem = suite.result_stem(result) + (f"-{args.part}" if args.part else "")
        suite.write(suite.RESULTS / f"{stem}.json", data)
        suite.write(suite.RESULTS / f"{stem}.txt", page)
    return 0 if result["complete"] else 130


def split(names: str | None) -> list[str]:
    """Names separated by commas; none where there is no text."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def known(what: str, names: Sequence[str], options: Iterable[str]) -> list[str]:
    """`names`, if all of them are among the options."""
    options = list(options)
    for name in names:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=3, cutoff=0.4)
            raise InputError(
                f"there is no {what} named {name!r}",
                expected="one of " + ", ".join(options),
                got=repr(name),
                hint="did you mean " + " or ".join(near) + "?" if near else None,
            )
    return list(dict.fromkeys(names))
