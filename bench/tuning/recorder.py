"""Records tables of schedules: many of each task, each built once and measured once.

    python -m bench.tuning.recorder build FOLDER --isa avx512f --count 800    hours of compiling
    python -m bench.tuning.recorder time FOLDER --seconds 60                  roughly, now and then
    python -m bench.tuning.recorder time FOLDER --whole                       nothing beside it
    python -m bench.tuning.recorder pack FOLDER                               bench/data/schedules/

Tasks are clusters of the zoo (`bench/data/tasks.json`). A chunk of schedules is drafts, tiles from
anywhere, mutants of any schedule that an earlier chunk has, and mutants of the fastest measured so
far, so that a table has the good ones, and what is near them. Building and measuring go chunk by
chunk, may be stopped at any time, and go on where they were; `--part 0/2` builds every second task,
so that two can build at once. The narrower target builds the schedules of the wider one, of the
tasks that say so.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import pickle
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whet.backend import cpp
from whet.kernel.loops import Kernel
from whet.machine import Machine
from whet.machine.target import REGISTERS, Target
from whet.run import farm

DATA = Path(__file__).parents[1] / "data"
TASKS, TABLES = DATA / "tasks.json", DATA / "schedules"
CHUNK = 32  # schedules that are built, and then measured, together
THREADS = 2
ROUNDS = 5
ROUGH = 2  # rounds, where times only say of what there should be mutants
AGAIN = 24  # rows of each task that are measured once more, to know how far times can be believed
SLOW = 5.0  # times the fastest: timed by one call
FIRST_S = 5e-3  # the same where nothing is known
LINES = 400  # of C: what is longer takes half of the time that compiling takes, and is slow


def machine_of(isa: str) -> Machine:
    """This machine, as programs for an instruction set meet it."""
    here = Machine.detect()
    kept = tuple(name for name in here.isa if name not in REGISTERS or name == isa)
    return replace(here, isa=kept, vector_bits={"avx512f": 512, "avx2": 256}[isa])


def tasks(isa: str) -> list[dict[str, str]]:
    """The tasks that are recorded for an instruction set."""
    every: list[dict[str, str]] = json.loads(TASKS.read_text())
    return every if isa == "avx512f" else [t for t in every if t.get("also") == isa]


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

    @property
    def no_times(self) -> list[Any]:
        """Of a chunk that was not measured."""
        return [None] * len(self.rows)

    @property
    def whole(self) -> list[Any] | None:
        """Times from the session that measured the whole task."""
        file = self.place / "whole.json"
        return json.loads(file.read_text()) if file.exists() else None

    @property
    def kernels(self) -> list[Kernel]:
        """Each row's scheduled nest."""
        return pickle.loads((self.place / "kernels.pickle").read_bytes())  # type: ignore[no-any-return]


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
def build(folder: Path, isa: str, count: int, part: tuple[int, int] = (0, 1)) -> None:
    """Builds chunks until each task has `count` schedules, or all that there are; next is always
    the task that has the fewest, so that what is cut short has as many of each.

    Args:
        folder: where chunks are.
        isa: instruction set.
        count: schedules of each task.
        part: (k, n): every n-th task, from the k-th on.
    """
    from whet.ir.text import parse_graph
    from whet.run.contest import Contest

    target = Target.of(machine_of(isa), THREADS)
    graphs = {t["name"]: t["graph"] for t in tasks(isa)[part[0] :: part[1]]}
    contests: dict[str, Contest] = {}
    turns = {name: sum(1 for _ in chunks(folder, isa, name)) for name in graphs}
    rows = {name: sum(len(c.rows) for c in chunks(folder, isa, name)) for name in graphs}
    pending = [n for n in graphs if rows[n] < count]
    while pending:
        name = min(pending, key=rows.__getitem__)
        if name not in contests:
            contests[name] = Contest.of(parse_graph(graphs[name]), target)
        began = time.perf_counter()
        made = _chunk(folder, isa, name, turns[name], contests[name])
        took = time.perf_counter() - began
        print(f"{isa} {name}: {rows[name]} + {made}, {took:.0f} s", flush=True)
        turns[name] += 1
        rows[name] += made
        if rows[name] >= count or not made:  # no schedule that was not there before
            pending.remove(name)


