"""The delta equals the full simulation, exactly, on every proposal; and so do symmetric ranks.

`flat.full` expands every device, microbatch and step; `Simulator` solves classes of devices and
equal blocks once and remembers everything across proposals.
"""

from __future__ import annotations

import random

import pytest

from tests import placements
from whet.machine import topology
from whet.parallel.flat import full
from whet.parallel.simulate import Simulator

MACHINES = ("h100x8:1", "p100x4:2", "k80x4:3", "a100-t4")
CHAIN = 5  # proposals, each a change of the one before


def fullest(found, of, stage):
    """The peak of a stage's devices, relative to what the fullest one has."""
    return max(found.memory[d] / of.device(d).memory for d in stage.mesh.devices)


@pytest.mark.parametrize("name", MACHINES)
def test_delta_is_full(name, count):
    of = topology(name)
    simulator = Simulator(of)
    rng = random.Random(name)
    for _ in range(count(25, 520)):
        placed = placements.placed(rng, of, devices=rng.choice((1, 2, 3, 4, 6, 8)), small=True)
        for _ in range(CHAIN):
            fast, slow = simulator.simulate(placed), full(placed, of)
            assert fast.ticks == slow.ticks
            for g in range(placed.groups):
                assert fast.memory[g] / fast.capacity[g] == fullest(slow, of, placed.stages[g])
            starts = simulator.starts(placed)
            assert starts == slow.starts
            placed = placements.changed(rng, placed)


def test_what_is_remembered_changes_nothing(count):
    """A simulator that has seen much says what a fresh one says."""
    of = topology("p100x4:4")
    old, rng = Simulator(of), random.Random(7)
    for _ in range(count(10, 200)):
        placed = placements.placed(rng, of)
        for _ in range(CHAIN):
            assert old.simulate(placed) == Simulator(of).simulate(placed)
            placed = placements.changed(rng, placed)
