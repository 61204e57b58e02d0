"""Random models through whet's programs, against float64: `whet bench --suite fuzz`.

A program may be worse than plain library calls in float32 by a factor, no more, and never not a
number where they are one. Library kernels, partitions into groups, and schedules of a group's
kernel are drawn at random, so that all of them are met, also those that no clock would choose. What
is wrong is written down with the seed that makes it again:

    python -m bench.fuzz SEED [SEED …]
"""

from __future__ import annotations

import datetime
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.fuzz.models import Model, model
from whet.backend import generated
from whet.backend.cluster import Cluster
from whet.backend.lowered import body_nodes, lower
from whet.backend.packed import Kernel
from whet.backend.piece import Packed, Piece, Value
from whet.errors import UnsupportedError, first_line
from whet.fuse import moves
from whet.fuse.moves import Move
from whet.fuse.partition import Cluster as Closed
from whet.fuse.partition import Partition
from whet.fuse.seed import seed
from whet.ir.graph import Graph
from whet.ir.interp import evaluate
from whet.kernel.space import drafts
from whet.machine import Machine
from whet.machine.target import Target
from whet.run.calling import Runner
from whet.run.native import native
from whet.run.oracle import WORSE, relative_error
from whet.run.parameters import Parameters
from whet.run.program import Program

COUNT, SMALL = 2000, 20
EACH = 250  # models that one process checks
ALONE = 0.15  # of programs that have no groups, and of groups that have no kernel of their own
LEAST = 2e-5  # an error that is none in float32, after so many operators


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one model.

    Attributes:
        seed: of the model.
        operators: how many it has.
        error, plain: of the native program and of plain library calls, against float64.
        reason: what was wrong, or why no program could be made; empty where all is well.
        wrong: it is a fault.
        generated: how many of its groups ran in kernels of their own.
    """

    seed: int
    operators: int
    error: float = 0.0
    plain: float = 0.0
    reason: str = ""
    wrong: bool = False
    generated: int = 0


@dataclass
class Drawn:
    """Makes the kernel of a group by a schedule drawn from its drafts; sometimes none."""

    rng: random.Random
    names: list[str] = field(default_factory=list)

    def __call__(
        self, closed: Closed, operands: Sequence[Value | Packed], results: Sequence[Value]
    ) -> Piece | None:
        if self.rng.random() < ALONE:
            return None
        target = Target.of(Machine.detect(), torch.get_num_threads())
        try:
            naively = generated.naive(closed, operands, results)
            found = drafts(naively, generated.fixed(naively, operands), target)
            d = self.rng.choice(found)
            piece = generated.piece(closed, operands, results, d.schedule, target)
        except UnsupportedError:
            return None
        self.names.append(
            "+".join(n.op for n in closed.graph.nodes if not n.is_leaf) + f": {d.name}"
        )
        return piece


def partitioned(graph: Graph, rng: random.Random) -> Partition:
    """The seed of a search, and a few random moves away from it."""
    p = seed(graph, body_nodes(graph))
    for _ in range(rng.randrange(5)):
        pairs = [*moves.neighbours(p), *moves.siblings(p)]
        kind = rng.choice(("merge", "merge", "beside", "split", "recompute", "shift"))
        if kind in ("split", "recompute"):
            places: Sequence[tuple[int, ...]] = [(k,) for k in range(len(p.groups))]
        else:
            places = pairs
        if not places:
            continue
        chosen = rng.choice(places)
        names = tuple(p.groups[k].name for k in chosen)
        made = moves.made(p, Move(kind, (names,), rng.choice((1, 2, -1))))
        p = p if made is None else made[0]
    return p


def check(m: Model) -> Outcome:
    """One model through a native program, twice, and its results against float64."""
    rng = random.Random(m.seed)

    def choose(cluster: Cluster, kernels: list[Kernel]) -> Kernel:
        return rng.choice(kernels)

    graph = m.graph
    inputs = [m.values[n.name] for n in graph.inputs]
    names = {n.name for n in graph.parameters}
    parameters = Parameters({k: v for k, v in m.values.items() if k in names})
    right = evaluate(graph, {k: v.double() for k, v in m.values.items()})
    with torch.no_grad():
        plain = Program(lower(graph, lambda cluster, kernels: kernels[0]), parameters)(inputs)
        own = relative_error(plain, right)
        count = len(m.operators)
        drawn = Drawn(rng)
        groups = partitioned(graph, rng) if rng.random() > ALONE else None
        try:
            built, lowered = native(
                graph, choose, parameters.tensors(), groups, None if groups is None else drawn
            )
        except UnsupportedError as fault:
            return Outcome(m.seed, count, plain=own, reason=f"no program: {fault.got}")
        program = Program(lowered, parameters, Runner.of(built).bind, "native")
        first, second = program(inputs), program(inputs)
    error = relative_error(first, right)
    reason = ""
    if not error <= max(WORSE * own, LEAST):
        reason = f"relative error {error:.1e}, of plain calls {own:.1e}"
    elif not all(map(_equal, first, second)):
        reason = "another result at the second call"
    elif len({t.data_ptr() for t in (*first, *second) if t.numel()}) < 2 * len(first):
        reason = "results share memory"
    if reason and drawn.names:
        reason += f" ({', '.join(drawn.names)})"
    return Outcome(m.seed, count, error, own, reason, bool(reason), len(drawn.names))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


def outcomes(seeds: Iterable[int]) -> Iterable[Outcome]:
    """Each seed's model checked; what raises is a fault like any other."""
    for number in seeds:
        m = model(number)
        try:
            yield check(m)
        except Exception as fault:  # whatever it is, the seed that brought it must be told
            reason = f"{type(fault).__name__}: {first_line(fault)}"
            yield Outcome(number, len(m.operators), reason=reason, wrong=True)


