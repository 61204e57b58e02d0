"""Tables, and searches replayed over them."""

from __future__ import annotations

import argparse
import gzip
import json
import math

import numpy as np
import pytest

import bench.tuning as suite
from bench.tuning import replay
from bench.tuning.table import read_kernel_tuner
from whet.errors import InputError


def cache(device="here", slow=1.0):
    """A cache as Kernel Tuner writes it, with both of its ways to say that something failed."""
    entries = {}
    for x in (1, 2, 4, 8, 16, 32):
        for y in (1, 2, 4, 8):
            for flag in (0, 1):
                time = slow * (1 + abs(math.log2(x) - 3) + abs(math.log2(y) - 1) + 0.5 * flag)
                entries[f"{x},{y},{flag}"] = {"x": x, "y": y, "flag": flag, "time": time}
    entries["32,8,1"]["time"] = "RuntimeFailedConfig"
    entries["32,8,0"]["time"] = 1e20
    names = ["x", "y", "flag"]
    return {"device_name": device, "kernel_name": "k", "tune_params_keys": names, "cache": entries}


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "cache.json"
    file.write_text(json.dumps(cache()))
    return read_kernel_tuner(file)


def test_reading(table, tmp_path):
    assert (table.name, table.best) == ("k@here", 1e-3)
    assert table.parameters == ("x", "y", "flag")
    assert sum(map(math.isinf, table.seconds.values())) == 2
    packed = tmp_path / "cache.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(cache()).encode()))
    assert read_kernel_tuner(packed).seconds == table.seconds


def test_features(table):
    x = table.features([(8.0, 2.0, 1.0)])
    assert x.tolist() == [[3.0, 1.0, 1.0]]
    assert table.relations([(8.0, 2.0, 1.0)]).tolist() == [[3.0, 1.0, 1.0, 4.0]]


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"cache": 3}', json.dumps({**cache(), "cache": {}}), "\x00\x01"]
)
def test_what_is_no_cache(tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(InputError, match="cache of Kernel Tuner"):
        read_kernel_tuner(file)
    with pytest.raises(InputError, match="cache of Kernel Tuner"):
        read_kernel_tuner(tmp_path / "missing.json.gz")


@pytest.mark.parametrize("name", replay.SEARCHES)
def test_searches_pay_for_what_they_look_at(table, name):
    run = replay.SEARCHES[name]
    paid = run(table, 1, 20)
    assert len(paid) >= 8  # annealing may cool before it has spent everything
    assert run(table, 1, 20) == paid  # seeds decide
    curve = replay.curve(paid, table.best, 20)
    assert (np.diff(curve) <= 0).all()
    assert curve[-1] < curve[0]


def test_a_search_ends_where_the_table_does(table):
    curve = replay.curve(replay.sampled(table, 0, 200), table.best, 200)
    assert curve[-1] == 1.0


def test_the_suite(tmp_path, monkeypatch):
    pytest.importorskip("lightgbm")
    for device, slow in (("a", 1.0), ("b", 3.0)):
        (tmp_path / f"{device}.json").write_text(json.dumps(cache(device, slow)))
    monkeypatch.setattr(suite, "TABLES", tmp_path)
    monkeypatch.setattr(suite, "TRIALS", 20)
    monkeypatch.setattr(suite, "MARKS", (4, 20))
    result, page = suite.measure(argparse.Namespace(part="gpu", small=True), lambda line: None)
    assert result["complete"]
    names = {(r["model"], r["system"]) for r in result["records"]}
    assert names == {(f"k@{d}", s) for d in "ab" for s in (*replay.SEARCHES, "whet")}
    first = {r["system"]: r["slowdown"]["4"][0] for r in result["records"] if r["model"] == "k@a"}
    assert first["whet"] <= first["random"]
    assert "k@b" in page
    with pytest.raises(InputError, match="no such part"):
        suite.measure(argparse.Namespace(part="gpus", small=True), lambda line: None)
