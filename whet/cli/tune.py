"""`whet tune MODEL`: optimize, then search schedules where the model spends its time.

    -O0           generated kernels as they are worked out, nothing measured of them beyond the walk
    -O1           a walk with 15 s as its budget: the best of a few drafts for the groups of
                  operators that take most, the first draft for the others
    -O2           and half a minute of search, where most is to be gained (the default)
    -O3           and up to twenty minutes, as long as a batch saves more than it costs
    --budget T    so much time for the search instead
    --retrain     the cost model that ships with whet, from the recorded tables

Trials are in the store at once: Ctrl-C keeps the best so far, and whatever optimizes a model with
the same groups of operators begins where this ended. A program with the schedules found competes
with all others as a whole, and is dropped where it does not help there.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path

from whet.cli.console import Console
from whet.cli.optimize import INTERRUPTED, check_place, kept, loaded
from whet.cli.options import add_model, add_out, add_small, add_threads, seconds, short
from whet.errors import InputError, WhetError
from whet.report import text

WALK_S: Mapping[int, float] = {0: 60.0, 1: 15.0, 2: 60.0, 3: 60.0}
"""Seconds of the walk around the search by level of effort."""
EFFORT: Mapping[int, float] = {0: 0.0, 1: 0.0, 2: 30.0, 3: 1200.0}
"""Seconds of search by level of effort."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, how hard to search, where the program goes."""
    add_model(parser, optional=True)
    parser.add_argument(
        "-O", dest="effort", type=int, choices=sorted(EFFORT), default=2, metavar="0|1|2|3",
        help="how hard to search (default: 2)",
    )  # fmt: skip
    parser.add_argument("--budget", type=seconds, metavar="TIME", help="for the search instead")
    add_threads(parser)
    add_small(parser)
    add_out(parser)
    parser.add_argument(
        "--retrain", action="store_true", help="train the cost model that ships with whet anew"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Tunes and saves, or trains.

    Returns:
        0; 130 after Ctrl-C, when the best that was found until then is saved all the same.

    Raises:
        WhetError: no model, one that cannot be brought in, or no tables to train on.
    """
    if args.retrain:
        return _retrain(console)
    if args.model is None:
        raise InputError("tune needs a model", expected="whet tune MODEL, or whet tune --retrain")
    out: Path = args.out or Path("out", short(args.model))
    check_place(out)
    source = loaded(args, console)
    from whet.optimize import optimize

    spend = EFFORT[args.effort] if args.budget is None else args.budget
    optimized = optimize(
        source.module, source.args, source.kwargs, captured=source.captured,
        budget_s=WALK_S[args.effort],
        disable=("generated",) if args.effort == 0 else (),
        tune_s=spend,
        progress=lambda line: console.progress(f"{source.name}: {line}"),
    )  # fmt: skip
    report = optimized.report
    report.model = source.name
    lines = [text.summary(report), "", text.stages(report)]
    if report.tuned:
        lines += ["", text.tuned(report)]
    elif spend > 0:
        lines += ["", "nothing to tune: no group of operators has kernels of whet's own"]
    console.print("\n".join(lines))
    console.print(f"\noptimized in {text.took(report)}\n\n{kept(optimized, out)}")
    console.finish(report.to_json() | {"out": str(out)})
    if report.stop == INTERRUPTED:
        console.say("interrupted: this is the best that was found until then")
        return 130
    return 0


def _retrain(console: Console) -> int:
    try:
        retrain = importlib.import_module("bench.tuning.train").retrain
    except ModuleNotFoundError as fault:
        raise WhetError(
            "there is nothing to train on", expected="a checkout of whet, with bench/data",
            got=fault, hint="run this in the folder that holds bench/",
        ) from fault  # fmt: skip
    lines = str(retrain(console.progress))
    console.print(lines)
    console.finish({"retrained": lines})
    return 0
