"""Timelines: the same run as the simulator's, as spans, as Chrome's JSON and as a picture."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from tests import placements
from whet.machine import topology
from whet.parallel.simulate import Simulator
from whet.parallel.timeline import PASS, chrome, timeline
from whet.report.timeline import svg


def placed(seed):
    of = topology("p100x4:2")
    return Simulator(of), placements.placed(random.Random(seed), of, devices=8)


@pytest.mark.parametrize("seed", range(8))
def test_spans_are_what_was_simulated(seed):
    simulator, model = placed(seed)
    found, line = simulator.simulate(model), timeline(simulator, model)
    assert line.seconds == found.seconds
    assert line.groups == model.groups
    for g in range(model.groups):
        bars = [s for s in line.spans if s.group == g and s.stream == PASS]
        for before, after in pairwise(bars):
            assert before.end <= after.begin + 1e-12
        assert max((b for _, b in line.memory[g]), default=0) <= max(found.memory)
    streams = {}
    for s in line.spans:
        if s.stream != PASS:
            streams.setdefault((s.group, s.stream), []).append(s)
    for spans in streams.values():  # a stream does one thing at a time
        for before, after in pairwise(spans):
            assert before.end <= after.begin + 1e-12 or before.stream == "message"


@pytest.mark.parametrize("seed", range(4))
def test_steps_fill_their_pass(seed):
    """What runs inside a pass ends with it."""
    simulator, model = placed(seed)
    line = timeline(simulator, model)
    bars = {(s.group, s.kind, s.stage, s.microbatch): s for s in line.spans if s.stream == PASS}
    for s in line.spans:
        if s.stream not in (PASS, "message"):
            bar = bars[s.group, s.kind, s.stage, s.microbatch]
            assert bar.begin - 1e-12 <= s.begin <= s.end <= bar.end + 1e-12


def test_chrome_reads_it():
    simulator, model = placed(1)
    events = json.loads(json.dumps(chrome(timeline(simulator, model))))["traceEvents"]
    assert {e["ph"] for e in events} == {"M", "X", "C"}
    for e in events:
        if e["ph"] == "X":
            assert e["dur"] >= 0
            assert {"name", "pid", "tid", "ts", "cat"} <= e.keys()


def test_the_picture_is_well_formed():
    simulator, model = placed(2)
    line = timeline(simulator, model)
    root = ElementTree.fromstring(svg(line, "a <model> & more"))
    text = " ".join(root.itertext())
    assert "a <model> & more" in text
    for g in range(model.groups):
        assert f"group {g}" in text
    assert svg(timeline(simulator, model, steps=False)).count("<rect") < svg(line).count("<rect")
