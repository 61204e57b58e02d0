"""Topologies: their hierarchy, how groups use it, presets as text, and values changed by path."""

from __future__ import annotations

import pytest
import yaml

from whet.errors import WhetError
from whet.machine import Mesh, preset, topology
from whet.machine.link import Link, Timing


@pytest.mark.parametrize("name", preset.presets())
def test_presets_read_and_say_where_they_come_from(name):
    found = topology(name)
    assert found.sources
    assert found.about
    for device in found.kinds():
        assert device.memory > 0
        assert device.flops_s("float32") > 0
    assert preset.read(yaml.safe_load(preset.write(preset.text_of(name))), name) == found


def test_sizes_by_nodes():
    assert [topology(f"h100x8:{n}").size for n in (1, 2, 128)] == [8, 16, 1024]
    assert topology("p100x4:4").size == 16
    assert topology("k80x4:16").size == 64


def test_devices_meet_at_the_innermost_level_that_holds_both():
    k80 = topology("k80x4:2")
    assert [k80.meeting(0, d) for d in (1, 2, 3, 4, 7)] == [0, 1, 1, 2, 2]
    mixed = topology("a100-t4")
    assert [d.name for d in mixed.kinds()] == ["a100-40gb", "t4"]
    assert mixed.device(7).name == "a100-40gb"
    assert mixed.device(8).name == "t4"
    assert mixed.meeting(0, 8) == 1
    assert mixed.meeting(8, 11) == 0


def test_unknown_device():
    with pytest.raises(WhetError, match="no device 8"):
        topology("h100x8").device(8)


def test_spans_count_who_shares_a_link():
    """Eight tensor groups of each node stay inside; eight data groups leave each node."""
    of, mesh = topology("h100x8:4"), Mesh.of((("data", 4), ("tensor", 8)))
    (inside,) = of.spans(mesh, ("tensor",))
    assert (inside.level, inside.units, inside.members, inside.groups) == (0, 8, 1, 1)
    (outside,) = of.spans(mesh, ("data",))
    assert (outside.level, outside.units, outside.members, outside.groups) == (1, 4, 1, 8)
    both = of.spans(mesh, ("data", "tensor"))
    assert [(s.level, s.units, s.members, s.groups) for s in both] == [(0, 8, 1, 1), (1, 4, 8, 1)]


def test_flow_shares_ports_and_media():
    own = Link("own", 0.0, 10.0, ports=8)
    assert own.flow(members=1, groups=8, units=4) == 10.0  # a port for each
    assert own.flow(members=8, groups=1, units=4) == 80.0  # all ports for one group
    one = Link("one", 0.0, 10.0, ports=1)
    assert one.flow(members=1, groups=4, units=2) == 2.5
    bus = Link("bus", 0.0, 10.0, medium=True)
    assert bus.flow(members=1, groups=2, units=2) == 2.5


