"""One model in a process of its own: every system is prepared, then all are timed in turns.

    python -m bench.worker JOB.json RESULT.json

The result is written before each step, with the name of the system at work, so that whoever waits
for it knows whom a crash belongs to.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import oracle
from bench.peers import SYSTEMS, Call, Case, DoesNotApplyError, System
from whet.errors import WhetError
from whet.machine import Machine
from whet.run.measure import Timing, faster, interleaved
from whet.run.spread import settled

Record = dict[str, Any]

PROFILE_S = 1.0  # of running a program call by call
WARM_S = (
    10e-3  # of untimed calls before each sample: each system as it is when it is called steadily
)


@dataclass(frozen=True, slots=True)
class Job:
    """What one worker does: a zoo model at a scale, the systems in order, and how long to time.

    `crashed` names systems that killed an earlier worker, with what is known about it.
    """

    model: str
    systems: tuple[str, ...]
    threads: int
    machine: dict[str, Any]
    budget_s: float = 20.0
    min_rounds: int = 9
    scale: str = "full"
    crashed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        return cls(**{**data, "systems": tuple(data["systems"])})


def run(
    job: Job,
    systems: Mapping[str, System] = SYSTEMS,
    at_work: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Prepares and times `job.systems`; a row for each, and facts about the model."""
    from whet.capture import zoo

    torch.set_num_threads(job.threads)
    model = zoo.load(job.model, scale=job.scale)  # type: ignore[arg-type]
    case = Case(model.module, tuple(model.inputs), job.threads)
    at_work("the float64 oracle")
    right = oracle.float64(case.module, case.inputs)
    flops, touched = oracle.work(case.module, case.inputs)
    floor = Machine.from_json(job.machine).floor_s(flops, touched, threads=job.threads)

    records: dict[str, Record] = {}
    calls: dict[str, Call] = {}
    with torch.no_grad():
        for name in job.systems:
            at_work(name)
            records[name] = record = {"model": job.model, "system": name, "floor_s": floor}
            if name in job.crashed:
                record["failed"] = job.crashed[name]
                continue
            with fresh_caches():
                call, facts = prepared(systems[name], case, right)
            record |= facts
            if call is not None:
                calls[name] = call
        at_work("timing")
        timings = timed(calls, records, job)
    for name, timing in timings.items():
        records[name] |= summary(timing)
    for name in timings:
        if name not in job.systems or systems[name].torch_mode:
            continue
        records[name]["against"] = {
            other: {"ratio": c.ratio, "confidence": c.confidence}
            for other, c in ((o, faster(timings[name], timings[o])) for o in timings if o != name)
        }
    for name in timings:
        records[name] |= profiled(calls[name], case.inputs, job)
    facts = {"flops": flops, "bytes": touched, "kind": model.kind, "summary": model.summary}
    return {"model": facts, "records": [records[name] for name in job.systems]}


def prepared(system: System, case: Case, right: oracle.Arrays) -> tuple[Call | None, Record]:
    """A system's call, ready and checked, with what it cost; or no call, with the reason."""
    began = time.perf_counter()
    try:
        call = system.prepare(case)
        first = call()
        seconds = time.perf_counter() - began
        return call, {
            "optimize_s": seconds,
            "error": oracle.error(oracle.leaves(first), right),
            **report(call),
        }
    except DoesNotApplyError as reason:
        return None, {"skipped": str(reason)}
    except Exception as reason:  # whatever a system raises is its result
        return None, {"failed": one_line(reason), "optimize_s": time.perf_counter() - began}


def timed(calls: dict[str, Call], records: dict[str, Record], job: Job) -> dict[str, Timing]:
    """Times the calls; one that raises only now is taken out, and the rest are timed anew."""
    while calls:
        current = ""

        def named(name: str, call: Call) -> Call:
            def run() -> object:
                nonlocal current
                current = name
                return call()

            return run

        try:
            wrapped = {name: named(name, call) for name, call in calls.items()}
            return interleaved(
                wrapped,
                budget_s=job.budget_s,
                min_rounds=job.min_rounds,
                warm_s=WARM_S,
                settle=settled,
            )
        except Exception as reason:  # whatever a system raises is its result
            records[current]["failed"] = one_line(reason)
            del calls[current]
    return {}


def summary(timing: Timing) -> Record:
    """The part of a row that says how long the calls took."""
    return {
        "median_s": timing.median_s,
        "spread": timing.spread,
        "best_s": timing.best_s,
        "rounds": timing.rounds,
        "calls": timing.calls,
    }


def report(call: Call) -> Record:
    """What whet's module says about itself, if it is whet's and can say it as plain data."""
    told = getattr(getattr(call, "func", None), "report", None)
    if told is None:
        return {}
    plain = told.to_json() if hasattr(told, "to_json") else told
    try:
        return {"report": json.loads(json.dumps(plain))}
    except TypeError:
        return {"report": str(plain)}


def profiled(call: Call, inputs: Sequence[Any], job: Job) -> Record:
    """What holds the time of whet's program, call by call, and the memory that it needs."""
    from whet.run import profile
    from whet.run.module import Optimized

    module = getattr(call, "func", None)
    if not isinstance(module, Optimized):
        return {}
    try:
        found = profile.of(module, inputs, {}, Machine.from_json(job.machine), budget_s=PROFILE_S)
    except WhetError:
        return {}  # another engine than the native one
    row = {k: v for k, v in found.to_json().items() if k != "calls"}
    return {"profile": row | {"shares": found.shares}}


def one_line(reason: BaseException) -> str:
    """The kind and the first line of an error, or what to install."""
    if isinstance(reason, ModuleNotFoundError):
        return f"{reason.name} is not installed: pip install 'whet[bench]'"
    text = reason.summary if isinstance(reason, WhetError) else str(reason)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(reason).__name__}: {lines[0] if lines else ''}"[:300]


@contextmanager
def fresh_caches() -> Iterator[None]:
    """Empty caches for torch.compile, on disk and in memory, so that each system compiles cold.

    The folder outlives the context: what was compiled runs from it. It lies in the worker's own.
    """
    import torch._inductor.compile_fx  # noqa: F401  # so that nobody is charged with importing it
    from torch._inductor.utils import fresh_cache

    with fresh_cache(dir=tempfile.gettempdir(), delete=False):
        yield


def main(argv: Sequence[str]) -> int:
    """Does the job of the first file, writes the result to the second."""
    job_file, result_file = map(Path, argv)
    job = Job.from_json(json.loads(job_file.read_text()))

    def write(result: Mapping[str, Any]) -> None:
        part = result_file.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.replace(result_file)

    write(run(job, at_work=lambda name: write({"at_work": name})))
    sys.stdout.flush()
    # Other systems' threads and compiler pools may hang while Python takes itself down.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
