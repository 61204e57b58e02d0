"""Reports: as data and back, as text, as a page."""

from __future__ import annotations

import html.parser
import json
import math
from pathlib import Path

import pytest

from whet.report import page, table, text
from whet.run.record import Blame, Gain, Opaque, Report, ReportError, Rewrite, Stage

PROOF = '{"coverage": "all-shapes", "floating": "bit-exact", "queries": 3}'


def full() -> Report:
    """A report with something in every field."""
    return Report(
        model="zoo:small",
        engine="inductor",
        threads=2,
        stages=[
            Stage("kernels", math.nan, error=0.5, note="rejected: error 5e-01"),
            Stage("original", 0.020, 0.01, 1e-7, "eager"),
            Stage("rewrites", 0.016, 0.02, 2e-7, "plain library calls"),
            Stage("region", 0.010, 0.03, 3e-7, "one region"),
        ],
        rewrites=[
            Rewrite("fold <scale>", "a.py:3: x * s @ w", PROOF, "layers.0.mlp"),
            Rewrite("merge", "a.py:9: y", "by hand", "layers.0.attention"),
            Rewrite("fold <scale>", "b.py:4: x * s @ w", PROOF, "layers.1.mlp"),
        ],
        gains=[
            Gain("merge", "layers.*.attention", 12, 2e-3, 1e-3),
            Gain("fold <scale>", "layers.*.mlp", 12, 1e-3, 2e-3, kept=False),
            Gain("hoist", "head", 1, math.nan, math.nan),
        ],
        blames=[Blame("associate", "head", 0.5, 1e-6)],
        coverage={"aten.mm.default": 3, "aten.sort.default": 1},
        kernels={"mkl": 2, "aten": 5},
        opaques=[Opaque("aten.sort.default", "a.py:7: x.sort()", "no record computes it")],
        dropped=["aten._assert_async.msg at a.py:8"],
        fallbacks={"expected rank 2, got rank 3": 4},
        hits=7,
        misses=2,
        notes={"in memory only: disk full": 1},
        failures={"onednn: no such primitive": 2},
        phases={"capture": 1.25, "rewrite": 61.0},
        stop="Saturated",
        plan="out/small/plan.txt",
    )


# -- as data -------------------------------------------------------------------------------------
@pytest.mark.parametrize("report", [Report(), full()], ids=["empty", "full"])
def test_there_and_back(report: Report) -> None:
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    again = Report.from_json(data)
    assert again.to_json() == report.to_json()
    assert [s.name for s in again.stages] == [s.name for s in report.stages]
    if report.stages:
        assert math.isnan(again.stages[0].seconds)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"whet report": 99},
        {"whet report": 1, "mood": "good"},
        {"whet report": 1, "stages": [{"name": "original", "colour": "red"}]},
        {"whet report": 1, "stages": 3},
    ],
)
def test_what_is_no_report_is_refused(data: object) -> None:
    with pytest.raises(ReportError, match="report"):
        Report.from_json(data)


def test_which_stage_was_kept() -> None:
    report = full()
    assert report.kept is not None
    assert report.kept.name == "region"
    assert report.speedup == pytest.approx(2.0)
    assert report.original_error == 1e-7
    report.engine = "original"
    assert report.kept is report.original
    assert report.speedup == 1.0
    assert Report().speedup == 1.0
    assert Report().kept is None


# -- as text -------------------------------------------------------------------------------------
def test_the_stage_table() -> None:
    lines = text.stages(full(), [Stage("torch.compile", 0.025, 0.01, 1e-7)]).splitlines()
    head, *rows = [line.split() for line in lines]
    assert head == ["ms", "spread", "vs", "eager", "vs", "torch.compile", "error", "original's"]
    assert rows[0][:7] == ["original", "20.00", "1%", "1.00x", "1.25x", "1.0e-07", "1.0e-07"]
    assert rows[1][:5] == ["kernels", "–", "0%", "–", "–"]
    assert rows[3][:5] == ["region", "10.00", "3%", "2.00x", "2.50x"]
    assert rows[4][:5] == ["torch.compile", "25.00", "1%", "0.80x", "1.00x"]
    assert text.stages(Report()) == "nothing was measured"


def test_rewrites_are_counted_by_rule_and_module() -> None:
    _, first, second = text.rewrites(full()).splitlines()
    assert first.split()[:3] == ["layers.*.mlp", "fold", "<scale>"]
    assert "2  all-shapes, bit-exact  a.py:3: x * s @ w" in first
    assert "1  by hand" in second


def test_gains_are_said_rewrite_by_rewrite() -> None:
    _, first, second, third = text.gains(full()).splitlines()
    assert first.split() == ["layers.*.attention", "merge", "12", "2.00", "1.00", "2.00x"]
    assert second.endswith("left out: slower")
    assert third.split() == ["head", "hoist", "1", "–", "–", "–"]
    assert text.blames(full()) == "associate in head: error 5.0e-01, allowed 1.0e-06"
    assert text.gains(Report()) == ""


def test_everything_is_said() -> None:
    said = text.whole(full())
    for words in (
        "zoo:small: 2.00x as fast as the original; 3 proven rewrites by 2 rules",
        "4 library calls, 1 of them opaque",
        "aten.sort.default: no record computes it\n  a.py:7: x.sort()",
        "no longer checked at run time: aten._assert_async.msg at a.py:8",
        "1 min 2 s: capture 1.2 s, rewrite 1 min 1 s",
        "store    7 hits, 2 missed",
        "in memory only: disk full (1 time)",
        "onednn: no such primitive (2 times)",
        "expected rank 2, got rank 3 (4 times)",
        "stopped  Saturated",
    ):
        assert words in said
    assert text.whole(Report("x")).startswith("x: 0 library calls")


def test_places_are_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert text.place(f"{tmp_path}/nets/a.py:3: y = x") == "nets/a.py:3: y = x"
    assert text.place("/elsewhere/a.py:3: y = x") == "/elsewhere/a.py:3: y = x"
    assert text.place("") == ""


def test_tables_are_aligned() -> None:
    rows = [["a", "bb", "note"], ["long", "1", "x"]]
    assert table.aligned(rows, left=(0, 2)) == "a     bb  note\nlong   1  x"
    assert table.aligned([]) == ""
    with pytest.raises(ValueError, match="zip"):
        table.aligned([["a"], ["a", "b"]])


# -- as a page -----------------------------------------------------------------------------------
class Balance(html.parser.HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", [Report("empty"), full()], ids=["empty", "full"])
def test_the_page_is_well_formed(report: Report) -> None:
    found = Balance()
    found.feed(page.html(report))
    assert not found.open
    assert not found.seen & {"script", "img", "link"}


def test_the_page_says_it_too() -> None:
    said = page.html(full())
    assert "fold &lt;scale&gt;" in said
    assert "<scale>" not in said
    assert said.count('class="bar"') == 4
    assert "width: 50.0%" in said  # the region takes half as long as the original
