"""The cost model's training and its judgement, on tables made up here."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest

from bench.tuning import recorder, train
from whet.errors import InputError
from whet.kernel.features import NAMES
from whet.kernel.prior import BASE, CARD, pretrained


def table(name: str, family: str, seed: int) -> dict[str, object]:
    """A task whose estimate is wrong by what one feature says, for all tasks the same one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, len(NAMES)))
    seconds = [float(s) * (seed + 1) for s in np.exp(x[:, 3] + math.log(2) * x[:, BASE])]
    failed = [None, *seconds[1:]]
    return {"name": name, "family": family, "features": x.tolist(), "seconds": failed}


@pytest.fixture
def recorded(tmp_path):
    tasks = [table(f"t{k}", f"f{k % 2}", k) for k in range(4)]
    text = json.dumps({"tasks": tasks})
    (tmp_path / "avx512f.json.gz").write_bytes(gzip.compress(text.encode()))
    return train.tables("avx512f", tmp_path)


def test_what_is_learnt_holds_for_tasks_and_families_not_seen(recorded):
    rows = train.judged(recorded, lambda line: None)
    assert len(rows) == 4
    for figure in ("accuracy, task out", "accuracy, family out"):
        assert train.mean(rows, figure) > 0.8
    assert train.mean(rows, "slowdown, task out") < train.mean(rows, "slowdown, random")
    assert train.mean(rows, "trials, task out") < train.mean(rows, "trials, random")
    page = train.shown(rows)
    assert "t3" in page
    assert page.splitlines()[-1].startswith("all")


def test_accuracy_counts_pairs_that_differ_enough():
    seconds = np.array([1.0, 1.01, 2.0, np.inf])
    assert train.accuracy(np.array([2.0, 1.0, 3.0, 4.0]), seconds) == 1.0  # 1% is noise
    assert train.accuracy(np.array([4.0, 4.0, 3.0, 1.0]), seconds) == 0.0
    assert train.accuracy(np.zeros(4), seconds) == 0.5
    assert train.slowdown(np.arange(4.0)[::-1], seconds) == 1.0
    assert train.trials(np.array([3.0, 4.0, 2.0, 1.0]), seconds) == 3
    assert train.trials(np.array([1.0, 2.0, 3.0, 4.0]), seconds) == 1


def test_tables_of_other_features_are_refused(tmp_path):
    bad = {**table("t", "f", 0), "features": [[1.0]] * 400}
    text = json.dumps({"tasks": [bad]}).encode()
    (tmp_path / "avx512f.json.gz").write_bytes(gzip.compress(text))
    with pytest.raises(InputError, match="other features"):
        train.tables("avx512f", tmp_path)
    assert train.tables("avx2", tmp_path) == []


def test_the_model_that_ships_fits_and_has_its_card():
    model = pretrained()
    assert model is not None
    assert model.features == len(NAMES)
    assert model.score(np.zeros((3, len(NAMES)))).shape == (3,)
    assert "Trained on" in CARD.read_text()


def test_tasks_are_of_many_families_and_read_back():
    from whet.ir.text import parse_graph

    tasks = recorder.tasks("avx512f")
    assert len(tasks) >= 24
    assert len({t["family"] for t in tasks}) >= 9
    assert all(parse_graph(t["graph"]).results for t in tasks)
    assert len(recorder.tasks("avx2")) >= 8


def test_a_machine_of_the_narrower_set():
    assert recorder.machine_of("avx2").vector_bits == 256
    assert "avx512f" not in recorder.machine_of("avx2").isa


def test_a_picture_has_a_line_and_a_band_for_each_curve(recorded):
    from bench.tuning import picture

    t = recorded[0]
    best = int(np.argmin(t.seconds))
    first = picture.so_far(t.seconds, np.array([best, *range(20)]))
    assert (first == 1.0).all()
    last = picture.so_far(t.seconds, np.argsort(-t.seconds))
    assert last[0] == 30.0  # it did not run
    text = picture.drawn({"a": picture.over([first]), "b": picture.over([last, last])}, "t")
    assert text.count("<polygon") == 2
    assert 'stroke-width="2"' in text
