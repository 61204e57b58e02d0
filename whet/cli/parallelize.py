"""`whet parallelize MODEL --machine M --batch B`: a strategy for a cluster, found by simulation.

MODEL is `models:NAME`, `zoo:NAME`, `package.module:function`, which returns (module, inputs,
targets, loss) for a batch size, and others (whet.capture.training). Nothing is allocated for
modules on the meta device.

Where the machine is processes of a host, what is found is what `whet run` executes; elsewhere the
search may use all that the simulator prices (`--runnable`, `--no-runnable` say otherwise). Before a
plan is written it is proven equal, or it says why it was not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from whet.capture.rewritten import LARGE, Together, rows, together
from whet.capture.training import Training, training
from whet.cli.console import Console
from whet.cli.options import seconds
from whet.errors import WhetError
from whet.machine import Topology, sweep, topology
from whet.parallel import executable, explain, planfile
from whet.parallel.library import Library
from whet.parallel.limits import EXECUTED, SIMULATED, Limits
from whet.parallel.pins import NAMES, Pins
from whet.parallel.pipeline import deadlock
from whet.parallel.placed import Optimizer
from whet.parallel.search import Found, Search
from whet.parallel.strategy import Strategy


def arguments(parser: argparse.ArgumentParser) -> None:
    """Model, machine, batch, pins."""
    parser.add_argument("model", metavar="MODEL", help="models:NAME, zoo:NAME, package.module:f")
    parser.add_argument("--machine", required=True, metavar="M", help="a preset, such as h100x8:2")
    parser.add_argument("--batch", type=int, required=True, metavar="B", help="samples of a step")
    parser.add_argument("--devices", type=int, metavar="N", help="of the machine; all by default")
    parser.add_argument("--inference", action="store_true", help="the forward pass alone")
    parser.add_argument(
        "--pin", action="append", default=[], metavar="NAME=VALUE",
        help=f"what is given already: {', '.join(NAMES)}, or a parameter by its name"
        " (*.up.weight=0:tensor, *.norm.weight=whole); once for each",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", help="of the weights (default: bfloat16; float32 on processes of a host)"
    )
    parser.add_argument(
        "--runnable", action=argparse.BooleanOptionalAction,
        help="only what whet run executes (default: where the machine is processes of a host)",
    )  # fmt: skip
    parser.add_argument("--budget", type=seconds, default=60.0, metavar="TIME")
    parser.add_argument("--no-seeds", action="store_true", help="without expert strategies")
    parser.add_argument(
        "--rewrites", action=argparse.BooleanOptionalAction,
        help="let proven rewrites of the step take part, in half of the time again (default: where"
        f" the step has at most {LARGE} nodes, without --sweep)",
    )  # fmt: skip
    parser.add_argument("--explain", action="store_true", help="say why blocks are cut so")
    parser.add_argument("--sweep", metavar="NAME=A..B", help="vary a parameter of the machine")
    parser.add_argument("--no-proof", action="store_true", help="do not prove the plan equal")
    parser.add_argument(
        "--proof-budget", type=seconds, default=60.0, metavar="TIME",
        help="after which a proof is given up (default: 60s)",
    )  # fmt: skip
    parser.add_argument("--plan", type=Path, metavar="FILE", help="write the plan as YAML")


def run(args: argparse.Namespace, console: Console) -> int:
    """Searches and prints.

    Raises:
        WhetError: the model does not trace, or nothing fits.
    """
    if args.devices is not None:
        args.machine += f",devices={args.devices}"
    cluster = topology(args.machine)
    pins = Pins.of(args.pin)
    if args.dtype is None:
        args.dtype = "float32" if cluster.here else "bfloat16"
    if args.runnable is None:
        args.runnable = cluster.here
    began = time.monotonic()
    step = training(args.model, args.batch, args.dtype, inference=args.inference)
    model = step.model
    console.say(f"captured in {time.monotonic() - began:.1f} s: {len(model.order)} blocks,"
                f" {len(model.layers)} distinct")  # fmt: skip
    pins.checked(model, cluster.size)
    machines = [(args.machine, cluster)]
    if args.sweep:
        path, values = sweep(args.sweep)
        machines = [(f"{path}={v:g}", topology(f"{args.machine},{path}={v:g}")) for v in values]
    found = searched(args, step, machines, pins, console)
    results = []
    for name, library, one, limits in found:
        joined = jointly(args, step, library, one, limits, pins, console)
        if joined is not None:
            step, library, one = joined.step, joined.library, joined.found
        console.print(text(name, one, library, limits, reasons=args.explain))
        if joined is not None:
            console.print(f"  {joined}")
        proof: dict[str, Any] = {}
        if args.plan or not args.sweep:
            refused(library, one)
            proof, said = proven(args, step, library, one)
            console.print(f"  {said}")
        named = args.machine if not args.sweep else f"{args.machine},{name}"
        source = {"model": args.model, "dtype": args.dtype, "machine": named}
        if args.inference:
            source["pass"] = "forward"
        plan = planfile.data(library, one, source, proof, rows(step))
        results.append({"machine": name, **result(plan, one, limits)})
        if args.plan:
            args.plan.write_text(planfile.write(plan), encoding="utf-8")
    if not args.sweep:
        console.finish(results[0])
        return 0
    points = [
        (v, one.best, one.simulated.seconds)
        for v, (_, _, one, _) in zip(values, found, strict=True)
    ]
    lines = explain.changes(points)
    console.print(f"{path}: " + ("the best plan stays the same" if not lines else
                                 f"the best plan changes {len(lines)} times"))  # fmt: skip
    for line in lines:
        console.print(f"  {line}")
    console.finish({"sweep": args.sweep, "changes": lines, "points": results})
    return 0


def jointly(
    args: argparse.Namespace, step: Training, library: Library, found: Found, limits: Limits,
    pins: Pins, console: Console,
) -> Together | None:  # fmt: skip
    """What rewrites and strategies find together; None where rewrites do not take part.

    Raises:
        WhetError: rewrites are asked for of a sweep.
    """
    if args.sweep:
        if args.rewrites:
            raise WhetError(
                "a sweep compares machines, not rewrites", got="--rewrites with --sweep",
                hint="--rewrites at the values where the best plan changes",
            )  # fmt: skip
        return None
    count = len(step.joint.graph.nodes)
    if args.rewrites is None and count > LARGE:
        console.say(f"rewrites left out: the step has {count} nodes (--rewrites asks for them)")
    if args.rewrites is False or (args.rewrites is None and count > LARGE):
        return None
    console.progress("looking for rewrites")

    def searching(there: Library, seconds: float, also: Sequence[Strategy]) -> Search:
        return Search(there, seeds=False, pins=pins, limits=limits, budget=seconds, also=also)

    return together(step, library, found, searching, budget=0.5 * args.budget)


def searched(
    args: argparse.Namespace, step: Training, machines: list[tuple[str, Topology]], pins: Pins,
    console: Console,
) -> list[tuple[str, Library, Found, Limits]]:  # fmt: skip
    """What is found for each machine.

    Of a sweep, each point is tried with what was found for the others too, so that where the best
    plan changes says something about the machine and nothing about the search's luck.
    """
    found: list[tuple[str, Library, Found, Limits]] = []
    for name, machine in machines:
        library = Library.of(step.model, machine, optimizer(args.dtype), pins)
        known = [one.best for _, _, one, _ in found]
        limits = executable.limits(library) if args.runnable else SIMULATED
        search = Search(
            library, seeds=not args.no_seeds, pins=pins, budget=args.budget, also=known,
            limits=limits,
            says=lambda line, name=name: console.say(f"{name}: {line}"),  # type: ignore[misc]
        )  # fmt: skip
        found.append((name, library, search.run(), limits))
    every = list(dict.fromkeys(one.best for _, _, one, _ in found))
    return [(name, at, better(at, one, every), limits) for name, at, one, limits in found]


def better(library: Library, found: Found, others: list[Strategy]) -> Found:
    """What was found, or one of others that is faster on the same machine."""
    for s in others:
        try:
            ran = library.simulator.simulate(library.place(s))
        except WhetError:
            continue
        if ran.fits and ran.seconds < found.simulated.seconds:
            found = replace(found, best=s, simulated=ran)
    return found


def refused(library: Library, found: Found) -> None:
    """Write no plan that cannot be run.

    Raises:
        WhetError: its schedule can deadlock, or it does not fit in memory.
    """
    if circle := deadlock(library.place(found.best)):
        raise WhetError("the plan can deadlock", got=circle)
    if not found.simulated.fits:
        raise WhetError(
            "no plan was found that fits in memory", got=f"{max(found.simulated.memory)} bytes",
            hint="more devices, or more time (--budget)",
        )  # fmt: skip


def proven(
    args: argparse.Namespace, step: Training, library: Library, found: Found
) -> tuple[dict[str, Any], str]:
    """The proof of a plan for its file, and a line for a reader.

    Raises:
        PlanRefused: it does not compute what the model computes.
    """
    from whet.capture.planned import attempted
    from whet.run.parallel.proof import Proof

    if args.no_proof:
        return {"equal": "unknown", "why": "--no-proof"}, "proof: none was asked for"
    came = attempted(
        args.model, args.dtype, step, library, found.best, budget=args.proof_budget
    )  # fmt: skip
    if isinstance(came, Proof):
        return {"equal": True, **asdict(came)}, f"proof: {came}"
    why = came.summary + (f" ({came.got})" if came.got is not None else "")
    return {"equal": "unknown", "why": why}, f"proof: none: {why}"


def optimizer(dtype: str) -> Optimizer:
    """Adam; with a master copy where weights are narrow."""
    return Optimizer(8, 4, 12) if dtype == "float32" else Optimizer(12, 4, 12)


def result(plan: planfile.Data, found: Found, limits: Limits) -> dict[str, object]:
    """The search's result as data."""
    return {
        "plan": plan,
        "left_out": limits.left_out(),
        "runs": EXECUTED.allow(found.best),
        "seconds": found.simulated.seconds,
        "memory": list(found.simulated.memory),
        "baselines": {k: {"seconds": r.seconds, "strategy": str(s)}
                      for k, (s, r) in found.baselines.items()},
        "bound": found.bound,
        "gap": found.gap,
        "search_s": found.seconds,
        "tried": found.tried,
        "stop": found.stop,
    }  # fmt: skip


def text(name: str, found: Found, library: Library, limits: Limits, *, reasons: bool) -> str:
    """The result for a reader."""
    r = found.simulated
    lines = [
        f"{name}: {r.seconds:.4g} s a step, {max(r.memory) / 2**30:.1f} GiB of a device",
        f"  {found.best}",
        (
            f"  bound {found.bound:.4g} s, gap {100 * found.gap:.0f}%; {found.tried} strategies"
            f" and {found.solved} blocks in {found.seconds:.1f} s ({found.stop})"
        ),
    ]
    if limits != SIMULATED:
        lines += ["  left out, since whet run refuses it:"]
        lines += [f"    {row}" for row in limits.left_out()]
    elif over := next(EXECUTED.excess(found.best), None):
        lines.append(f"  simulated only: {over}; --runnable finds a plan that whet run executes")
    for family, (s, ran) in sorted(found.baselines.items(), key=lambda x: x[1][1].seconds):
        lines.append(f"  {family:<9}{ran.seconds:10.4g} s  {ran.seconds / r.seconds:5.2f}x  {s}")
    if reasons:
        lines += explain.text(library, found)
    return "\n".join(lines)
