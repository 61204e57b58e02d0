"""`whet verify PROGRAM`: re-check every rewrite of a saved program, without the optimizer.

The saved source graph is taken, each step of the certificate is proven anew and applied to it, and
what comes out must be the saved graph. Then every region that was changed, and the whole program,
are computed before and after in float64. With --model the model is captured once more as well, and
its graph must be the saved source.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from whet.cli.console import Console
from whet.cli.options import MODEL
from whet.errors import WhetError
from whet.report import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from whet.ir.graph import Graph
    from whet.plan import Plan
    from whet.rewrite.certificate import Line


class UnverifiedError(WhetError):
    """A program that its certificate does not account for."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The program, and the model that it should come from."""
    parser.add_argument(
        "program", type=Path, metavar="PROGRAM", help="the folder of a saved program, or its plan"
    )
    parser.add_argument("--model", metavar="MODEL", help=f"capture it anew and compare: {MODEL}")


def run(args: argparse.Namespace, console: Console) -> int:
    """Checks, and says what holds.

    Raises:
        WhetError: there is no program, or a step does not hold.
    """
    console.progress("reading the program")
    plan, source, result = read(args.program)
    rows = [["plan", f"{args.program}, engine {plan.engine}"]]
    if args.model is not None:
        console.progress(f"capturing {args.model}")
        compare(args.model, plan)
        rows.append(["model", f"{args.model} has the saved source graph"])
    console.progress(f"proving {table.counted(len(plan.rewrites), 'step')}")
    from whet.rewrite.certificate import parse, verify_certificate
    from whet.rewrite.prove import Prover

    steps = [parse(line) for line in plan.rewrites]
    prover = Prover()
    reached = verify_certificate(source, steps, prover)
    if reached.digest != result.digest:
        raise UnverifiedError(
            "the certificate does not lead to the saved graph",
            expected=result.digest, got=reached.digest, where=args.program,
            hint="do not trust this program; optimize the model again",
        )  # fmt: skip
    console.progress("computing both programs in float64")
    compared = numbers(args.program, source, result, steps)
    rows += [["compared", text] for text in compared]
    places = Counter[str]()
    for step in steps:
        places[step.name] += len(step.places)
    for name, count in places.most_common():
        rows.append(["proven", f"{name}, at {table.counted(count, 'place')}"])
    guards = dict.fromkeys(g for step in steps for p in step.places for g in p.assumes)
    rows += [["assumed", f"{guard}, of the sizes that are open"] for guard in guards]
    total = table.counted(sum(places.values()), "rewrite")
    effort = f"{table.counted(len(steps), 'step')}, {prover.queries} solver queries"
    rows.append(["verified", f"{total} in {effort}: the source graph becomes the saved one"])
    console.print(table.aligned(rows, left=(0, 1)))
    console.finish(
        {"program": str(args.program), "verified": True, "rewrites": dict(places),
         "steps": len(steps), "queries": prover.queries, "digest": reached.digest}
    )  # fmt: skip
    return 0


def read(place: Path) -> tuple[Plan, Graph, Graph]:
    """A saved program's plan, its source graph and its graph.

    Raises:
        UnverifiedError: there is no program, or its files do not belong together.
        WhetError: a file cannot be read.
    """
    from whet.ir.text import parse_graph
    from whet.plan import Plan

    file = place / "plan.txt" if place.is_dir() else place
    try:
        plan = Plan.from_text(file.read_text(encoding="utf-8"))
        graphs = {
            name: parse_graph((file.parent / f"{name}.txt").read_text(encoding="utf-8"))
            for name in ("source", "graph")
        }
    except (OSError, UnicodeDecodeError) as fault:
        raise UnverifiedError(
            "there is no program to verify", expected="a folder that `whet optimize` has written",
            got=fault, where=place,
        ) from fault  # fmt: skip
    for name, digest in (("source", plan.source), ("graph", plan.result)):
        if graphs[name].digest != digest:
            raise UnverifiedError(
                f"the plan is not about the graph in {name}.txt",
                expected=digest, got=graphs[name].digest, where=place,
                hint="do not trust this program; optimize the model again",
            )  # fmt: skip
    return plan, graphs["source"], graphs["graph"]


def numbers(program: Path, source: Graph, result: Graph, steps: Sequence[Line]) -> list[str]:
    """Every changed region, and the whole program, before and after, computed in float64.

    Raises:
        UnverifiedError: they differ.
    """
    from whet.rewrite.derivation import Derivation
    from whet.run import validate

    found: list[str] = []
    errors = [validate.compare_region(s) for s in steps if isinstance(s, Derivation)]
    done = [e for e in errors if e is not None]
    if done:
        found.append(f"{table.counted(len(done), 'region')}, relative error {max(done):.1e}")
    whole = validate.compare(source, result, data=validate.parameters(program))
    if whole is not None:
        found.append(f"the whole program, relative error {whole:.1e}")
    left = errors.count(None) + (whole is None)
    if left:
        found.append(f"{left} not: too much work in float64")
    worst = max([*done, *([] if whole is None else [whole])], default=0.0)
    if not worst <= validate.TOLERANCE:
        raise UnverifiedError(
            "the program computes something else than the model", where=program,
            expected=f"a relative error of {validate.TOLERANCE:.0e} at most", got=f"{worst:.1e}",
            hint="do not trust this program; please report the rules that it names",
        )  # fmt: skip
    return found


def compare(model: str, plan: Plan) -> None:
    """Whether a model has the graph that a plan starts from.

    Raises:
        UnverifiedError: it has another one.
        WhetError: it cannot be brought in.
    """
    from whet.capture.source import load

    found = load(model).capture().graph.digest
    if found != plan.source:
        raise UnverifiedError(
            f"{model} is not the model that the program was made from",
            expected=plan.source, got=found, hint="was it changed, or are its inputs others?",
        )  # fmt: skip
