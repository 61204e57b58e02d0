"""Measuring the host as a machine: what becomes of the times, and once really."""

from __future__ import annotations

import pytest

from whet.errors import WhetError
from whet.machine import Machine, preset
from whet.run import calibrate

HOST = Machine("host", "Host 1", (), 128, 2, 2, 8_000_000_000)
FOUND = {
    "launch": 1e-6,
    "call": 1e-6,
    "contraction": [[[64, 64, 64], 1e-6 + 2 * 64**3 / 50e9], [[256, 64, 64], 1e-3]],
    "window": [[[196, 16, 144], 1e-4]],
    "stream": [[4092, 2e-6], [1 << 20, 1e-4]],
    "gather": [[32768, 1e-5]],
    "pool": [[32768, 2e-5]],
    "vector": 256 * 1024 * 5 / 4e9,
    "collectives": {"2": {"all_reduce": [[1024, 1e-4], [1 << 20, 2e-3]]}},
    "link": [50e-6, 50e-6 + calibrate.PING / 2e9],
    "slowdown": [1.5, 2.0],
}


def test_times_become_a_machine():
    text = calibrate._text(HOST, 2, FOUND)
    found = preset.read(text)
    device = found.device(0)
    assert found.size == 2
    assert device.memory == 4_000_000_000
    assert device.slowdown == (1.5, 2.0)
    assert device.eager
    flops = 2 * 64**3
    seconds = device.seconds("contraction", flops, 0, (1, 64, 64, 64), "float32")
    assert seconds == pytest.approx(1e-6 + flops / 50e9, rel=1e-3)
    assert device.seconds("stream", 0, 1 << 20) == pytest.approx(1e-4, rel=1e-3)
    assert found.timing("all_reduce", 2).seconds(1024) == pytest.approx(1e-4)
    assert found.timing("all_reduce", 4) is None
    assert found.network == ()
    assert device.flops_s("vector_float32") == pytest.approx(4e9, rel=1e-3)
    link = found.nodes[0].inside[0].link
    assert (link.latency, link.bandwidth) == pytest.approx((50e-6, 2e9), rel=1e-3)


def test_written_and_read_again(tmp_path):
    file = tmp_path / "host.yaml"
    text = calibrate._text(HOST, 2, FOUND)
    file.write_text(preset.write(text))
    assert preset.read(preset.parse(file)) == preset.read(text)


def test_the_slowest_process_counts():
    assert calibrate._slowest([{"a": [[1, 2.0]]}, {"a": [[1, 3.0]]}]) == {"a": [[1, 3.0]]}


def test_one_process_has_no_links():
    with pytest.raises(WhetError, match="between processes"):
        calibrate.measured(1)


def test_a_process_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate.sys, "executable", "false")
    with pytest.raises(WhetError, match="measuring failed in process 0"):
        calibrate.measured(2)


@pytest.mark.full
def test_this_host_can_be_measured():
    found = preset.read(calibrate.measured(2))
    device = found.device(0)
    assert device.launch > 0
    assert min(device.slowdown) >= 1.0
    assert all(s > 0 for t in found.timings for _, s in t.points)
    assert {t.what for t in found.timings} == set(calibrate.COLLECTIVES)
