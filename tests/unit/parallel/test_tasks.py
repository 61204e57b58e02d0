"""What follows from a stage's choices: gathers, reductions, recomputation, offload, memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from whet.machine import Mesh, topology
from whet.parallel.placed import (
    Block,
    Optimizer,
    Placed,
    PlacedError,
    Run,
    Stage,
    Step,
    Weights,
)
from whet.parallel.simulate import Simulator
from whet.parallel.tasks import passes, resident

MB = 1 << 20
OF = topology("a100x8")
ADAM = Optimizer(state=12, gradient=4)
SIZE = 4096


def kernel(name, **more):
    flops = 2 * SIZE**3
    dims = (1, SIZE, SIZE, SIZE)
    return Step(name, "contraction", flops=flops, dims=dims, dtype="bfloat16", **more)


BLOCK = Block(
    "layer",
    (kernel("one", alloc=(8 * MB,)), kernel("two", alloc=(4 * MB,))),
    (kernel("inputs"), kernel("weights", weight=True, free=(4 * MB, 8 * MB))),
    (Weights("w", 8 * MB, 2, ("data",)),),
    boundary=4 * MB,
)
STAGE = Stage(Mesh.of((("data", 8),)), (Run(BLOCK, 6),))


def names(stage, name, *, last=False):
    found = Counter()
    for segment, times in passes(stage, ADAM, name, last=last):
        for item in segment.items:
            found[item.step.kind] += times
    return found


def simulated(**choices):
    batches = choices.pop("microbatches", 2)
    stage = replace(STAGE, **choices)
    return Simulator(OF).simulate(Placed((stage,), batches, optimizer=ADAM).checked())


@pytest.mark.parametrize(
    ("zero", "forward", "backward", "last", "update"),
    [
        (0, {}, {}, {"all_reduce": 6}, {}),
        (1, {}, {}, {"reduce_scatter": 6}, {"all_gather": 6}),
        (2, {}, {"reduce_scatter": 6}, {"reduce_scatter": 6}, {"all_gather": 6}),
        (
            3,
            {"all_gather": 6},
            {"all_gather": 6, "reduce_scatter": 6},
            {"all_gather": 6, "reduce_scatter": 6},
            {},
        ),
    ],
)
def test_collectives_of_zero(zero, forward, backward, last, update):
    stage = replace(STAGE, zero=zero)
    found = {
        "forward": names(stage, "forward"),
        "backward": names(stage, "backward"),
        "last": names(stage, "backward", last=True),
        "update": names(stage, "update"),
    }
    expected = {"forward": forward, "backward": backward, "last": last, "update": update}
    for name, counts in found.items():
        moved = {k: n for k, n in counts.items() if k not in ("contraction", "stream", "drop")}
        assert moved == expected[name], name


def test_resident_bytes_of_zero():
    """Six blocks of 8 Mi elements: 2 bytes to compute with, 4 of gradient, 12 of state."""
    elements = 6 * 8 * MB
    for zero, bytes in ((0, 18), (1, 6 + 12 / 8), (2, 2 + 16 / 8), (3, 18 / 8)):
        held = sum(resident(replace(STAGE, zero=zero), ADAM, training=True))
        assert held == elements * bytes


def test_zero_saves_memory_and_gathers_cost_time():
    runs = [simulated(zero=zero) for zero in range(4)]
    peaks = [r.memory[0] for r in runs]
    assert peaks == sorted(peaks, reverse=True)
    assert runs[3].seconds > runs[1].seconds


def test_gathers_run_beside_the_block_before():
    """With enough to compute, only the first gather of a pass is waited for."""
    found = simulated(zero=3, microbatches=1)
    one = 8 * MB * 2 * 7 / 8 / (300e9 * 0.78)
    plain = simulated(zero=1, microbatches=1)
    assert found.passes[0, "forward"] < plain.passes[0, "forward"] * 1.12 + 2 * one


def test_recomputation_costs_a_forward_and_saves_activations():
    plain, again = simulated(), simulated(recompute=True)
    assert again.memory[0] < plain.memory[0]
    forward = plain.passes[0, "forward"]
    assert again.passes[0, "forward"] == pytest.approx(forward)
    extra = again.passes[0, "backward"] - plain.passes[0, "backward"]
    assert extra == pytest.approx(forward, rel=0.01)


def test_peak_of_recomputation():
    """What enters each block, and one block's activations."""
    base = sum(resident(STAGE, ADAM, training=True))
    assert simulated(recompute=True).memory[0] == base + 6 * 4 * MB + 12 * MB
    assert simulated().memory[0] == base + 6 * 12 * MB


