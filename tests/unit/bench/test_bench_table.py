"""The results as text."""

from __future__ import annotations

import pytest

from bench import table


def record(model, system, ms, **more):
    return {"model": model, "system": system, "median_s": ms / 1e3, "floor_s": 1e-3, **more}


def result(records, **more):
    rates = [
        {"what": "flops", "of": "float32", "threads": 2, "value": 512e9},
        {"what": "flops", "of": "float32", "threads": 1, "value": 256e9},
        {"what": "copy", "of": "DRAM", "threads": 2, "value": 80e9},
    ]
    return {
        "suite": "cpu",
        "date": "2026-01-02T03:04:05+00:00",
        "threads": 2,
        "complete": True,
        "versions": {"torch": "2"},
        "machine": {"processor": "Small 1", "rates": rates},
        "records": records,
        **more,
    }


RECORDS = [
    record("a", "eager", 8.0, error=1e-7, optimize_s=0.0),
    record("a", "inductor", 4.0, error=2e-7, optimize_s=12.34),
    record("a", "inductor-onednn", 3.0),
    record("a", "whet", 2.0, optimize_s=30.0, optimize_again_s=1.5),
    record("a", "whet-no-rewrites", 2.5),
    record("b", "eager", 8.0),
    {"model": "b", "system": "inductor", "floor_s": 1e-3, "failed": "RuntimeError: no"},
    {"model": "b", "system": "inductor-onednn", "floor_s": 1e-3, "skipped": "nothing linear"},
    record("b", "whet", 4.0),
    record("b", "whet-no-rewrites", 4.0),
]


def rows(page, title):
    """The table of that title as {row: {column: text}}."""
    block = next(b for b in page.split("\n\n") if b.startswith(title))
    head, *lines = block.splitlines()
    names = head[len(title) :].split()
    names = [" ".join(names[:2]), *names[2:]] if names[:2] == ["best", "torch"] else names
    return {
        line[: len(title)].strip(): dict(zip(names, line[len(title) :].split(), strict=False))
        for line in lines
    }


def test_what_holds_it_stands_beside_the_floor():
    told = {"peak": 3_000_000, "bound": 2_000_000, "shares": {"FLOPs": 0.75, "bandwidth": 0.25}}
    found = rows(table.text(result([record("a", "whet", 2.0, profile=told)])), "what holds whet")
    assert list(found["a"].values()) == ["2.00", "75%", "25%", "0%", "3.0", "1.50"]
    assert list(rows(table.text(result(RECORDS)), "what holds whet")["a"].values())[1] == "-"


def test_times_and_the_floor():
    found = rows(table.text(result(RECORDS)), "median ms")
    assert found["a"]["eager"] == "8.00"
    assert found["a"]["floor"] == "1.00"
    assert found["a"]["best/floor"] == "2.00"
    assert found["b"]["inductor"] == found["b"]["inductor-onednn"] == "-"


def test_ratios_against_the_best_mode_of_torch_and_against_onednn():
    found = rows(table.text(result(RECORDS)), "whet is as many times as fast as")
    assert found["a"] == {"best torch": "2.00", "inductor-onednn": "1.50"}
    assert found["b"] == {"best torch": "2.00", "inductor-onednn": "-"}
    assert found["geometric mean"] == {"best torch": "2.00", "inductor-onednn": "1.50"}


def test_causes():
    found = rows(table.text(result(RECORDS)), "what each cause is worth")
    assert found["a"] == {"rewrites": "1.25"}
    assert found["geometric mean"] == {"rewrites": "1.12"}


def test_a_failure_is_told_and_a_skip_is_not():
    page = table.text(result(RECORDS))
    assert "failed: inductor on b: RuntimeError: no" in page
    assert "nothing linear" not in page


def test_peers_alone_have_no_ratios():
    page = table.text(result([r for r in RECORDS if not r["system"].startswith("whet")]))
    assert "as many times" not in page
    assert "what each cause" not in page
    assert "whet again" not in page


def test_heading_has_the_limits_at_the_number_of_threads_measured():
    head = table.text(result(RECORDS)).splitlines()
    assert "flops float32 512 G/s" in head[2]
    assert "256" not in head[2]
    assert "INCOMPLETE" not in "".join(head)
    assert "INCOMPLETE" in table.text(result(RECORDS, complete=False))


def test_nothing_measured_is_still_a_page():
    assert table.text(result([])).startswith("suite cpu")


def test_columns_are_aligned():
    block = next(b for b in table.text(result(RECORDS)).split("\n\n") if b.startswith("median ms"))
    lines = block.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("a ")


@pytest.mark.parametrize(
    ("numbers", "mean"), [([2.0, 8.0], 4.0), ([3.0, None], 3.0), ([None], None), ([], None)]
)
def test_geomean(numbers, mean):
    assert table.geomean(numbers) == (None if mean is None else pytest.approx(mean))
