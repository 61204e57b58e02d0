"""The command line: `whet VERB [ARGUMENT ...]`.

    verb   := a row of VERBS; its module has `arguments(parser)` and `run(args, console) -> int`
    exit   := 0 done | 1 refused, with a message | 2 not understood, or a fault of whet
            | 130 interrupted, with what was found until then kept

A verb's module is imported when the verb is asked for, so `whet --help` loads nothing heavy. Every
verb takes `--json FILE`, the result as data, written whole or not at all, and `--debug`, which
shows tracebacks.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Protocol, cast

from whet.cli.console import Console
from whet.errors import WhetError

__all__ = ["VERBS", "main"]

# fmt: off
VERBS: Mapping[str, str] = {
    "optimize":    "search for a faster program and save it; --dry-run only lists what is covered",
    "tune":        "optimize, and search schedules for the kernels that take most of the time",
    "demo":        "optimize a transformer and a convolutional network, and show each stage",
    "explain":     "what was done to a model, or to a saved program, and why",
    "verify":      "re-check every rewrite of a saved program, without the optimizer",
    "run":         "run a saved program on random inputs, or a parallel plan on its ranks",
    "profile":     "where a native program spends its time, and what holds each of its calls",
    "rules":       "list, show and verify the rewrites that whet has proven",
    "parallelize": "find a strategy for a cluster by simulation, and write it as a plan",
    "plan":        "diff two plans, or check whether one still fits its model and machine",
    "bench":       "compare with eager, torch.compile, ONNX Runtime and OpenVINO",
    "machine":     "the machines that plans are made for: list, show, measure",
    "zoo":         "list the models that come with whet",
    "store":       "what whet remembers: stats, export, import, prune",
    "doctor":      "versions, machine, compiler and store: is everything in order?",
}
# fmt: on


class Verb(Protocol):
    """What a verb's module offers."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the verb's arguments."""

    def run(self, args: argparse.Namespace, console: Console) -> int:
        """Does it; the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after `whet`; those of this process by default.

    Returns:
        The exit code; see the module's docstring.

    Raises:
        SystemExit: after `--help` and `--version` (0), and for arguments it does not know (2).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = _top().parse_args(words)
    with warnings.catch_warnings():
        if "--debug" not in args.rest:  # torch has many about its own code, for its developers
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
        code = _done(args)
    if code == 130:
        # An interrupt that passed through exec(text), of which torch has much, leaves a mark by
        # which Python ends itself with the signal instead of our code. Running a text removes it.
        exec("")
    return code


def _done(args: argparse.Namespace) -> int:
    """The verb's exit code, or that of what it raised, which is told."""
    debug = "--debug" in args.rest
    console = Console(sys.stdout, sys.stderr)
    try:
        verb = cast(Verb, importlib.import_module(f"whet.cli.{args.verb}"))
        parser = argparse.ArgumentParser(prog=f"whet {args.verb}", description=VERBS[args.verb])
        verb.arguments(parser)
        _common(parser)
        chosen = parser.parse_args(args.rest)
        console.json = chosen.json
        console.check()
        return verb.run(chosen, console)
    except KeyboardInterrupt:
        console.say("interrupted: measurements made until now are in the store")
        return 130
    except BrokenPipeError:  # whoever read the output has gone: `whet rules list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except WhetError as error:
        return _refuse(console, str(error), 1, debug)
    except Exception as fault:
        lines = str(fault).strip().splitlines()
        text = f"{type(fault).__name__}: {lines[0] if lines else 'no message'}"
        hint = "" if debug else "\n  try:      the same with --debug, and report what it shows"
        return _refuse(console, f"a fault of whet: {text}{hint}", 2, debug)
    finally:
        console.clear()


def _refuse(console: Console, text: str, code: int, debug: bool) -> int:
    console.clear()
    if debug:
        traceback.print_exc(file=console.err)
    print(f"error: {text}", file=console.err, flush=True)
    return code


class _Parser(argparse.ArgumentParser):
    """Offers the nearest verbs for one that it does not know."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"error: {message.removeprefix('argument verb: ')}\n  try:      whet --help\n")


def _top() -> argparse.ArgumentParser:
    rows = [f"  {name:<13}{summary}" for name, summary in VERBS.items()]
    parser = _Parser(
        prog="whet",
        usage="whet VERB [ARGUMENT ...]",
        description="Finds, proves and applies the optimizations that a PyTorch or ONNX model is"
        " missing.",
        epilog="\n".join(
            [
                "verbs:",
                *rows,
                "",
                "MODEL is zoo:NAME, FILE.onnx, FILE.pt2 or package.module:function.",
                "`whet VERB --help` lists a verb's arguments.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("verb", type=_verb, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _verb(word: str) -> str:
    if word in VERBS:
        return word
    near = difflib.get_close_matches(word, VERBS, n=3, cutoff=0.6)
    guess = f"; did you mean {' or '.join(near)}?" if near else ""
    raise argparse.ArgumentTypeError(f"no verb is called {word!r}{guess}")


def _version() -> str:
    try:
        return f"whet {metadata.version('whet')}"
    except metadata.PackageNotFoundError:
        return "whet, not installed"


def _common(parser: argparse.ArgumentParser) -> None:
    """What every verb takes; a verb that has its own `--json` keeps it."""
    known = {option for action in parser._actions for option in action.option_strings}
    if "--json" not in known:
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
