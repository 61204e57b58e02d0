"""`whet rules`: the rewrites that whet ships. Each is a line of text, proven before use.

list               every rule: generated ones, then those stated by hand
show NAME …        both sides drawn, and what the proof covers, needs and does to rounding
verify [NAME …]    proves them all, or these, again from nothing; 1 if one is not proven
generate           finds the library again, from the operator table alone; goes on where it was
decide FILE.json   verdicts on conjectures that somebody else states (docs/rules.md)
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli import console as consoles
from whet.cli.console import Console
from whet.errors import InputError, WhetError
from whet.report import table

if TYPE_CHECKING:
    from whet.rewrite.conjecture import Conjecture
    from whet.rewrite.decide import Decision
    from whet.rewrite.rule import Verdict
    from whet.rewrite.scopes import Scope

BY_HAND = "stated by hand"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which rules."""
    parser.add_argument(
        "what", choices=["list", "show", "verify", "generate", "decide"], help="what to do"
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help="of rules, all unless given; the file to decide; scopes to generate",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="generate: scopes side by side (2)")
    parser.add_argument(
        "--output", type=Path, help="generate: the table; the library's own unless given"
    )
    parser.add_argument("--journal", type=Path, help="generate: folder of verdicts to go on from")
    parser.add_argument(
        "--limit", type=float, default=60.0, metavar="SECONDS",
        help="decide: processor time for one verdict, and for one derivation (60); 0: none",
    )  # fmt: skip


def run(args: argparse.Namespace, console: Console) -> int:
    """Lists, shows, proves, generates or decides.

    Returns:
        0; 1 if something was to be verified and is not proven.

    Raises:
        WhetError: an unknown name; a file that cannot be read.
    """
    console.progress("reading the rules")
    if args.what == "generate":
        return _generate(args, console)
    if args.what == "decide":
        return _decide(args.names, args.limit, console)
    every = {**_generated(), **_by_hand()}
    chosen = {name: every[name] for name in _known(args.names, every)}
    if args.what == "list":
        return _list(chosen, console)
    if args.what == "show":
        return _show(chosen, console)
    return _verify(chosen, console)


def _generated() -> Mapping[str, Conjecture]:
    from whet.rewrite.library import library

    return library()


def _by_hand() -> Mapping[str, Conjecture]:
    from whet.rewrite import conjectures, toom

    return {**conjectures.CONJECTURES, **toom.RECASTS}


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


# -- list and show -------------------------------------------------------------------------------
def _list(chosen: Mapping[str, Conjecture], console: Console) -> int:
    found = [_row(c) for c in chosen.values()]
    rows = [["rule", "statement", "where", "proven for", "rounding", "from"]]
    for r in found:
        covers = r["proof"]["covers"]
        rows.append(
            [
                r["name"],
                f"{r['lhs']} == {r['rhs']}",
                r["guard"],
                covers,
                r["float_class"],
                r["origin"],
            ]
        )
    console.print(table.aligned(rows, left=(0, 1, 2, 3, 4, 5)))
    hand = sum(r["origin"] == BY_HAND for r in found)
    console.print(
        f"\n{table.counted(len(rows) - 1 - hand, 'generated rule')}, "
        f"{table.counted(hand, 'conjecture')} stated by hand; `whet rules verify` proves them"
    )
    console.finish({"rules": found})
    return 0


def _row(c: Conjecture) -> dict[str, Any]:
    """A rule as `--json` has it; what proofs of hand-stated ones cover is known once shown."""
    from whet.rewrite.library import entries

    entry = next((e for e in entries() if e.name == c.name), None)
    lhs, rhs, guard = sides(c)
    return {
        "name": c.name, "lhs": lhs, "rhs": rhs, "guard": guard,
        "proof": {"covers": entry.covers if entry else ""},
        "float_class": entry.floating if entry else "",
        "origin": entry.scope if entry else BY_HAND,
    }  # fmt: skip


def sides(c: Conjecture) -> tuple[str, str, str]:
    """Left side, right side and guard as text."""
    left, _, rest = c.text.partition(":")[2].strip().partition(" == ")
    right, _, guard = rest.partition(" if ") if c.condition is not None else (rest, "", "")
    return left, right, guard


def _show(chosen: Mapping[str, Conjecture], console: Console) -> int:
    shown: list[dict[str, Any]] = []
    for c in chosen.values():
        row = _row(c)
        console.print(f"{c.name}   ({row['origin']})\n  {c.text.partition(':')[2].strip()}")
        console.print(_drawn(c))
        proofs = []
        for found, _ in _verdicts(c):
            data = _data(found, 0.0)
            proofs.append(data)
            console.print(_told(found))
            if "proof" in data and not row["float_class"]:
                row["proof"], row["float_class"] = (
                    {"covers": data["proof"]["coverage"]}, data["proof"]["floating"],
                )  # fmt: skip
        shown.append({**row, "statements": proofs})
    console.finish({"rules": shown})
    return 0


