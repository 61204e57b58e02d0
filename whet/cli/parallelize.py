"""`whet parallelize MODEL --machine M --batch B`: a strategy for a cluster, found by simulation.

MODEL is `models:NAME` (whet.capture.models) or `package.module:function`, which returns (module,
inputs, targets, loss) for a batch size. Nothing is allocated for modules on the meta device.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from whet.capture.training import captured
from whet.cli.console import Console
from whet.cli.options import seconds
from whet.errors import WhetError
from whet.machine import Topology, sweep, topology
from whet.parallel import explain, planfile
from whet.parallel.blocks import Model
from whet.parallel.library import Library
from whet.parallel.pins import NAMES, Pins
from whet.parallel.pipeline import deadlock
from whet.parallel.placed import Optimizer
from whet.parallel.search import Found, Search
from whet.parallel.strategy import Strategy


def arguments(parser: argparse.ArgumentParser) -> None:
    """Model, machine, batch, pins."""
    parser.add_argument("model", metavar="MODEL", help="models:NAME or package.module:function")
    parser.add_argument("--machine", required=True, metavar="M", help="a preset, such as h100x8:2")
    parser.add_argument("--batch", type=int, required=True, metavar="B", help="samples of a step")
    parser.add_argument("--devices", type=int, metavar="N", help="refuse a machine of another size")
    parser.add_argument(
        "--pin", action="append", default=[], metavar="NAME=VALUE",
        help=f"what is given already: {', '.join(NAMES)}, or a parameter by its name"
        " (*.up.weight=0:tensor, *.norm.weight=whole); once for each",
    )  # fmt: skip
    parser.add_argument("--dtype", default="bfloat16", help="of the weights (default: bfloat16)")
    parser.add_argument("--budget", type=seconds, default=60.0, metavar="TIME")
    parser.add_argument("--no-seeds", action="store_true", help="without expert strategies")
    parser.add_argument("--explain", action="store_true", help="say why blocks are cut so")
    parser.add_argument("--sweep", metavar="NAME=A..B", help="vary a parameter of the machine")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="write the plan as YAML")


def run(args: argparse.Namespace, console: Console) -> int:
    """Searches and prints.

    Raises:
        WhetError: the model does not trace, or nothing fits.
    """
    cluster = topology(args.machine)
    if args.devices is not None and args.devices != cluster.size:
        raise WhetError(
            "the machine has another number of devices", expected=args.devices, got=cluster.size,
            hint="say it in the machine's name: h100x8:4 is four nodes",
        )  # fmt: skip
    pins = Pins.of(args.pin)
    began = time.monotonic()
    model = captured(args.model, args.batch, args.dtype)
    console.say(f"captured in {time.monotonic() - began:.1f} s: {len(model.order)} blocks,"
                f" {len(model.layers)} distinct")  # fmt: skip
    pins.checked(model, cluster.size)
    machines = [(args.machine, cluster)]
    if args.sweep:
        path, values = sweep(args.sweep)
        machines = [(f"{path}={v:g}", topology(f"{args.machine},{path}={v:g}")) for v in values]
    found = searched(args, model, machines, pins, console)
    rows = []
    for name, library, one in found:
        rows.append({"machine": name, **result(library, one)})
        console.print(text(name, one, library, reasons=args.explain))
        if args.plan:
            named = args.machine if not args.sweep else f"{args.machine},{name}"
            source = {"model": args.model, "dtype": args.dtype, "machine": named}
            refused(library, one)
            args.plan.write_text(planfile.write(library, one, source), encoding="utf-8")
    if not args.sweep:
        console.finish(rows[0])
        return 0
    points = [
        (v, one.best, one.simulated.seconds) for v, (_, _, one) in zip(values, found, strict=True)
    ]
    lines = explain.changes(points)
    console.print(f"{path}: " + ("the best plan stays the same" if not lines else
                                 f"the best plan changes {len(lines)} times"))  # fmt: skip
    for line in lines:
        console.print(f"  {line}")
    console.finish({"sweep": args.sweep, "changes": lines, "points": rows})
    return 0


def searched(
    args: argparse.Namespace, model: Model, machines: list[tuple[str, Topology]], pins: Pins,
    console: Console,
) -> list[tuple[str, Library, Found]]:  # fmt: skip
    """What is found for each machine.

    Of a sweep, each point is tried with what was found for the others too, so that where the best
    plan changes says something about the machine and nothing about the search's luck.
    """
    found: list[tuple[str, Library, Found]] = []
    for name, machine in machines:
        library = Library.of(model, machine, optimizer(args.dtype), pins)
        known = [one.best for _, _, one in found]
        search = Search(
            library, seeds=not args.no_seeds, pins=pins, budget=args.budget, also=known,
            says=lambda line, name=name: console.say(f"{name}: {line}"),  # type: ignore[misc]
        )  # fmt: skip
        found.append((name, library, search.run()))
    every = list(dict.fromkeys(one.best for _, _, one in found))
    return [(name, library, better(library, one, every)) for name, library, one in found]


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
    """Write no plan that cannot be run: the proof of equality is `whet run`'s.

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


def optimizer(dtype: str) -> Optimizer:
    """Adam; with a master copy where weights are narrow."""
    return Optimizer(8, 4, 12) if dtype == "float32" else Optimizer(12, 4, 12)


def result(library: Library, found: Found) -> dict[str, object]:
    """The search's result as data."""
    return {
        "plan": planfile.data(library, found),
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


def text(name: str, found: Found, library: Library, *, reasons: bool) -> str:
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
    for family, (s, ran) in sorted(found.baselines.items(), key=lambda x: x[1][1].seconds):
        lines.append(f"  {family:<9}{ran.seconds:10.4g} s  {ran.seconds / r.seconds:5.2f}x  {s}")
    if reasons:
        lines += explain.text(library, found)
    return "\n".join(lines)
