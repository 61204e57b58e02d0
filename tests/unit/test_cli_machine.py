"""`whet machine`: list, show with changes, measure."""

from __future__ import annotations

import json

import pytest

from tests.unit.run.test_calibrate import FOUND, HOST
from whet import cli
from whet.machine import preset, topology
from whet.run import calibrate


def test_list(capsys, tmp_path):
    file = tmp_path / "machines.json"
    assert cli.main(["machine", "list", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in preset.presets())
    assert json.loads(file.read_text()) == list(preset.presets())


def test_show_with_a_change(capsys):
    assert cli.main(["machine", "show", "h100x8:16,link.bandwidth=25"]) == 0
    shown = capsys.readouterr().out
    assert "128 devices" in shown
    assert "bandwidth: 25" in shown
    assert "23 GB/s" in shown  # of 25, what collectives reach


@pytest.mark.parametrize(
    ("words", "message"),
    [(["show"], "which machine?"), (["show", "h100"], "did you mean h100x8")],
)
def test_refusals(capsys, words, message):
    assert cli.main(["machine", *words]) == 1
    assert message in capsys.readouterr().err


def test_measure_writes_a_machine(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "measured", lambda *_: calibrate._text(HOST, 2, FOUND))
    out = tmp_path / "mine.yaml"
    assert cli.main(["machine", "measure", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert topology(str(out)).size == 2
