"""Schedules: what each group runs, when that deadlocks, and how long it takes at best."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from whet.machine import Mesh, topology
from whet.parallel.pipeline import Turn, deadlock, orders
from whet.parallel.placed import Block, Placed, PlacedError, Run, Stage, Step
from whet.parallel.simulate import Simulator

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")
SIZE = 4096


def kernel(name, **more):
    flops = 2 * SIZE**3
    dims = (1, SIZE, SIZE, SIZE)
    return Step(name, "contraction", flops=flops, dims=dims, dtype="bfloat16", **more)


BLOCK = Block(
    "layer",
    (kernel("product", alloc=(1 << 30,)),),
    (kernel("inputs"), kernel("weights", weight=True, free=(1 << 30,))),
)


def placed(groups, batches, schedule, chunks=1):
    stages = tuple(
        Stage(Mesh.of((("data", 1),), first=k % groups), (Run(BLOCK, 4 // chunks),))
        for k in range(groups * chunks)
    )
    return Placed(stages, batches, schedule, chunks).checked()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_pass_once_and_no_deadlock(schedule, groups):
    chunks = 2 if schedule == "interleaved" and groups > 1 else 1
    for batches in (groups, 2 * groups, 4 * groups):
        model = placed(groups, batches, schedule, chunks)
        assert deadlock(model) is None
        counts = Counter(t.name for order in orders(model) for t in order)
        halves = ("inputs", "weights") if schedule == "zero_bubble" else ("backward",)
        for name in ("forward", *halves):
            assert counts[name] == groups * chunks * batches
        assert counts["update"] == groups * chunks


def idle(schedule, chunks=1, groups=4, batches=8):
    model = placed(groups, batches, schedule, chunks)
    found = Simulator(topology("a100x8")).simulate(model)
    return found, max(found.idle)


def test_bubbles_are_what_theory_says():
    """(p - 1) / (m + p - 1) of the step, p groups and m microbatches; 1/v of it with v chunks."""
    bubble = 3 / 11
    assert idle("gpipe")[1] == pytest.approx(bubble, abs=0.01)
    assert idle("1f1b")[1] == pytest.approx(bubble, abs=0.01)
    v = 2
    assert idle("interleaved", v)[1] == pytest.approx(3 / v / (8 + 3 / v), abs=0.01)
    assert idle("zero_bubble")[1] < 0.6 * bubble


def test_memory_is_what_theory_says():
    """GPipe holds all microbatches, the others no more than the pipeline is long."""
    each = 4 << 30
    peaks = {s: idle(s)[0].memory for s in ("gpipe", "1f1b", "zero_bubble")}
    assert peaks["gpipe"][0] == 8 * each
    assert peaks["1f1b"] == tuple(k * each for k in (4, 3, 2, 1))
    assert max(peaks["zero_bubble"]) == 4 * each


def test_inference_runs_forward_alone():
    model = replace(placed(2, 3, "1f1b"), training=False)
    assert {t.name for order in orders(model) for t in order} == {"forward"}
    assert deadlock(model) is None


def test_an_interleaved_schedule_takes_whole_packs():
    with pytest.raises(PlacedError, match="microbatches by the length of the pipeline"):
        orders(placed(4, 6, "interleaved", 2))


def test_a_circle_is_found_and_named():
    model = placed(2, 2, "1f1b")
    first, second = (list(order) for order in orders(model))
    # The first group wants the gradient before it sends what the second needs to make it.
    first.remove(Turn("forward", 0, 1))
    first.insert(first.index(Turn("backward", 0, 0)) + 1, Turn("forward", 0, 1))
    early = [Turn("forward", 1, 1), *[t for t in second if t != Turn("forward", 1, 1)]]
    message = deadlock(model, [tuple(first), tuple(early)])
    assert message is not None
    assert "a circle" in message
    assert "forward of stage 1, microbatch 1" in message


def test_messages_out_of_order_are_found():
    model = placed(2, 2, "gpipe")
    first, second = orders(model)
    swapped = (second[1], second[0], *second[2:])
    message = deadlock(model, [first, swapped])
    assert message is not None
    assert "after that of" in message


def test_a_pass_that_never_comes_is_found():
    model = placed(2, 2, "gpipe")
    first, second = orders(model)
    message = deadlock(model, [first[1:], second])
    assert message is not None
    assert "never comes" in message
