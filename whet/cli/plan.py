"""`whet plan`: look at plans without a machine.

whet plan diff A B             how two plans differ, one line for each place
whet plan check FILE           whether a plan still fits its model and machine, and what has changed
whet plan export FILE FOLDER   a plan of inference as ONNX files, one for each stage or rank; they
                               are run once in this process and compared with the model
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from whet.cli.console import Console
from whet.errors import WhetError
from whet.parallel import planfile

if TYPE_CHECKING:
    from whet.capture.training import Training

DEEDS = ("diff", "check", "export")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the files."""
    parser.add_argument("deed", metavar="DEED", help=" or ".join(DEEDS))
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="plans, or a folder")
    parser.add_argument("--unproven", action="store_true", help="export without the proof")


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the differences, 1 if there are any; or what was written.

    Raises:
        WhetError: no such deed, a file that is no plan, or a plan that is refused.
    """
    match args.deed, args.files:
        case "diff", [one, two]:
            rows = planfile.differences(_read(one), _read(two))
            console.print("\n".join(rows) if rows else "the plans are equal")
        case "check", [one]:
            rows = _changed(one)
            console.print("\n".join(rows) if rows else "the plan still holds")
        case "export", [one, folder]:
            return _export(one, folder, console, unproven=args.unproven)
        case _:
            raise WhetError(
                "whet plan takes a deed and plans",
                expected="diff A B, check FILE, or export FILE FOLDER",
                got=" ".join([args.deed, *map(str, args.files)]),
            )  # fmt: skip
    console.finish({"rows": rows})
    return 1 if rows else 0


def text(file: Path) -> str:
    """What a plan's file says.

    Raises:
        WhetError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        near = sorted(p.name for p in file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        raise WhetError(
            f"{file} cannot be read", expected="a plan", got=getattr(fault, "strerror", fault),
            hint=f"in that folder: {', '.join(near[:5])}" if near
            else "whet parallelize MODEL --machine M --batch B --plan FILE writes one",
        ) from fault  # fmt: skip


def _read(file: Path) -> planfile.Data:
    return planfile.load(text(file))


def _export(file: Path, folder: Path, console: Console, *, unproven: bool) -> int:
    from whet.capture.onnx.staged import write
    from whet.capture.planned import check, planned, refuse

    console.progress("bringing in the model")
    plan = planned(text(file))
    if unproven:
        check(plan)
    else:
        console.progress("proving the plan")
        console.say(f"proven: {refuse(plan)}")
    console.progress("writing ONNX files")
    said = write(plan.program, plan.training.wholes(), folder)
    files = dict.fromkeys(s["file"] for s in said["steps"] if s["do"] == "run")
    for name in files:
        ranks = sorted({s["rank"] for s in said["steps"] if s.get("file") == name})
        console.print(f"{folder / name}: rank {', '.join(map(str, ranks))}")
    console.print(f"{folder / 'plan.json'}: {len(said['steps'])} steps for each of"
                  f" {said['microbatches']} microbatches")  # fmt: skip
    error, runtime = compared(plan.training, folder)
    console.print(f"one after the other under {runtime}: results {error:.2g} apart from the model")
    console.finish({"files": list(files), "steps": len(said["steps"]), "error": error,
                    "runtime": runtime})  # fmt: skip
    return 0


def compared(step: Training, folder: Path) -> tuple[float, str]:
    """Run a folder's files once on the model's own samples.

    Returns:
        The largest difference from what the module answers, relative to the largest element of a
        result; and what ran them: ONNX Runtime if it is there, else whet itself.
    """
    import importlib.util

    from whet.capture import planned as glue
    from whet.capture.onnx.sequence import Steps, under_onnx_runtime, under_whet
    from whet.run.parallel.session import Options

    there = importlib.util.find_spec("onnxruntime") is not None
    steps = Steps.of(folder, under_onnx_runtime if there else under_whet)
    results = steps.run(glue.batch(step, 0))
    found = glue.compared(step, Options(steps=1), (), glue.named(results))
    return found["result_error"], "ONNX Runtime" if there else "whet"


def _changed(file: Path) -> list[str]:
    from whet.capture.rewritten import of_plan
    from whet.machine import topology

    data = _read(file)
    source = data.get("source")
    if not source:
        raise WhetError("the plan does not say its model and machine", where=file)
    try:
        model = of_plan(data, source["model"]).model
    except planfile.PlanFileError as fault:
        return [f"{fault.summary}: {fault.got}"]
    return planfile.stale(data, model, topology(source["machine"]).fingerprint())
