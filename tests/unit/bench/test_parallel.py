"""The parallel suite: published runs stay predicted, and the delta stays exact."""

from __future__ import annotations

import argparse

import pytest

from bench import parallel
from bench.parallel import published, simulator, transformer
from whet.errors import InputError

RUNS = {run.name: run for run in published.runs()}
QUICK = [name for name, run in RUNS.items() if run.split.pipeline * run.split.microbatches < 100]


def test_parameters_and_operations_are_the_papers():
    """Layers and vocabulary of GPT-3; 96 B s l h^2 (...) counts one more forward."""
    model = transformer.Decoder(96, 12288, 96, 51200, 2048)
    parameters = model.layers * model.layer_parameters + model.vocabulary * model.hidden
    assert parameters == pytest.approx(175e9, rel=0.01)
    paper = 72 * 2048 * 96 * 12288**2 * (1 + 2048 / (6 * 12288) + 51200 / (12 * 96 * 12288))
    assert model.model_flops(1) == pytest.approx(paper, rel=1e-6)


def test_more_than_six_published_runs_are_within_15_percent():
    errors = {name: published.predicted(RUNS[name])["error"] for name in QUICK}
    within = [name for name, error in errors.items() if abs(error) <= 0.15]
    sources = {RUNS[name].source for name in within}
    assert len(within) >= 8
    assert len(sources) >= 3


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in RUNS if "A100" in name])
def test_every_run_on_an_a100_is_near(name):
    assert abs(published.predicted(RUNS[name])["error"]) < 0.2


def test_pages_and_records():
    records = [published.predicted(RUNS[name]) for name in QUICK[:2]]
    page = published.page(records)
    assert QUICK[0] in page
    assert "reproduce: whet bench --suite parallel --part published" in page


def test_delta_and_full_agree_on_a_case():
    found = simulator.compared(simulator.cases(small=True)[2], proposals=4, fulls=1)
    assert found["equal"]
    assert found["devices"] == 64
    assert "yes" in simulator.page([found])


def test_unknown_part():
    with pytest.raises(InputError, match="no such part"):
        parallel.measure(argparse.Namespace(part="fortunes"), print)