def test_offloaded_activations_leave_and_come_back():
    stage = replace(STAGE, offload=frozenset({"activations"}))
    assert names(stage, "forward")["copy"] == names(stage, "backward")["copy"] == 6
    found = simulated(offload=frozenset({"activations"}))
    assert found.memory[0] < simulated().memory[0]
    assert found.seconds > simulated().seconds


def test_an_offloaded_optimizer_holds_no_state():
    plain = resident(STAGE, ADAM, training=True)
    stage = replace(STAGE, offload=frozenset({"optimizer"}))
    assert sum(plain) - sum(resident(stage, ADAM, training=True)) == 6 * 8 * MB * 12
    assert names(stage, "update") == {"copy": 12}


def test_halves_of_backward():
    halves = [passes(STAGE, ADAM, name) for name in ("inputs", "weights")]
    steps = [[i.step.name for segment, _ in half for i in segment.items] for half in halves]
    assert steps == [["inputs"], ["weights"]]


def test_equal_blocks_are_one_segment():
    ((_, times),) = passes(STAGE, ADAM, "forward")
    assert times == 6


def test_uneven_shares_take_as_long_as_the_largest():
    even, uneven = simulated(), simulated(shares=(2.0, *[6 / 7] * 7))
    assert uneven.passes[0, "forward"] == pytest.approx(2 * even.passes[0, "forward"], rel=0.02)


def test_a_mixed_stage_waits_for_its_slow_devices():
    """Data parallel over A100 and T4: even shares wait for the T4s, fitting ones do not."""
    of = topology("a100-t4")
    mesh = Mesh.of((("data", 16),))
    seconds = []
    for shares in ((), (*[1.8] * 8, *[0.2] * 8)):
        stage = replace(STAGE, mesh=mesh, shares=shares, zero=3)
        seconds.append(Simulator(of).simulate(Placed((stage,), optimizer=ADAM)).seconds)
    assert seconds[1] < 0.6 * seconds[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(zero=4), "no such ZeRO"),
        (dict(offload=frozenset({"hopes"})), "cannot be offloaded"),
        (dict(shares=(1.0,)), "share for each index"),
        (dict(mesh=Mesh.of((("tensor", 8),))), "no such axis"),
    ],
)
def test_a_stage_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(PlacedError, match=message):
        Placed((replace(STAGE, **change),)).checked()


def test_a_device_belongs_to_one_stage():
    with pytest.raises(PlacedError, match="one stage"):
        Placed((STAGE, STAGE)).checked()


def test_steps_wait_for_earlier_ones_only():
    block = replace(BLOCK, forward=(kernel("one", after=(0,)),))
    with pytest.raises(PlacedError, match="earlier steps only"):
        Placed((replace(STAGE, runs=(Run(block),)),)).checked()


def test_gradients_alone_may_meet_along_an_axis():
    """Nothing else communicates along "tensor"; the classes of devices know of it all the same."""
    wait = Step("gather", "all_gather", bytes=64 * MB, axes=("tensor",))
    mesh = Mesh.of((("data", 2), ("tensor", 4)))
    ran = simulated(mesh=mesh, runs=(Run(replace(BLOCK, finish=(wait,)), 6),))
    without = simulated(mesh=mesh, runs=(Run(BLOCK, 6),))
    assert ran.seconds > without.seconds


def test_an_eager_stage_waits_for_what_it_issues():
    """One stream: the step is the sum of its parts; gradients are added by steps of their own."""
    stage = replace(STAGE, eager=True, zero=3)
    kinds = names(stage, "backward", last=True)
    assert (kinds["all_gather"], kinds["reduce_scatter"], kinds["stream"]) == (6, 6, 6)
    for name in ("forward", "backward", "update"):
        for segment, _ in passes(stage, ADAM, name, last=True):
            assert {(item.stream, item.drain) for item in segment.items} == {("compute", ())}
    ran = simulated(eager=True, zero=3)
    assert sum(ran.work[0].values()) == pytest.approx(ran.seconds, rel=1e-6)
    assert ran.seconds > simulated(zero=3).seconds


def test_a_step_of_several_calls_takes_as_many_launches():
    device = OF.device(0)
    once, thrice = (device.seconds("stream", 0, 0, calls=n) for n in (1, 3))
    assert once == device.launch > 0
    assert thrice == pytest.approx(3 * once)
