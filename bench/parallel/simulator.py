"""The delta simulation against the full one, on plans of 64 devices and more.

    case := model, split, machine         proposals: changes of one step, one cut or one choice

Each proposal is simulated in full (every device, microbatch and step), afresh (equal ranks and
blocks once, nothing remembered), and as a delta (what earlier proposals left is remembered). All
must agree to the picosecond; times are medians over the proposals.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bench.parallel.transformer import Decoder, Split, placed
from whet.machine import Mesh, Topology, topology
from whet.parallel.flat import full
from whet.parallel.placed import Block, Placed, Run, Stage, Step, Weights
from whet.parallel.simulate import Simulator

GPT = Decoder(16, 2560, 32, 51200, 2048)
FULL, DELTA = 4, 60  # proposals simulated each way


@dataclass(frozen=True, slots=True)
class Case:
    """A plan to change.

    Attributes:
        name: the model and how it is placed.
        machine: a preset.
        placed: the first plan.
    """

    name: str
    machine: str
    placed: Placed


def cases(small: bool = False) -> list[Case]:
    """Transformers on grids, and a chain of blocks that are all different."""
    model = replace(GPT, layers=8) if small else GPT
    return [
        Case("GPT, 8 pipeline x 8 tensor", "a100x8:8", placed(model, Split(8, 8, 1, 1, 8))),
        Case(
            "GPT, 4 pipeline x 2 data x 8 tensor", "h100x8:8", placed(model, Split(8, 4, 2, 1, 8))
        ),
        Case(
            "GPT, FSDP on 64", "a100x8:8", placed(model, Split(1, 1, 64, 1, 1, zero=3, flash=True))
        ),
        Case("chain of 24 different blocks, data on 64", "k80x4:16", chain(24)),
        Case("GPT, 16 data x 8 tensor", "h100x8:16", placed(model, Split(8, 1, 16, 1, 1))),
    ]


def chain(count: int) -> Placed:
    """Blocks of different sizes, data parallel on 64 devices: as in a convolutional network."""
    blocks = []
    for k in range(count):
        width = 128 + 32 * k
        steps = tuple(
            Step(
                f"product {j}",
                "contraction",
                flops=2 * 1024 * width * width,
                read=8 * 1024 * width,
                written=4 * 1024 * width,
                dims=(1, 1024, width, width),
            )
            for j in range(6)
        )
        weights = (Weights("w", 6 * width * width, 4, ("data",)),)
        blocks.append(Run(Block(f"block {k}", steps, steps + steps, weights, boundary=4096)))
    return Placed((Stage(Mesh.of((("data", 64),)), tuple(blocks)),))


def proposal(rng: random.Random, old: Placed) -> Placed:
    """One thing changed, as a search would."""
    k = rng.randrange(len(old.stages))
    stage = old.stages[k]
    match rng.randrange(4):
        case 0 | 1:
            at = rng.randrange(len(stage.runs))
            block = stage.runs[at].block
            side = rng.choice(("forward", "backward"))
            steps = getattr(block, side)
            j = rng.randrange(len(steps))
            other = replace(steps[j], written=steps[j].written + 4096 * rng.randint(1, 64))
            changed = replace(block, **{side: (*steps[:j], other, *steps[j + 1 :])})
            run = replace(stage.runs[at], block=changed)
            stage = replace(stage, runs=(*stage.runs[:at], run, *stage.runs[at + 1 :]))
        case 2:
            stage = replace(stage, zero=rng.randint(0, 3), recompute=not stage.recompute)
        case _:
            at = rng.randrange(len(stage.runs))
            run = replace(stage.runs[at], times=max(1, stage.runs[at].times + rng.choice((-1, 1))))
            stage = replace(stage, runs=(*stage.runs[:at], run, *stage.runs[at + 1 :]))
    return replace(old, stages=(*old.stages[:k], stage, *old.stages[k + 1 :]))


def compared(case: Case, proposals: int = DELTA, fulls: int = FULL) -> dict[str, Any]:
    """Seconds of a proposal each way, and whether they agree."""
    of, rng = topology(case.machine), random.Random(0)
    simulator = Simulator(of)
    simulator.simulate(case.placed)
    every: dict[str, list[float]] = {"full": [], "afresh": [], "delta": []}
    equal, plan = True, case.placed
    for k in range(proposals):
        plan = proposal(rng, plan)
        ticks, seconds = _timed(lambda plan=plan: simulator.simulate(plan).ticks)
        every["delta"].append(seconds)
        if k % (proposals // fulls) == 0:
            other, seconds = _timed(lambda plan=plan: full(plan, of).ticks)
            every["full"].append(seconds)
            third, seconds = _timed(lambda plan=plan: _afresh(of, plan))
            every["afresh"].append(seconds)
            equal = equal and ticks == other == third
    medians = {name: statistics.median(times) for name, times in every.items()}
    return {
        "model": case.name,
        "system": "delta",
        "devices": sum(len(stage.mesh.devices) for stage in case.placed.stages),
        "median_s": medians["delta"],
        "full_s": medians["full"],
        "afresh_s": medians["afresh"],
        "ratio": medians["full"] / medians["delta"],
        "ratio_afresh": medians["afresh"] / medians["delta"],
        "equal": equal,
    }


def _afresh(of: Topology, plan: Placed) -> int:
    return Simulator(of).simulate(plan).ticks


def _timed(call: Callable[[], int]) -> tuple[int, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def measure(
    args: argparse.Namespace, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], str]:
    """Every case; the records and the page."""
    records = []
    for case in cases(getattr(args, "small", False)):
        progress(case.name)
        records.append(compared(case))
    return records, page(records)


def page(records: list[dict[str, Any]]) -> str:
    """The table."""
    head = f"{'plan':<42}{'devices':>8}{'full ms':>10}{'afresh ms':>11}{'delta ms':>10}"
    rows = [
        f"{r['model']:<42}{r['devices']:>8}{1e3 * r['full_s']:>10.1f}{1e3 * r['afresh_s']:>11.2f}"
        f"{1e3 * r['median_s']:>10.2f}{r['ratio']:>8.0f} x{r['ratio_afresh']:>8.1f} x"
        f"   {'yes' if r['equal'] else 'NO'}"
        for r in records
    ]
    return "\n".join(
        [
            "Milliseconds to simulate one proposal: every device and step; equal ranks and blocks",
            "once; and as a delta of the proposals before it.",
            "",
            f"{head}{'full /':>10}{'afresh /':>10}   equal",
            *rows,
            "",
            "reproduce: whet bench --suite parallel --part simulator",
            "",
        ]
    )
