"""Suites of models against systems: a process for each model, and one JSON for all.

    Result := {"suite", "date", "threads", "complete", "versions", "machine", "models", "records"}
    record := {"model", "system", "median_s", "spread", "optimize_s", "error", "floor_s", …}
            | {"model", "system", "floor_s", "failed": reason}          it tried and could not
            | {"model", "system", "floor_s", "skipped": reason}         it has nothing to say

A process for each model, because systems leave threads, caches and gigabytes behind. A system that
takes the process down is noted and the model measured again without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.worker import Job
from whet.errors import WhetError
from whet.machine import Machine
from whet.run.peaks import calibrated

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("whet", "torch", "onnxruntime", "openvino", "onnx")
TIMEOUT_S = 1800  # for one model; max-autotune of a large one takes minutes

Result = dict[str, Any]
Progress = Callable[[str], None]


def silent(_line: str) -> None:
    """Progress for nobody."""


def suites() -> dict[str, tuple[str, ...]]:
    """The models of each suite by name."""
    from whet.capture import zoo

    return {"cpu": tuple(zoo.names())}


def run_suite(
    models: Sequence[str],
    systems: Sequence[str],
    *,
    suite: str = "cpu",
    threads: int | None = None,
    budget_s: float = 20.0,
    scale: str = "full",
    progress: Progress = silent,
    machine: Machine | None = None,
) -> Result:
    """Measures every system on every model; what came before Ctrl-C is kept, marked incomplete.

    Args:
        models: names of the zoo.
        systems: names of `peers.SYSTEMS`.
        suite: the name under which the result is filed.
        threads: what each system may use; all that this process may, if not given.
        budget_s: seconds of timing for each model; preparing comes on top.
        scale: of the zoo's models.
        progress: is told one line about each model.
        machine: with measured rates; measured now, if not given.
    """
    machine = machine or calibrated(again=True).machine
    result: Result = {
        "suite": suite,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": threads or machine.threads,
        "complete": False,
        "versions": versions(),
        "machine": machine.to_json(),
        "models": {},
        "records": [],
    }
    try:
        for place, model in enumerate(models, 1):
            progress(f"[{place}/{len(models)}] {model}")
            job = Job(
                model, tuple(systems), result["threads"], result["machine"], budget_s, scale=scale
            )
            found = run_model(job, progress)
            result["models"][model] = found["model"]
            result["records"] += found["records"]
        result["complete"] = True
    except KeyboardInterrupt:
        progress("interrupted: keeping the models that are done")
    return result


def run_model(job: Job, progress: Progress = silent) -> dict[str, Any]:
    """The worker's result for one model, with rows for systems that took the process down too.

    whet starts with an empty store. A second process then prepares it from the store that the first
    has filled, which the row shows as `optimize_again_s`.
    """
    with tempfile.TemporaryDirectory(prefix="whet-store-") as store:
        found = with_crashes(job, Path(store), progress)
        rows: list[dict[str, Any]] = found["records"]
        whet = next((row for row in rows if row["system"] == "whet"), {})
        if "median_s" in whet:
            once = dataclasses.replace(job, systems=("whet",), budget_s=0.0, min_rounds=1)
            again, _, end = in_process(once, Path(store))
            row = again["records"][0] if again else {"failed": end}
            whet["optimize_again_s"] = row.get("optimize_s")
            if "failed" in row:
                whet["again_failed"] = row["failed"]
        return found


def with_crashes(job: Job, store: Path, progress: Progress) -> dict[str, Any]:
    """Runs the job until a worker comes back, each time without the system that killed the last."""
    crashed: dict[str, str] = {}
    while True:
        found, at_work, end = in_process(dataclasses.replace(job, crashed=crashed), store)
        if found is not None:
            return found
        if at_work not in job.systems or at_work in crashed:
            # Not a system's fault, or not one that leaving it out would cure.
            reason = f"{end} at {at_work}"
            progress(f"  {job.model}: {reason}")
            rows = [{"model": job.model, "system": s, "failed": reason} for s in job.systems]
            return {"model": {}, "records": rows}
        crashed = {**crashed, at_work: end}
        progress(f"  {at_work}: {end}; measuring the others without it")


def in_process(job: Job, store: Path) -> tuple[dict[str, Any] | None, str, str]:
    """(result, what was at work last, how the process ended); no result if it ended badly."""
    with tempfile.TemporaryDirectory(prefix="whet-bench-") as place:
        folder = Path(place)
        result, log = folder / "result.json", folder / "log.txt"
        (folder / "job.json").write_text(json.dumps(job.to_json()))
        command = [sys.executable, "-W", "ignore", "-m", "bench.worker"]
        with log.open("w") as output:
            worker = subprocess.Popen(
                [*command, str(folder / "job.json"), str(result)],
                env=environment(job, store, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = worker.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end_session(worker)
        found = json.loads(result.read_text()) if result.exists() else {"at_work": "its start"}
        if code == 0 and "records" in found:
            return found, "", ""
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
        return None, found.get("at_work", "its end"), f"{ending(code)}: {last[0][:200]}"


def environment(job: Job, store: Path, folder: Path) -> dict[str, str]:
    """The worker's: thread counts, a temp folder, and a store that knows the machine."""
    temp = folder / "tmp"
    temp.mkdir()
    machine = Machine.from_json(job.machine)
    calibrated(machine, folder=store, measure=lambda _: machine.rates)
    threads = str(job.threads)
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        **{k: v for k, v in os.environ.items() if k != "WHET"},
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "WHET_CACHE": str(store),
        "TMPDIR": str(temp),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def end_session(worker: subprocess.Popen[bytes]) -> None:
    """Ends the worker and the compilers it started, if any of them is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def ending(code: int | None) -> str:
    """How a process ended badly, in words."""
    if code is None:
        return f"took more than {TIMEOUT_S} s"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def versions() -> dict[str, str]:
    """The versions of what was compared."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def result_stem(result: Result) -> str:
    """`<date>-<suite>-<machine>`, the name under which a result is kept."""
    return f"{result['date'][:10]}-{result['suite']}-{result['machine']['name']}"


def write(file: Path, text: str) -> None:
    """Writes whole or not at all.

    Raises:
        WhetError: it cannot be written.
    """
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise WhetError(
            "the results cannot be written",
            got=error.strerror,
            where=file,
            hint="name another file with --json",
        ) from error