def test_measured_collectives_interpolate():
    timing = Timing("all_reduce", 2, ((1000, 1e-3), (3000, 2e-3)))
    assert timing.seconds(10) == 1e-3
    assert timing.seconds(2000) == pytest.approx(1.5e-3)
    assert timing.seconds(5000) == pytest.approx(3e-3)  # at the bandwidth of the last piece


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("link.bandwidth=25", lambda c: c.network[-1].link.bandwidth == 25e9),
        ("links.nvswitch.latency=1", lambda c: c.nodes[0].inside[0].link.latency == 1e-6),
        ("device.memory=40", lambda c: c.device(0).memory == 40_000_000_000),
        ("devices.h100-sxm.peak.bfloat16=500", lambda c: c.device(0).flops_s("bfloat16") == 5e14),
        ("device.curves.0.top=0.5", lambda c: c.device(0).curves[0].top == 0.5),
        ("nodes.count=3", lambda c: c.size == 24),
        ("links.nvswitch.medium=true", lambda c: c.nodes[0].inside[0].link.medium),
    ],
)
def test_any_value_can_be_changed_by_path(change, value):
    before, after = topology("h100x8:2"), topology(f"h100x8:2,{change}")
    assert value(after)
    assert after.fingerprint() != before.fingerprint()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100", "did you mean h100x8"),
        ("h100x8:0", "whole number of nodes"),
        ("h100x8,link.width=3", "has no link.width"),
        ("h100x8,links=3", "single values"),
        ("h100x8,link.bandwidth=fast", "another type"),
        ("h100x8,link.bandwidth", "needs a value"),
        ("nowhere.yaml", "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(name, message):
    with pytest.raises(WhetError) as error:
        topology(name)
    assert message in str(error.value)


def test_files(tmp_path):
    text = preset.text_of("p100x4:2")
    file = tmp_path / "mine.yaml"
    file.write_text(preset.write(text))
    assert topology(str(file)).nodes == topology("p100x4:2").nodes
    file.write_text(preset.write({**text, "version": 9}))
    with pytest.raises(WhetError, match="not a machine that this whet reads"):
        topology(str(file))
    links = {"infiniband": {"latency": 1, "bandwith": 3}}
    with pytest.raises(WhetError) as error:
        preset.read({**text, "links": {**text["links"], **links}})
    assert "did you mean bandwidth" in str(error.value)
    with pytest.raises(WhetError, match="no link 'carrier pigeon'"):
        preset.read({**text, "network": [{"link": "carrier pigeon"}]})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("link.bandwidth=25..400", (25, 50, 100, 200, 400)),
        ("link.latency=1..20*4", (1, 4, 16, 20)),
        ("nodes.count=2,8", (2, 8)),
    ],
)
def test_sweeps(text, values):
    assert preset.sweep(text) == (text.partition("=")[0], values)


def test_sweep_that_is_none():
    with pytest.raises(WhetError, match="a sweep names values"):
        preset.sweep("link.bandwidth=400..25")


def test_mesh_groups():
    mesh = Mesh.of((("data", 2), ("tensor", 3)), first=6)
    assert mesh.groups(("tensor",)) == ((6, 7, 8), (9, 10, 11))
    assert mesh.groups(("data",)) == ((6, 9), (7, 10), (8, 11))
    assert mesh.groups(("data", "tensor")) == ((6, 7, 8, 9, 10, 11),)
    assert mesh.size("data", "pipeline") == 2
    with pytest.raises(WhetError, match="no axis 'expert'"):
        mesh.groups(("expert",))
    with pytest.raises(WhetError, match="another number of devices"):
        Mesh((("data", 2),), (0, 1, 2))
    with pytest.raises(WhetError, match="twice"):
        Mesh((("data", 2),), (1, 1))


@pytest.mark.parametrize(
    ("name", "size", "units"),
    [
        ("h100x8,devices=64", 64, [[8]]),
        ("h100x8:128,devices=12", 12, [[8], [4]]),
        ("k80x4,devices=2", 2, [[2, 1]]),
        ("host,devices=3", 3, [[3]]),
        ("host:2", 4, [[4]]),
        ("a100-t4,devices=16", 16, [[8], [4]]),
    ],
)
def test_a_machine_of_so_many_devices(name, size, units):
    made = topology(name)
    assert made.size == size
    assert [[level.units for level in n.inside] for n in made.nodes] == units
    assert made.meeting(0, size - 1) < made.depth


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("h100x8,devices=0", "whole number of devices"),
        ("h100x8,devices=many", "whole number of devices"),
        ("a100-t4,devices=12", "several kinds of nodes"),
        ("k80x4,devices=3", "units of 2 devices"),
    ],
)
def test_a_machine_that_cannot_have_so_many(name, text):
    with pytest.raises(WhetError, match=text):
        topology(name)


def test_several_nodes_are_joined_by_something():
    text = dict(preset.text_of("host"))
    text["nodes"] = [{**text["nodes"][0], "count": 2}]
    with pytest.raises(WhetError, match="nothing that joins them"):
        preset.read(text)
