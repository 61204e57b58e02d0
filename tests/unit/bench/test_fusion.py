"""The ablation of the search for a partition: every variant is a program, equal ones are one."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench import fusion
from whet.errors import InputError
from whet.run.fusing import KINDS


def test_what_is_switched_off_are_moves_that_there_are() -> None:
    for without, _ in fusion.SEARCHES.values():
        assert without <= KINDS
    assert any(not listens for _, listens in fusion.SEARCHES.values())


def test_an_unknown_model_is_refused() -> None:
    args = argparse.Namespace(models="lstmm", threads=1, small=True, budget=0.0)
    with pytest.raises(InputError, match="no such model"):
        fusion.measure(args, print)


def test_all_variants_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_CACHE", str(tmp_path))
    monkeypatch.setattr(fusion, "SEARCH_S", 0.5)
    monkeypatch.setattr(fusion, "TUNE_S", 1.0)
    args = argparse.Namespace(models="memchain", threads=1, small=True, budget=0.1)
    result, page = fusion.measure(args, lambda line: None)
    rows = {r["system"]: r for r in result["records"]}
    assert list(rows) == ["seed", *fusion.SEARCHES, "apart"]
    assert all(r["median_s"] > 0 for r in rows.values())
    assert rows["apart"]["groups"] > rows["seed"]["groups"]
    for r in rows.values():
        if "same" in r:
            assert r["median_s"] == rows[r["same"]]["median_s"]
            assert r["groups"] == rows[r["same"]]["groups"]
    assert all(name in page for name in rows)
