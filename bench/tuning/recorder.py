"""Records tables of schedules: many of each task, each built once and measured once.

    python -m bench.tuning.recorder build FOLDER --isa avx512f --count 800    hours of compiling
    python -m bench.tuning.recorder time FOLDER --seconds 60                  nothing beside it
    python -m bench.tuning.recorder pack FOLDER                               bench/data/schedules/

Tasks are clusters of the zoo (`bench/data/tasks.json`). A chunk of schedules is drafts, schedules
from anywhere, and mutants of the fastest measured so far, so that a table has the good ones, and
what is near them. Building and measuring go chunk by chunk, may be stopped at any time, and go on
where they were. The narrower target builds the schedules of the wider one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import pickle
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whet.machine import Machine
from whet.machine.target import REGISTERS, Target
from whet.run import farm

DATA = Path(__file__).parents[1] / "data"
TASKS, TABLES = DATA / "tasks.json", DATA / "schedules"
CHUNK = 32  # schedules that are built, and then measured, together
THREADS = 2
ROUNDS = 3
SLOW = 30.0  # times the fastest: timed by one call
FIRST_S = 20e-3  # the same where nothing is known
AVX2_EVERY = 4  # of so many tasks, one is recorded on the narrower target too


def machine_of(isa: str) -> Machine:
    """This machine, as programs for an instruction set meet it."""
    here = Machine.detect()
    kept = tuple(name for name in here.isa if name not in REGISTERS or name == isa)
    return replace(here, isa=kept, vector_bits={"avx512f": 512, "avx2": 256}[isa])


def tasks(isa: str) -> list[dict[str, str]]:
    """The tasks that are recorded for an instruction set."""
    every: list[dict[str, str]] = json.loads(TASKS.read_text())
    return every if isa == "avx512f" else every[::AVX2_EVERY]


@dataclass(frozen=True)
class Chunk:
    """A folder of built schedules: rows.json, shared objects, and times.json once measured."""

    place: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        return json.loads((self.place / "rows.json").read_text())  # type: ignore[no-any-return]

    @property
    def is_built(self) -> bool:
        return (self.place / "rows.json").exists()

    @property
    def times(self) -> list[Any] | None:
        file = self.place / "times.json"
        return json.loads(file.read_text()) if file.exists() else None


def chunks(folder: Path, isa: str, name: str) -> Iterator[Chunk]:
    """The built chunks of a task, in order."""
    for k in range(10_000):
        chunk = Chunk(folder / isa / _safe(name) / str(k))
        if not chunk.is_built:
            return
        yield chunk


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


# -- building --------------------------------------------------------------------------------------
def build(folder: Path, isa: str, count: int) -> None:
    """Builds chunks until each task has `count` schedules; next is always the task that has taken
    the least time so far, so that a table which is cut short has many of the cheap ones."""
    from whet.ir.text import parse_graph
    from whet.run.contest import Contest

    target = Target.of(machine_of(isa), THREADS)
    wanted = -(-count // CHUNK)
    contests: dict[str, Contest] = {}
    turns = {t["name"]: sum(1 for _ in chunks(folder, isa, t["name"])) for t in tasks(isa)}
    spent = {name: 1e-9 * turn for name, turn in turns.items()}
    graphs = {t["name"]: t["graph"] for t in tasks(isa)}
    while pending := [n for n in turns if turns[n] < wanted]:
        name = min(reversed(pending), key=lambda n: (turns[n] > 0, spent[n]))
        if name not in contests:
            contests[name] = Contest.of(parse_graph(graphs[name]), target)
        began = time.perf_counter()
        rows = _chunk(folder, isa, name, turns[name], contests[name])
        took = time.perf_counter() - began
        print(f"{isa} {name} {turns[name]}: {rows} in {took:.0f} s", flush=True)
        turns[name] += 1
        spent[name] += took
        if not rows:
            turns[name] = wanted  # no schedule that was not there before


def _chunk(folder: Path, isa: str, name: str, turn: int, contest: Any) -> int:
    from whet.kernel.features import features
    from whet.kernel.schedule import show

    chunk = Chunk(folder / isa / _safe(name) / str(turn))
    chunk.place.mkdir(parents=True, exist_ok=True)
    entrants = _others(folder, name, turn, contest) if isa != "avx512f" else None
    if entrants is None:
        entrants = _drawn(folder, isa, name, turn, contest)
    kernels = contest.build(entrants, chunk.place, jobs=2)
    machine = machine_of(isa)
    rows: list[dict[str, Any]] = []
    for d, kernel in zip(entrants, kernels, strict=True):
        row: dict[str, Any] = {"schedule": show(d.schedule), "digest": d.kernel.digest}
        row["features"] = [float(f"{x:.6g}") for x in features(d.kernel, machine, THREADS)]
        if isinstance(kernel, farm.Failed):
            row["failed"] = [kernel.kind, kernel.reason]
        else:
            row |= {"library": kernel.library.name, "symbol": kernel.symbol}
            row |= {"scratch": kernel.scratch_bytes, "laid": dict(kernel.laid)}
        rows.append(row)
    if turn == 0:
        (chunk.place / "task.pickle").write_bytes(pickle.dumps(contest.task))
    (chunk.place / "rows.json").write_text(json.dumps(rows))
    return len(rows)


def _drawn(folder: Path, isa: str, name: str, turn: int, contest: Any) -> list[Any]:
    """Schedules that no earlier chunk has."""
    from whet.kernel.schedule import apply, read
    from whet.kernel.space import Drafted

    rng = random.Random(f"{name} {turn}")
    known: set[str] = set()
    fast: list[tuple[float, str]] = []
    for chunk in chunks(folder, isa, name):
        rows = chunk.rows
        known |= {row["digest"] for row in rows}
        times = chunk.times or [None] * len(rows)
        fast += [(t, r["schedule"]) for t, r in zip(times, rows, strict=True) if _ran(t)]
    fast = sorted(fast)[:24]
    found: dict[str, Any] = {}
    for d in contest.variations.known if turn == 0 else ():
        found[d.kernel.digest] = d
    tries = 0
    while len(found) < CHUNK and tries < 20 * CHUNK:
        tries += 1
        d = contest.variations.scattered(rng)
        if fast and rng.random() < 0.6:
            schedule = read(rng.choice(fast)[1])
            parent = Drafted("kept", schedule, apply(contest.naive, schedule))
            for _ in range(rng.choice((1, 1, 2))):
                parent = contest.variations.mutant(parent, rng) or parent
            d = parent
        if d.kernel.digest not in known:
            found.setdefault(d.kernel.digest, d)
    return list(found.values())


def _ran(seconds: object) -> bool:
    return isinstance(seconds, float)


def _others(folder: Path, name: str, turn: int, contest: Any) -> list[Any] | None:
    """The schedules of the wider target's chunk."""
    from whet.kernel.schedule import apply, read
    from whet.kernel.space import Drafted

    theirs = [*chunks(folder, "avx512f", name)]
    if turn >= len(theirs):
        return None
    read_ = [read(row["schedule"]) for row in theirs[turn].rows]
    return [Drafted("same", s, apply(contest.naive, s)) for s in read_]