def _drawn(c: Conjecture) -> str:
    """Both sides as trees, one operator a line."""
    from whet.rewrite.syntax import Apply, Literal, Pattern, Var

    found = c.sides(2 if c.width_name else 0)

    def lines(p: Pattern | None, before: str, last: bool) -> list[str]:
        import ast

        below: tuple[Pattern | None, ...] = ()
        match p:
            case Var(name, shape):
                dims = f"[{', '.join(map(ast.unparse, shape))}]" if shape is not None else ""
                label = f"{name}{dims}"
            case Literal(value):
                label = f"{value:g}"
            case Apply(op, args, attrs):
                given = ", ".join(f"{k}={ast.unparse(e)}" for k, e in attrs)
                label, below = op + (f"  {given}" if given else ""), args
            case _:
                label = "-"
        drawn = [before + ("└ " if last else "├ ") + label]
        for k, a in enumerate(below):
            drawn += lines(a, before + ("  " if last else "│ "), k == len(below) - 1)
        return drawn

    text = []
    for title, side in (("left", found.left), ("right", found.right)):
        text.append(f"  {title}")
        for k, p in enumerate(side):
            text += lines(p, "    ", k == len(side) - 1)
    return "\n".join(text)


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


# -- verify --------------------------------------------------------------------------------------
def _verify(chosen: Mapping[str, Conjecture], console: Console) -> int:
    from whet.rewrite.rule import Rule

    began, done = time.monotonic(), []
    rows = [["rule", "at", "proven for", "rounding", "seconds"]]
    open_: list[Verdict] = []
    for number, conjecture in enumerate(chosen.values(), 1):
        console.progress(f"[{number}/{len(chosen)}] {conjecture.name}")
        for found, seconds in _verdicts(conjecture):
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
    spent = time.monotonic() - began
    proven = len(done) - len(open_)
    console.print(
        f"\n{proven} of {table.counted(len(done), 'statement')} proven in {table.duration(spent)}"
    )
    console.finish({"statements": done, "proven": proven, "seconds": spent})
    return 1 if open_ else 0


def _verdicts(conjecture: Conjecture) -> Iterable[tuple[Verdict, float]]:
    """A verdict with its seconds at each form; nothing that was remembered counts."""
    from whet.rewrite.conjecture import Statement
    from whet.rewrite.forms import forms
    from whet.rewrite.lift import forms_of
    from whet.rewrite.prove import prove

    by_hand = _by_hand().get(conjecture.name) is conjecture
    for form in forms(conjecture) if by_hand else forms_of(conjecture):
        began = time.monotonic()
        found = prove(Statement(conjecture, form))
        yield found, time.monotonic() - began


def _data(found: Verdict, seconds: float) -> dict[str, Any]:
    from whet.rewrite.rule import Rule

    data: dict[str, Any] = {"statement": found.statement.text, "verdict": type(found).__name__}
    data["seconds"] = seconds
    return data | ({"proof": asdict(found.proof)} if isinstance(found, Rule) else {})