def apart(first: int, end: int) -> Iterator[Outcome]:
    """The seeds from `first` to before `end`, checked in processes of their own: one that a kernel
    ends is a fault of its seed, and the next one goes on behind it."""
    command = [sys.executable, "-m", "bench.fuzz", "--lines", "--threads"]
    while first < end:
        last = min(end, first + EACH)
        threads = str(torch.get_num_threads())
        with subprocess.Popen(
            [*command, threads, str(first), str(last)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("{"):
                    found = Outcome(**json.loads(line))
                    first = found.seed + 1
                    yield found
        if first < last:
            m = model(first)
            said = f"the process ended with {child.returncode}"
            yield Outcome(first, len(m.operators), reason=said, wrong=True)
            first += 1


def measure(args: Any, progress: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """Runs the suite; the JSON of it, and the same as text."""
    count = SMALL if args.small else COUNT
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "suite": "fuzz",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "complete": False,
        "versions": {"torch": torch.__version__},
        "records": [],
    }
    done: list[Outcome] = []
    began = time.monotonic()
    try:
        for outcome in apart(0, count):
            done.append(outcome)
            if outcome.wrong:
                progress(f"seed {outcome.seed}: {outcome.reason}")
            elif len(done) % 100 == 0:
                progress(f"{len(done)} of {count} models, {time.monotonic() - began:.0f} s")
        result["complete"] = True
    except KeyboardInterrupt:
        progress("interrupted: what was checked until now is kept")
    wrong = [o for o in done if o.wrong]
    without = Counter(o.reason for o in done if o.reason and not o.wrong)
    result["models"] = len(done)
    result["operators"] = sum(o.operators for o in done)
    result["generated"] = sum(o.generated for o in done)
    result["wrong"] = len(wrong)
    result["without"] = dict(without)
    result["records"] = [{"seed": o.seed, "reason": o.reason} for o in wrong]
    result["worst"] = max((o.error for o in done if not o.wrong), default=0.0)
    return result, page(result)


def page(result: dict[str, Any]) -> str:
    """The result as text."""
    size = f"{result['models']} random models of {result['operators']} operators"
    lines = [f"{size}, native programs against float64: {result['wrong']} wrong"]
    lines.append(f"{result['generated']} groups of operators in generated kernels")
    lines.append(f"worst relative error {result['worst']:.1e}")
    for reason, count in result["without"].items():
        lines.append(f"  {count} without a program: {reason}")
    lines += [f"  seed {row['seed']}: {row['reason']}" for row in result["records"]]
    return "\n".join(lines) + "\n"
