"""Collectives: their cost against closed forms, on one level and on two."""

from __future__ import annotations

import pytest

from whet.errors import WhetError
from whet.machine import Mesh, topology
from whet.machine.link import Timing
from whet.parallel import collective
from whet.parallel.placed import COLLECTIVES, Placed, Stage

GIGA = 1 << 30
OF = topology("h100x8:4")
MESH = Mesh.of((("data", 4), ("tensor", 8)))
INSIDE = 450e9 * OF.nodes[0].inside[0].link.efficiency


def seconds(what, axes, bytes, of=OF, mesh=MESH):
    return collective.seconds(of, mesh, what, axes, bytes)[0]


def test_large_ones_are_bound_by_the_ring():
    ring = 2 * 7 / 8 * GIGA / INSIDE + 2 * 7 * 3e-6
    assert seconds("all_reduce", ("tensor",), GIGA) == pytest.approx(ring)


def test_small_ones_are_bound_by_latency():
    assert seconds("all_reduce", ("tensor",), 8) == pytest.approx(2 * 3 * 3e-6, rel=1e-3)


def test_halves_of_an_all_reduce():
    whole = seconds("all_reduce", ("tensor",), GIGA)
    halves = sum(seconds(w, ("tensor",), GIGA) for w in ("reduce_scatter", "all_gather"))
    assert halves == pytest.approx(whole, rel=0.01)


def test_groups_that_leave_a_node_together_share_its_ports():
    alone = Mesh((("data", 4),), (0, 8, 16, 24))
    slow = topology("h100x8:4,link.ports=1")
    one, eight = (seconds("all_reduce", ("data",), GIGA, slow, m) for m in (alone, MESH))
    assert eight == pytest.approx(8 * one, rel=0.01)


def test_a_hierarchical_one_sends_only_a_part_over_the_network():
    time, name = collective.seconds(OF, MESH, "all_reduce", ("data", "tensor"), GIGA)
    inside = 2 * 7 / 8 * GIGA / INSIDE
    outside = 2 * 3 / 4 * GIGA / (8 * 50e9 * 0.92)
    assert time <= inside + outside + 1e-3
    slow, name = collective.seconds(
        topology("h100x8:4,link.bandwidth=5"), MESH, "all_reduce", ("data", "tensor"), GIGA
    )
    assert slow > time
    assert name in ("hierarchical", "tree")


@pytest.mark.parametrize("what", COLLECTIVES)
def test_more_bytes_never_take_less(what):
    for axes in (("tensor",), ("data",), ("data", "tensor")):
        times = [seconds(what, axes, 4**k) for k in range(16)]
        assert times == sorted(times)
        assert seconds(what, axes, GIGA) > 0


@pytest.mark.parametrize("what", COLLECTIVES)
def test_one_rank_has_nothing_to_do(what):
    assert seconds(what, ("data",), GIGA, mesh=Mesh.of((("data", 1), ("tensor", 8)))) == 0.0


def test_what_was_measured_goes_first():
    from dataclasses import replace

    of = replace(OF, timings=(Timing("all_reduce", 8, ((1, 5.0), (2, 6.0))),))
    assert collective.seconds(of, MESH, "all_reduce", ("tensor",), 1) == (5.0, "measured")


def test_unknown_name():
    with pytest.raises(WhetError, match="no such collective"):
        seconds("all_together", ("tensor",), 1)


def pipeline(of, groups, each, output=1 << 20):
    """Stages of `each` devices in a row."""
    meshes = [Mesh.of((("tensor", each),), first=g * each) for g in range(groups)]
    stages = tuple(Stage(m, (), output=output) for m in meshes)
    return collective.channels(of, Placed(stages))


def test_messages_take_latency_and_bandwidth():
    found = pipeline(OF, 2, 8)
    expected = 6e-6 + (1 << 20) / (50e9 * 0.92)
    assert found[0, 1].ticks == pytest.approx(expected * 1e12, rel=1e-6)


def test_messages_both_ways_share_the_ports_of_a_node():
    """A middle stage sends forward and back through the same eight ports."""
    found = pipeline(OF, 3, 8)
    assert set(found[1, 2].claims) & set(found[1, 0].claims)
    assert not set(found[0, 1].claims) & set(found[1, 0].claims)


def test_one_narrow_port_for_a_whole_stage():
    one = pipeline(topology("p100x4:2"), 2, 4)
    port = 10e-6 + 4 * (1 << 20) / (12.5e9 * 0.85)
    assert one[0, 1].ticks == pytest.approx(port * 1e12, rel=1e-6)


def test_stages_in_one_node_share_its_port():
    """Four stages in each node: their data axes leave it through one port at the same time."""
    of = topology("p100x4:4")
    meshes = [Mesh((("data", 4),), tuple(range(g, 16, 4))) for g in range(4)]
    beside = collective.neighbours(of, meshes)
    assert [len(others) for others in beside] == [3, 3, 3, 3]
    alone = collective.seconds(of, meshes[0], "all_reduce", ("data",), GIGA)[0]
    shared = collective.seconds(of, meshes[0], "all_reduce", ("data",), GIGA, beside[0])[0]
    assert shared == pytest.approx(4 * alone, rel=0.01)


def test_stages_of_whole_nodes_have_no_neighbours():
    meshes = [Mesh.of((("data", 2), ("tensor", 4)), first=8 * g) for g in range(4)]
    assert collective.neighbours(OF, meshes) == ((), (), (), ())
