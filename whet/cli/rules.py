"""`whet rules`: the rewrites that whet ships. Each is a conjecture of one line, proven before use.

list               every conjecture
show NAME …        its statement, and what its proof covers, needs and does to rounding
verify [NAME …]    proves them all, or these, again from nothing; 1 if one is not proven
"""

from __future__ import annotations

import argparse
import difflib
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from whet.cli.console import Console
from whet.errors import WhetError
from whet.report import table

if TYPE_CHECKING:
    from whet.rewrite.conjecture import Conjecture
    from whet.rewrite.rule import Verdict


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which rules."""
    parser.add_argument("what", choices=["list", "show", "verify"], help="what to do")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of rules; all unless given")


def run(args: argparse.Namespace, console: Console) -> int:
    """Lists, shows or proves.

    Returns:
        0; 1 if something was to be verified and is not proven.

    Raises:
        WhetError: an unknown name.
    """
    console.progress("reading the rules")
    from whet.rewrite.conjectures import CONJECTURES

    chosen = [CONJECTURES[name] for name in _known(args.names, CONJECTURES)]
    if args.what == "list":
        rows = [[c.name, c.text.partition(":")[2].strip()] for c in chosen]
        console.print(table.aligned(rows, left=(0, 1)))
        console.print(
            f"\n{table.counted(len(rows), 'conjecture')}; `whet rules verify` proves them"
        )
        console.finish([{"name": name, "statement": text} for name, text in rows])
        return 0
    if args.what == "show":
        _show(chosen, console)
        return 0
    return _verify(chosen, console)


def _known(names: Sequence[str], options: Iterable[str]) -> list[str]:
    options = list(options)
    for name in names:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=3, cutoff=0.4)
            raise WhetError(
                f"no rule is called {name!r}",
                expected="a name of `whet rules list`, in quotes",
                hint="did you mean " + " or ".join(map(repr, near)) + "?" if near else None,
            )
    return list(dict.fromkeys(names)) or options


def _show(chosen: Sequence[Conjecture], console: Console) -> None:
    shown: list[dict[str, Any]] = []
    for conjecture in chosen:
        console.print(f"{conjecture.name}\n  {conjecture.text.partition(':')[2].strip()}")
        for found, _ in _verdicts(conjecture, console):
            shown.append(_data(found, 0.0))
            console.print(_told(found))
    console.finish(shown)


def _told(found: Verdict) -> str:
    from whet.rewrite.rule import Rule

    if not isinstance(found, Rule):
        return "  " + str(found).replace("\n", "\n  ")
    proof = found.proof
    rows = [
        ["  proven for", proof.coverage],
        ["  where", " and ".join(proof.facts) or "always"],
        ["  rounding", proof.floating],
        ["  effort", f"{proof.trials} trials at refuting it, {proof.queries} solver queries"],
    ]
    return table.aligned(rows, left=(0, 1))


def _verify(chosen: Sequence[Conjecture], console: Console) -> int:
    from whet.rewrite.rule import Rule

    began, done = time.monotonic(), []
    rows = [["rule", "at", "proven for", "rounding", "seconds"]]
    open_: list[Verdict] = []
    for number, conjecture in enumerate(chosen, 1):
        console.progress(f"[{number}/{len(chosen)}] {conjecture.name}")
        for found, seconds in _verdicts(conjecture, console):
            form = str(found.statement.form)
            verdict, rounding = type(found).__name__, ""
            if isinstance(found, Rule):
                # A proof for a form repeats it, which stands in the column before.
                verdict = found.proof.coverage.removesuffix(f" ({form})")
                rounding = found.proof.floating
            rows.append([conjecture.name, form, verdict, rounding, f"{seconds:.2f}"])
            done.append(_data(found, seconds))
            if not isinstance(found, Rule):
                open_.append(found)
    console.print(table.aligned(rows, left=(0, 1, 2, 3)))
    for found in open_:
        console.print(f"\n{found}")
    spent = table.duration(time.monotonic() - began)
    proven = len(done) - len(open_)
    console.print(f"\n{proven} of {table.counted(len(done), 'statement')} proven in {spent}")
    console.finish({"statements": done, "proven": proven})
    return 1 if open_ else 0


def _verdicts(conjecture: Conjecture, console: Console) -> Iterable[tuple[Verdict, float]]:
    """A verdict with its seconds at each form; nothing that was remembered counts."""
    from whet.rewrite.conjecture import Statement
    from whet.rewrite.forms import forms
    from whet.rewrite.prove import prove

    for form in forms(conjecture):
        began = time.monotonic()
        found = prove(Statement(conjecture, form))
        yield found, time.monotonic() - began


def _data(found: Verdict, seconds: float) -> dict[str, Any]:
    from whet.rewrite.rule import Rule

    data: dict[str, Any] = {"statement": found.statement.text, "verdict": type(found).__name__}
    data["seconds"] = seconds
    return data | ({"proof": asdict(found.proof)} if isinstance(found, Rule) else {})
