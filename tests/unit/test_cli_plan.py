"""`whet plan` and `whet run PLAN`: differences, staleness, refusals, and one real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plans import PLANS, planned
from whet import cli
from whet.capture.training import captured
from whet.parallel import planfile
from whet.parallel.search import Found


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A plan of two stages, as `whet parallelize` writes it."""
    made = planned("dlrm", PLANS["pipeline"])
    ran = made.library.simulator.simulate(made.placed)
    found = Found(made.strategy, ran, {}, 1.0, 1, 1, 0.0, None, "test")
    source = {"model": made.name, "dtype": made.dtype, "machine": "h100x8"}
    file = tmp_path_factory.mktemp("plan") / "plan.yaml"
    file.write_text(planfile.write(made.library, found, source))
    return file


def test_diff_says_each_place(plan, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(plan.read_text().replace("zero: 0", "zero: 3"))
    assert cli.main(["plan", "diff", str(plan), str(other)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "stages[0].zero: 0 -> 3", "stages[1].zero: 0 -> 3",
    ]  # fmt: skip
    assert cli.main(["plan", "diff", str(plan), str(plan)]) == 0


def test_a_stale_plan_is_refused_with_what_changed(plan, tmp_path, capsys):
    assert cli.main(["plan", "check", str(plan)]) == 0
    old = tmp_path / "old.yaml"
    data = planfile.load(plan.read_text())
    old.write_text(plan.read_text().replace(data["model"]["blocks"][3], "0" * 24))
    assert cli.main(["plan", "check", str(old)]) == 1
    assert "have another structure" in capsys.readouterr().out
    assert cli.main(["run", str(old)]) == 1
    assert "the plan is for something else" in capsys.readouterr().err


def test_choices_survive_the_file(plan):
    made = planned("dlrm", PLANS["pipeline"])
    data = planfile.load(plan.read_text())
    for part in made.strategy.parts:
        for place in range(part.first, part.last):
            said = planfile.choices(data, made.library, part, place)
            found = made.library.choices_of(part, place, made.strategy.microbatches)
            assert said
            assert all(found[n] == c for n, c in said.items())
    assert captured(made.name, 8, made.dtype).order == made.training.model.order


@pytest.mark.full
def test_a_plan_is_proven_and_run(plan, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    answer = tmp_path / "answer.json"
    words = [
        "run",
        str(plan),
        "--steps",
        "3",
        "--compare",
        "--limit",
        "200s",
        "--json",
        str(answer),
    ]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "proven on 2 ranks" in said.err
    found = json.loads(answer.read_text())
    assert len(found["losses"]) == 3
    assert found["loss_error"] < 1e-9
    assert found["parameter_error"] < 1e-9