# -- generate ------------------------------------------------------------------------------------
def _generate(args: argparse.Namespace, console: Console) -> int:
    from whet.rewrite import library
    from whet.rewrite.generate import assembled, generate, tabulated
    from whet.rewrite.table import SCOPES

    began = time.monotonic()
    scopes = [s for s in SCOPES if not args.names or s.name in args.names]
    unknown = set(args.names) - {s.name for s in scopes}
    if unknown:
        raise WhetError(
            f"there is no scope {min(unknown)!r}", expected=", ".join(s.name for s in SCOPES)
        )
    cache = Path(os.environ.get("WHET_CACHE") or Path.home() / ".cache" / "whet")
    journals = args.journal or cache / "rules"
    outcomes = generate(scopes, console.progress, journals, args.jobs)
    lines = assembled(outcomes)
    found = tabulated(lines, console.progress, journals)
    place = args.output or (library.PLACE if not args.names else Path("rules.txt"))
    consoles.write(place, library.printed(found))
    rows = [["scope", "size", "over", "graphs", "conjectures", "rules", "unknown", "kept"]]
    for s, o in zip(scopes, outcomes, strict=True):
        kept = sum(e.scope == s.name for e in found)
        counts = [f"{n:,}" for n in (o.graphs, o.asked, len(o.lines), len(o.unknown), kept)]
        rows.append([s.name, str(s.size) if s.size else "", " ".join(s.operators), *counts])
    console.print(table.aligned(rows, left=(0, 2)))
    console.print(_breadth(scopes))
    spent = time.monotonic() - began
    used = [
        resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    memory = sum(used) * 1024
    console.print(
        f"\n{table.counted(len(found), 'rule')} of {len(lines)} in {table.duration(spent)} "
        f"({_processor():.0f} s of processor time), "
        f"at most {memory / 2**30:.1f} GiB; written to {place}"
    )
    console.finish({
        "rules": len(found), "found": len(lines), "seconds": spent, "bytes": memory,
        "processor": _processor(),
        "scopes": [{"name": s.name, "size": s.size, "operators": s.operators,
                    "leaves": s.leaf_texts, "attributes": dict(s.given),
                    "graphs": o.graphs, "asked": o.asked, "found": len(o.lines),
                    "unknown": o.unknown} for s, o in zip(scopes, outcomes, strict=True)],
    })  # fmt: skip
    return 0


def _processor() -> float:
    """Seconds of processor time of this process and of those that it has waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _breadth(scopes: Sequence[Scope]) -> str:
    """What the scopes are exhaustive about, and what they are not."""
    lines = [
        "", "Every graph of up to `size` of a scope's operators over its leaves, at its attribute",
        "values, was looked at; none of more, and none that mixes operators of several scopes.",
    ]  # fmt: skip
    for size in sorted({s.size for s in scopes if s.size}, reverse=True):
        here = sorted({o for s in scopes if s.size == size for o in s.operators})
        lines.append(f"  up to {size}: {' '.join(here)}")
    return "\n".join(lines)


# -- decide --------------------------------------------------------------------------------------
def _decide(names: Sequence[str], limit: float, console: Console) -> int:
    from whet.rewrite.decide import Decider, Decision

    found: list[Decision] = []
    decider = Decider(seconds=limit)
    for file in names:
        entries = _read(Path(file))
        for number, entry in enumerate(entries, 1):
            console.progress(f"[{number}/{len(entries)}] {entry.get('name', '')}")
            try:
                found.append(decider.decide(entry))
            except (WhetError, ArithmeticError, LookupError, TypeError, ValueError,
                    AssertionError, RecursionError) as fault:  # fmt: skip
                found.append(Decision(str(entry.get("name", "")), "unknown", reason=str(fault)))
    rows = [["conjecture", "verdict", "for", "where", "derivable", "seconds"]]
    for d in found:
        derivable = "yes" if d.derivable else "no"
        rows.append([d.name, d.verdict, d.covers, d.guard, derivable, f"{d.seconds:.2f}"])
    console.print(table.aligned(rows, left=(0, 1, 2, 3, 4)))
    for d in found:
        if d.counterexample or d.reason:
            console.print(f"\n{d.name}\n  {d.counterexample or d.reason}")
    counts = [f"{sum(d.verdict == v for d in found)} {v}" for v in ("proven", "refuted", "unknown")]
    console.print(f"\n{', '.join(counts)}")
    console.finish([asdict(d) for d in found])
    return 0


def _read(file: Path) -> list[Mapping[str, Any]]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise InputError(f"{file} cannot be read as JSON", got=fault) from None
    if not isinstance(data, list):
        raise InputError(
            f"{file} is no list of conjectures",
            expected='[{"name", "inputs", "lhs", "rhs"}, …]; see docs/rules.md',
            got=type(data).__name__,
        )
    for number, entry in enumerate(data, 1):
        _check(entry, number, file)
    return data


_FIELDS = {"inputs": (dict,), "lhs": (str, list), "rhs": (str, list)}


def _check(entry: object, number: int, file: Path) -> None:
    """Raises `InputError` for an entry that is no conjecture; what it states is looked at later."""
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"{file}, entry {number}" + (f" ({name})" if name else "")
    if not isinstance(entry, dict):
        raise InputError("an entry is no object", got=json.dumps(entry)[:80], where=where,
                         expected='{"name", "inputs", "lhs", "rhs"}')  # fmt: skip
    for field, types in _FIELDS.items():
        if field not in entry:
            raise InputError(f"an entry has no {field}", got=", ".join(entry) or "nothing",
                             expected="name, inputs, lhs, rhs; if", where=where)  # fmt: skip
        if not isinstance(entry[field], types):
            raise InputError(
                f"{field} of an entry is no {' and no '.join(t.__name__ for t in types)}",
                got=json.dumps(entry[field])[:80], where=where,
            )  # fmt: skip
    for tensor, shape in entry["inputs"].items():
        if not isinstance(shape, list):
            raise InputError(f"the shape of {tensor} is no list of sizes",
                             got=json.dumps(shape)[:80], where=where)  # fmt: skip