def _chunk(folder: Path, isa: str, name: str, turn: int, contest: Any) -> int:
    from whet.kernel.schedule import show

    chunk = Chunk(folder / isa / _safe(name) / str(turn))
    chunk.place.mkdir(parents=True, exist_ok=True)
    entrants = _others(folder, name, turn, contest) if isa != "avx512f" else None
    if entrants is None:
        entrants = _drawn(folder, isa, name, turn, contest)
    if not entrants:
        return 0
    kernels = contest.build(entrants, chunk.place, jobs=1)
    rows: list[dict[str, Any]] = []
    for d, kernel in zip(entrants, kernels, strict=True):
        row: dict[str, Any] = {"schedule": show(d.schedule), "digest": d.kernel.digest}
        if isinstance(kernel, farm.Failed):
            row["failed"] = [kernel.kind, kernel.reason]
        else:
            row |= {"library": kernel.library.name, "symbol": kernel.symbol}
            row |= {"scratch": kernel.scratch_bytes, "laid": dict(kernel.laid)}
        rows.append(row)
    if turn == 0:
        (chunk.place / "task.pickle").write_bytes(pickle.dumps(contest.task))
    (chunk.place / "kernels.pickle").write_bytes(pickle.dumps([d.kernel for d in entrants]))
    (chunk.place / "rows.json").write_text(json.dumps(rows))
    return len(rows)


def _drawn(folder: Path, isa: str, name: str, turn: int, contest: Any) -> list[Any]:
    """Schedules that no earlier chunk has."""
    from whet.kernel.schedule import read
    from whet.kernel.space import Drafted
    from whet.run.contest import length

    rng = random.Random(f"{name} {turn}")
    known: set[str] = set()
    earlier: list[str] = []
    fast: list[tuple[float, str]] = []
    for chunk in chunks(folder, isa, name):
        rows = chunk.rows
        known |= {row["digest"] for row in rows}
        earlier += [row["schedule"] for row in rows]
        times = chunk.times or chunk.no_times
        fast += [(t, r["schedule"]) for t, r in zip(times, rows, strict=True) if _ran(t)]
    fast = sorted(fast)[:24]
    found: dict[str, Any] = {}
    for d in contest.variations.known if turn == 0 else ():
        found[d.kernel.digest] = d
    for _ in range(20 * CHUNK):
        if len(found) >= CHUNK:
            break
        draw = rng.random()
        if earlier and draw < 0.7:
            # A mutant is made of its parent's moves alone; its kernel need not be made again.
            parent = rng.choice(fast)[1] if fast and draw < 0.3 else rng.choice(earlier)
            d = contest.variations.mutant(Drafted("kept", read(parent), contest.naive), rng)
        else:
            d = contest.variations.scattered(rng)
        if d is None or d.kernel.digest in known:
            continue
        known.add(d.kernel.digest)
        if length(cpp.function("k", d.kernel, contest.target).text) <= LINES:
            found[d.kernel.digest] = d
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
def measure(folder: Path, seconds: float, *, whole: bool = False) -> None:
    """Measures, task by task, for so long, what has no times yet.

    Rows of one session can be compared, those of two cannot: what a parallel region costs, for
    one, changes from minute to minute where processors are lent by a hypervisor. So what is kept
    was measured in one session for each task, in rounds that meet all of its rows in turn.

    Args:
        folder: where chunks are.
        seconds: after which no other task is begun.
        whole: all rows of a task in one session, once; else its new chunks, roughly, for the
            mutants of the fastest.
    """
    until = time.monotonic() + seconds
    for isa in ("avx512f", "avx2"):
        for task in tasks(isa):
            every = [*chunks(folder, isa, task["name"])]
            done = [c for c in every if c.whole] if whole else [c for c in every if c.times]
            if len(done) < len(every) and time.monotonic() < until:
                began = time.monotonic()
                said = _measured(every, every if whole else every[len(done) :], whole)
                print(f"{isa} {task['name']}: {said}, {time.monotonic() - began:.0f} s", flush=True)


