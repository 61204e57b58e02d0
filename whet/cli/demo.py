"""`whet demo`: a transformer and a convolutional network, from the original to the program.

For each: the stage table (times, over eager and over torch.compile, errors against float64 beside
the original's own), the proven rewrites, and where the program, plan and report lie.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whet.cli.console import Console
from whet.cli.optimize import INTERRUPTED, check_place, kept, loaded, searched
from whet.cli.options import add_search, short
from whet.report import table, text

MODELS = ("zoo:bert_1024", "zoo:resnet50")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, where the programs go, how to search."""
    parser.add_argument(
        "--models", nargs="+", default=MODELS, metavar="MODEL", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="FOLDER", help="(default: %(default)s)"
    )
    parser.add_argument("--small", action="store_true", help="small sizes of the zoo's models")
    add_search(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """One model after the other.

    Returns:
        0; 130 after Ctrl-C, with the models that were done kept.

    Raises:
        WhetError: a model cannot be brought in, or a program cannot be written.
    """
    began = time.monotonic()
    for model in args.models:
        check_place(args.out / short(model))
    done: list[dict[str, Any]] = []
    for model in args.models:
        args.model = model
        found, stop = _shown(args, console)
        done.append(found)
        console.finish({"models": done, "complete": len(done) == len(args.models) and not stop})
        if stop:
            console.say("interrupted: this is what was found until then")
            return 130
    console.print(f"all of it took {table.duration(time.monotonic() - began)}")
    return 0


def _shown(args: argparse.Namespace, console: Console) -> tuple[dict[str, Any], bool]:
    """One model: its report as data, and whether it was interrupted."""
    from whet.run.trial import peers

    source = loaded(args, console)
    optimized = searched(source, args, console)
    report = optimized.report
    stop = report.stop == INTERRUPTED
    others = []
    if report.original is not None and not stop:
        console.progress(f"{source.name}: torch.compile, to compare with")
        others = peers(
            source.module,
            optimized,
            source.args,
            source.kwargs,
            original_s=report.original.seconds,
        )
    title = text.summary(report)
    parts = [f"{title}\n{'=' * min(len(title), 100)}", text.stages(report, others)]
    parts += [text.rewrites(report) or "no rewrite was worth its while"]
    parts += [f"optimized in {text.took(report)}"]
    console.print("\n\n".join([*parts, kept(optimized, args.out / short(args.model)), ""]))
    return report.to_json() | {"peers": [asdict(p) for p in others]}, stop