# -- measuring -------------------------------------------------------------------------------------
def measure(folder: Path, seconds: float) -> None:
    """Measures chunks that were built and not measured, the earliest first, for so long."""
    until = time.monotonic() + seconds
    pending: list[tuple[int, str, str, Chunk]] = []
    for isa in ("avx512f", "avx2"):
        for task in tasks(isa):
            for turn, chunk in enumerate(chunks(folder, isa, task["name"])):
                if chunk.times is None:
                    pending.append((turn, isa, task["name"], chunk))
    done = 0
    for turn, isa, name, chunk in sorted(pending, key=lambda p: p[:3]):
        if time.monotonic() > until:
            break
        first = Chunk(folder / isa / _safe(name) / "0")
        task = pickle.loads((first.place / "task.pickle").read_bytes())
        best = [t for c in chunks(folder, isa, name) for t in c.times or () if _ran(t)]
        times = _times(chunk, task, SLOW * min(best) if best else FIRST_S)
        (chunk.place / "times.json").write_text(json.dumps(times))
        done += 1
        ran = [t for t in times if _ran(t)]
        print(f"{isa} {name} {turn}: {len(ran)} ran, best {min(ran, default=0) * 1e6:.1f} us")
    print(f"{done} of {len(pending)} chunks measured")


def _times(chunk: Chunk, task: farm.Task, limit_s: float) -> list[Any]:
    """Seconds of each row, or why there are none."""
    rows = chunk.rows
    kernels: dict[str, farm.Kernel] = {}
    for k, row in enumerate(rows):
        if "failed" not in row:
            laid = {int(p): _tuples(how) for p, how in row["laid"].items()}
            kernels[str(k)] = farm.Kernel(
                chunk.place / row["library"], row["symbol"], row["scratch"], laid
            )
    with farm.Farm(THREADS, patience_s=3) as f:
        found = f.measure(task, kernels, rounds=ROUNDS, limit_s=limit_s)
    return [
        row["failed"] if "failed" in row else _said(found[str(k)]) for k, row in enumerate(rows)
    ]


