"""`whet parallelize MODEL --machine M --batch B`: a strategy for a cluster, found by simulation.

MODEL is `models:NAME` (whet.capture.models) or `package.module:function`, which returns (module,
inputs, targets, loss) for a batch size. Nothing is allocated for modules on the meta device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from whet.capture.training import captured
from whet.cli.console import Console
from whet.cli.options import seconds
from whet.errors import WhetError
from whet.machine import sweep, topology
from whet.parallel import planfile
from whet.parallel.library import Library
from whet.parallel.placed import Optimizer
from whet.parallel.search import Found, Search, kind
from whet.parallel.strategy import Strategy

PINS = ("stages", "tensor", "data", "microbatches", "zero", "recompute", "schedule")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Model, machine, batch, pins."""
    parser.add_argument("model", metavar="MODEL", help="models:NAME or package.module:function")
    parser.add_argument("--machine", required=True, metavar="M", help="a preset, such as h100x8:2")
    parser.add_argument("--batch", type=int, required=True, metavar="B", help="samples of a step")
    parser.add_argument("--devices", type=int, metavar="N", help="refuse a machine of another size")
    parser.add_argument(
        "--pin", action="append", default=[], metavar="NAME=VALUE",
        help=f"what is given already: {', '.join(PINS)}; once for each",
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
    pin = pins(args.pin)
    began = time.monotonic()
    model = captured(args.model, args.batch, args.dtype)
    console.say(f"captured in {time.monotonic() - began:.1f} s: {len(model.order)} blocks,"
                f" {len(model.layers)} distinct")  # fmt: skip
    rows = []
    machines = [(args.machine, cluster)]
    if args.sweep:
        path, values = sweep(args.sweep)
        machines = [(f"{path}={v:g}", topology(f"{args.machine},{path}={v:g}")) for v in values]
    for name, machine in machines:
        library = Library.of(model, machine, optimizer(args.dtype))
        found = Search(library, seeds=not args.no_seeds, pin=pin, budget=args.budget).run()
        rows.append({"machine": name, **result(library, found)})
        console.print(text(name, found, library, explain=args.explain))
        if args.plan:
            args.plan.write_text(planfile.write(library, found), encoding="utf-8")
    console.finish(rows[0] if not args.sweep else {"sweep": args.sweep, "points": rows})
    return 0


def optimizer(dtype: str) -> Optimizer:
    """Adam; with a master copy where weights are narrow."""
    return Optimizer(8, 4, 12) if dtype == "float32" else Optimizer(12, 4, 12)


def pins(texts: list[str]) -> Callable[[Strategy], bool]:
    """A test for what the user has given.

    Raises:
        WhetError: a pin that is none.
    """
    wanted: dict[str, str] = {}
    for t in texts:
        name, equal, value = t.partition("=")
        if name not in PINS or not equal:
            raise WhetError("no such pin", expected=", ".join(PINS), got=t)
        wanted[name] = value

    def holds(s: Strategy) -> bool:
        p = s.parts[0]
        now: Mapping[str, object] = {
            "stages": s.groups, "tensor": p.recipe.size("tensor"), "data": p.recipe.size("data"),
            "microbatches": s.microbatches, "zero": p.zero,
            "recompute": str(p.recompute).lower(), "schedule": s.schedule,
        }  # fmt: skip
        return all(str(now[k]) == v for k, v in wanted.items())

    return holds


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


def text(name: str, found: Found, library: Library, *, explain: bool) -> str:
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
    if explain:
        lines += explained(found, library)
    return "\n".join(lines)


def explained(found: Found, library: Library) -> list[str]:
    """Why: where the time goes, what each distinct block does, and the runner-up."""
    r, lines = found.simulated, []
    spent = sorted(r.work[0].items(), key=lambda x: -x[1])
    lines.append("  of a device of the first stage: "
                 + ", ".join(f"{k} {v / r.seconds:.0%}" for k, v in spent[:6]))  # fmt: skip
    for key, block in planfile.data(library, found)["blocks"].items():
        cut = [f"{n} {c}" for n, c in block["parameters"].items()]
        lines.append(f"  block {key}: {1e3 * block['seconds']:.3g} ms; " + "; ".join(cut[:8]))
    if found.runner_up is not None:
        s, seconds_ = found.runner_up
        lines.append(f"  runner-up {kind(s)}: {seconds_:.4g} s,"
                     f" {seconds_ / r.seconds:.2f}x as long: {s}")  # fmt: skip
    return lines
