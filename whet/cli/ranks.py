"""`whet run PLAN`: a parallel plan on real ranks, after its proof.

Under torchrun each process is a rank; without it whet starts one process for each device of the
plan on this machine. The plan is proven first: by rank 0 under torchrun, else before anything is
started.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from whet.cli.console import Console
from whet.cli.options import seconds
from whet.cli.plan import text
from whet.errors import WhetError
from whet.report import table

SUFFIXES = (".yaml", ".yml", ".json")


def arguments(parser: argparse.ArgumentParser) -> None:
    """How a plan is run."""
    group = parser.add_argument_group("a plan")
    group.add_argument("--model", metavar="MODEL", help="where it is not the one the plan names")
    group.add_argument("--machine", metavar="M", help="likewise")
    group.add_argument("--steps", type=int, default=10, metavar="N", help="in all (default: 10)")
    group.add_argument("--optimizer", default="adamw", help="adamw (default) or sgd")
    group.add_argument("--rate", type=float, default=1e-3, help="learning rate (default: 1e-3)")
    group.add_argument(
        "--check", type=int, default=5, metavar="N", help="compare replicas every N steps"
    )
    group.add_argument("--checkpoints", type=Path, metavar="FOLDER", help="write them here")
    group.add_argument("--every", type=int, default=10, metavar="N", help="steps between two")
    group.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    group.add_argument("--timeout", type=seconds, default=120.0, metavar="TIME",
                       help="for a collective, before a rank is blamed")  # fmt: skip
    group.add_argument("--limit", type=seconds, default=3600.0, metavar="TIME",
                       help="for the whole run, where whet starts the ranks")  # fmt: skip
    group.add_argument("--unproven", action="store_true", help="run without the proof")
    group.add_argument("--compare", action="store_true",
                       help="take the same steps in one process too, and compare")  # fmt: skip


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the plan.

    Raises:
        WhetError: the plan is refused, or a rank ended the run; says which and why.
    """
    from whet.run.parallel.torchdist import launched

    return _rank(args, console) if launched() else _all(args, console)


def _planned(args: argparse.Namespace, console: Console) -> Any:
    from whet.capture.planned import planned

    console.progress("bringing in the model")
    return planned(text(args.folder), args.model, args.machine)


def _options(args: argparse.Namespace) -> Any:
    from whet.run.parallel.session import Options

    return Options(
        args.steps, args.optimizer, args.rate, args.check, args.checkpoints, args.every, args.resume
    )


def _prove(args: argparse.Namespace, plan: Any, console: Console) -> None:
    from whet.capture.planned import check, refuse

    if args.unproven:
        check(plan)
        return
    console.progress("proving the plan")
    proof = refuse(plan, make=_options(args))
    console.say(
        f"proven on {proof.ranks} ranks, {proof.seeds} draws: {proof.values} values equal"
        f" (largest difference {proof.error:.1g})"
    )


def _all(args: argparse.Namespace, console: Console) -> int:
    """Prove, start the ranks, and say what they said."""
    from whet.run.parallel.launch import here, launch

    plan = _planned(args, console)
    _prove(args, plan, console)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = here("run", str(args.folder), *_words(args), "--unproven", "--json", str(answer))
        ended = launch(command, plan.program.ranks, limit=args.limit)
        bad = [e for e in ended if e.code]
        if bad:
            raise WhetError(
                _blamed(bad), where="\n".join(f"rank {e.rank}: {_last(e)}" for e in bad),
                hint="--resume continues from the last checkpoint" if args.checkpoints else None,
            )  # fmt: skip
        console.print(ended[0].text.rstrip())
        console.finish(json.loads(answer.read_text()))
    return 0


def _apart(found: dict[str, Any]) -> str:
    """How far a run is from one process, in words."""
    if "result_error" in found:
        return f"results {found['result_error']:.2g} apart {found['result']}".rstrip()
    return (
        f"losses {found['loss_error']:.2g} apart, parameters {found['parameter_error']:.2g}"
        f" {found['parameter']}"
    ).rstrip()


def _blamed(bad: list[Any]) -> str:
    """The line that names the rank at fault, as the survivors say it."""
    for e in bad:
        for line in e.text.splitlines():
            if line.startswith("error: rank"):
                return str(line.removeprefix("error: "))
    killed = [e for e in bad if e.code < 0]
    if killed:
        return f"rank {killed[0].rank} died by signal {-killed[0].code}"
    return f"rank {bad[0].rank} failed"


def _last(ended: Any) -> str:
    lines = [line for line in ended.text.strip().splitlines() if line.startswith("error:")]
    return f"exit {ended.code}" + (f", {lines[-1]}" if lines else "")


def _words(args: argparse.Namespace) -> list[str]:
    found = []
    for name in ("model", "machine", "steps", "optimizer", "rate", "check", "checkpoints", "every"):
        value = getattr(args, name)
        if value is not None:
            found += [f"--{name}", str(value)]
    found += ["--timeout", f"{args.timeout:g}s"]
    found += ["--resume"] if args.resume else []
    return [*found, *(["--compare"] if args.compare else [])]


def _rank(args: argparse.Namespace, console: Console) -> int:
    """One rank."""
    import os

    from whet.capture import planned as glue
    from whet.run.parallel.torchdist import leave

    plan, first = _planned(args, console), os.environ.get("RANK") == "0"
    if first:
        _prove(args, plan, console)
    options = _options(args)
    result, wholes = glue.rank(plan, options, args.timeout)
    last = plan.program.members(len(plan.program.stages) - 1)[0]
    losses = leave(result.losses if result.rank == last else None, last)
    if not first:
        return 0
    found = {"seconds": result.seconds, "first": result.first, "ranks": plan.program.ranks}
    if plan.training.model.training:
        found["losses"] = losses
        rows = [["step", "loss", "seconds"]]
        rows += [
            [str(result.first + k + 1), f"{loss:.6g}", table.duration(s)]
            for k, (loss, s) in enumerate(zip(losses, result.seconds, strict=True))
        ]
    else:
        found["results"] = {k: list(t.shape) for k, t in (wholes or {}).items()}
        rows = [["pass", "seconds"]]
        rows += [[str(k + 1), table.duration(s)] for k, s in enumerate(result.seconds)]
    console.print(table.aligned(rows))
    if result.saved is not None:
        found["checkpoint"] = str(result.saved)
        console.print(f"checkpoint: {result.saved}")
    if args.compare and result.first == 0:
        found |= glue.compared(plan.training, options, losses, wholes)
        console.print(f"against one process: {_apart(found)}")
    console.finish(found)
    return 0