def _tuples(how: list[list[int]]) -> farm.Laid:
    sizes, split, order = map(tuple, how)
    return sizes, split, order


def _said(verdict: farm.Verdict) -> Any:
    if isinstance(verdict, farm.Failed):
        return [verdict.kind, verdict.reason]
    return float(f"{verdict.best_s:.5g}")


# -- packing ---------------------------------------------------------------------------------------
def pack(folder: Path) -> list[Path]:
    """Writes the tables: one file for each instruction set, of all that was measured."""
    written = []
    for isa in ("avx512f", "avx2"):
        packed = [t for task in tasks(isa) if (t := _packed(folder, isa, task))["seconds"]]
        if packed:
            machine = machine_of(isa)
            text = json.dumps(
                {"isa": isa, "threads": THREADS, "machine": machine.to_json(), "tasks": packed},
                separators=(",", ":"),
            )
            TABLES.mkdir(exist_ok=True)
            file = TABLES / f"{isa}.json.gz"
            file.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
            rows = sum(len(t["seconds"]) for t in packed)
            print(f"{file}: {len(packed)} tasks, {rows} rows, {file.stat().st_size >> 10} KiB")
            written.append(file)
    return written


def _packed(folder: Path, isa: str, task: Mapping[str, str]) -> dict[str, Any]:
    """A task with its rows, as columns; moves once, rows by their places."""
    moves: dict[str, int] = {}
    found: dict[str, Any] = {**task, "schedules": [], "seconds": [], "features": [], "failed": {}}
    for chunk in chunks(folder, isa, task["name"]):
        for row, t in zip(chunk.rows, chunk.times or (), strict=False):
            lines = row["schedule"].splitlines()
            found["schedules"].append([moves.setdefault(line, len(moves)) for line in lines])
            found["features"].append(row["features"])
            found["seconds"].append(t if _ran(t) else None)
            if not _ran(t):
                found["failed"][str(len(found["seconds"]) - 1)] = t
    found["moves"] = list(moves)
    return found


def main() -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.tuning.recorder", description=__doc__)
    parser.add_argument("what", choices=("build", "time", "pack"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--isa", choices=("avx512f", "avx2"), default="avx512f")
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--seconds", type=float, default=math.inf)
    args = parser.parse_args()
    match args.what:
        case "build":
            build(args.folder, args.isa, args.count)
        case "time":
            measure(args.folder, args.seconds)
        case _:
            pack(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