def _measured(every: list[Chunk], some: list[Chunk], whole: bool) -> str:
    """Times of some chunks of a task, and how well a second look agrees."""
    task = pickle.loads((every[0].place / "task.pickle").read_bytes())
    before = {f"{c.place.name}/{k}": t for c in every for k, t in enumerate(c.times or c.no_times)}
    kernels = {
        name: kernel
        for c in some
        for name, kernel in _kernels(c).items()
        if not isinstance(before[name], list)  # what did wrong once need not again
    }
    best_s = min((t for t in before.values() if _ran(t)), default=math.inf)
    limit = SLOW * best_s if best_s < math.inf else FIRST_S
    rounds = ROUNDS if whole else ROUGH
    with farm.Farm(THREADS, patience_s=3) as f:
        found = f.measure(task, kernels, rounds=rounds, limit_s=limit)
    times = before | {n: _said(v) for n, v in found.items()}
    for c in some:
        rows = [
            row["failed"] if "failed" in row else times[f"{c.place.name}/{k}"]
            for k, row in enumerate(c.rows)
        ]
        (c.place / ("whole.json" if whole else "times.json")).write_text(json.dumps(rows))
    ran = sorted((t, n) for n, t in times.items() if _ran(t) and n in kernels)
    said = f"{len(ran)} of {len(kernels)} ran, best {ran[0][0] * 1e6:.1f} us" if ran else "none ran"
    if not whole or not ran:
        return said
    again = dict(ran[:: max(1, len(ran) // AGAIN)])
    with farm.Farm(THREADS, patience_s=3) as f:
        second = f.measure(
            task, {n: kernels[n] for n in again.values()}, rounds=rounds, limit_s=limit
        )
    ratios = [v.best_s / t for t, n in again.items() if not isinstance(v := second[n], farm.Failed)]
    center = statistics.median(ratios)
    off = statistics.median(abs(r / center - 1) for r in ratios)
    (every[0].place / "agreement.json").write_text(json.dumps([center, off]))
    return f"{said}; again: {center:.2f} times as long, {off:.1%} apart from that"


def _kernels(chunk: Chunk) -> dict[str, farm.Kernel]:
    """Those rows of a chunk that compiled, by chunk and place."""
    found: dict[str, farm.Kernel] = {}
    for k, row in enumerate(chunk.rows):
        if "failed" not in row:
            laid = {int(p): _tuples(how) for p, how in row["laid"].items()}
            found[f"{chunk.place.name}/{k}"] = farm.Kernel(
                chunk.place / row["library"], row["symbol"], row["scratch"], laid
            )
    return found


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
    from whet.kernel.features import features

    machine = machine_of(isa)
    moves: dict[str, int] = {}
    found: dict[str, Any] = {**task, "schedules": [], "seconds": [], "features": [], "failed": {}}
    for chunk in chunks(folder, isa, task["name"]):
        if chunk.whole is None:
            continue
        for row, kernel, t in zip(chunk.rows, chunk.kernels, chunk.whole, strict=True):
            lines = row["schedule"].splitlines()
            found["schedules"].append([moves.setdefault(line, len(moves)) for line in lines])
            seen = features(kernel, machine, THREADS)
            found["features"].append([float(f"{x:.5g}") for x in seen])
            found["seconds"].append(t if _ran(t) else None)
            if not _ran(t):
                found["failed"][str(len(found["seconds"]) - 1)] = t
    found["moves"] = list(moves)
    agreement = folder / isa / _safe(task["name"]) / "0" / "agreement.json"
    if agreement.exists():
        found["agreement"] = json.loads(agreement.read_text())
    return found


def main() -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.tuning.recorder", description=__doc__)
    parser.add_argument("what", choices=("build", "time", "pack"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--isa", choices=("avx512f", "avx2"), default="avx512f")
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    match args.what:
        case "build":
            k, n = map(int, args.part.split("/"))
            build(args.folder, args.isa, args.count, (k, n))
        case "time":
            measure(args.folder, args.seconds, whole=args.whole)
        case _:
            pack(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
