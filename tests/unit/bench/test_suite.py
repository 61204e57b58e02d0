"""The bench as a whole: a row for every system whatever happens, and its command line."""

from __future__ import annotations

import argparse
import json
import re

import pytest
import torch

from bench import cli, inductor, peers, suite, table
from bench.peers import Case, DoesNotApplyError, System
from bench.worker import Job, run
from whet.errors import InputError, WhetError
from whet.machine import Machine, Rate

MACHINE = Machine(
    name="small",
    processor="Small 1",
    isa=(),
    vector_bits=128,
    cores=1,
    threads=1,
    memory=1 << 30,
    rates=(Rate("flops", "float32", 1, 1e9), Rate("read", "DRAM", 1, 1e9)),
)


def job(*systems, **more):
    return Job(
        "lstm", systems, 1, MACHINE.to_json(), budget_s=0.0, min_rounds=3, scale="small", **more
    )


def skips(case):
    raise DoesNotApplyError("not for this")


def fails(case):
    raise RuntimeError("cannot\n  more of it")


def wrong(case):
    return lambda: torch.zeros(1)


def tires(case):
    calls = iter(range(3))

    def call():
        if next(calls, None) is None:
            raise RuntimeError("too often")
        return case.module(*case.inputs)

    return call


def missing(case):
    import no_such_engine  # noqa: F401


SYSTEMS = {
    "eager": System("", peers.eager, torch_mode=True),
    "other": System("", peers.eager),
    **{f.__name__: System("", f) for f in (skips, fails, wrong, tires, missing)},
}


def test_a_row_for_every_system():
    found = run(job(*SYSTEMS, crashed={}), SYSTEMS)
    rows = {r["system"]: r for r in found["records"]}
    assert list(rows) == list(SYSTEMS)
    for name in ("eager", "other"):
        assert rows[name]["median_s"] > 0
        assert rows[name]["error"] < 1e-5
        assert rows[name]["rounds"] == 3
        assert rows[name]["optimize_s"] > 0
        assert rows[name]["floor_s"] > 0
    assert rows["skips"]["skipped"] == "not for this"
    assert rows["fails"]["failed"] == "RuntimeError: cannot"
    assert "outputs of shapes" in rows["wrong"]["failed"]
    assert rows["tires"]["failed"] == "RuntimeError: too often"
    assert rows["missing"]["failed"].startswith("no_such_engine is not installed: pip install")
    assert not any("median_s" in rows[n] for n in ("skips", "fails", "wrong", "tires", "missing"))
    assert found["model"]["flops"] > 0


def test_what_is_not_a_mode_of_torch_is_compared_round_by_round():
    rows = {r["system"]: r for r in run(job("eager", "other"), SYSTEMS)["records"]}
    assert set(rows["other"]["against"]) == {"eager"}
    assert 0 <= rows["other"]["against"]["eager"]["confidence"] <= 1
    assert "against" not in rows["eager"]


def test_a_system_that_crashed_is_not_tried_again():
    found = run(job("eager", "fails", crashed={"fails": "killed by SIGSEGV"}), SYSTEMS)
    assert found["records"][1]["failed"] == "killed by SIGSEGV"
    assert "optimize_s" not in found["records"][1]


def test_who_is_at_work_is_told():
    told = []
    run(job("eager", "fails"), SYSTEMS, told.append)
    assert told == ["the float64 oracle", "eager", "fails", "timing"]


def test_the_modules_report_goes_into_the_row():
    class Optimized(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module
            self.report = {"stages": [1, 2]}

        def forward(self, *inputs):
            return self.module(*inputs)

    systems = {"ours": System("", lambda c: peers.eager(Case(Optimized(c.module), c.inputs, 1)))}
    (row,) = run(job("ours"), systems)["records"]
    assert row["report"] == {"stages": [1, 2]}


def test_in_a_process_of_its_own(monkeypatch):
    found = suite.run_model(job("eager", "channels_last"))
    eager, channels_last = found["records"]
    assert eager["median_s"] > 0
    assert channels_last["skipped"] == "no input has four dimensions"


def test_a_worker_that_cannot_start_leaves_rows():
    lines = []
    found = suite.run_model(
        Job("no_such_model", ("eager",), 1, MACHINE.to_json(), scale="small"), lines.append
    )
    (row,) = found["records"]
    assert "exit code 1" in row["failed"]
    assert "no_such_model" in lines[0]


@pytest.fixture
def workers(monkeypatch):
    """Workers that do what a script says, and the jobs they were given."""

    def play(*script):
        jobs = []

        def in_process(job, store):
            jobs.append(job)
            return script[len(jobs) - 1]

        monkeypatch.setattr(suite, "in_process", in_process)
        return jobs

    return play


def test_a_system_that_kills_the_worker_is_left_out_the_next_time(workers):
    rows = [{"model": "lstm", "system": "eager", "median_s": 1.0}]
    jobs = workers(
        (None, "openvino", "killed by SIGSEGV"), ({"model": {}, "records": rows}, "", "")
    )
    assert suite.run_model(job("eager", "openvino"))["records"] == rows
    assert jobs[1].crashed == {"openvino": "killed by SIGSEGV"}


@pytest.mark.parametrize("at_work", ["timing", "the float64 oracle", "its start"])
def test_a_death_that_is_nobodys_fault_ends_the_model(workers, at_work):
    jobs = workers((None, at_work, "killed by SIGKILL"))
    found = suite.run_model(job("eager", "openvino"))
    assert {r["failed"] for r in found["records"]} == {f"killed by SIGKILL at {at_work}"}
    assert len(jobs) == 1


def test_whet_is_prepared_a_second_time_from_its_store(workers):
    first = {"model": {}, "records": [{"system": "whet", "median_s": 1.0, "optimize_s": 40.0}]}
    second = {"model": {}, "records": [{"system": "whet", "median_s": 1.0, "optimize_s": 2.0}]}
    jobs = workers((first, "", ""), (second, "", ""))
    (row,) = suite.run_model(job("eager", "whet"))["records"]
    assert (row["optimize_s"], row["optimize_again_s"]) == (40.0, 2.0)
    assert jobs[1].systems == ("whet",)


def test_interrupted_keeps_what_is_done(monkeypatch):
    def run_model(job, progress):
        if job.model == "lstm":
            raise KeyboardInterrupt
        return {"model": {}, "records": [{"model": job.model, "system": "eager"}]}

    monkeypatch.setattr(suite, "run_model", run_model)
    found = suite.run_suite(["memchain", "lstm", "moe"], ["eager"], machine=MACHINE)
    assert not found["complete"]
    assert [r["model"] for r in found["records"]] == ["memchain"]


def parsed(*words):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Nothing is measured: what would have been, and where results go."""
    asked = {}

    def run_suite(models, systems, **options):
        asked.update(options, models=models, systems=systems)
        return {
            "suite": options["suite"],
            "date": "2026-01-02T00:00:00",
            "threads": 1,
            "complete": True,
            "versions": {},
            "machine": MACHINE.to_json(),
            "models": {},
            "records": [{"model": "lstm", "system": "eager", "median_s": 1.0, "floor_s": 0.5}],
        }

    monkeypatch.setattr(suite, "run_suite", run_suite)
    monkeypatch.setattr(suite, "RESULTS", tmp_path / "results")
    return asked


def test_the_whole_suite_against_everybody(measured, tmp_path, capsys):
    assert cli.run(parsed()) == 0
    assert measured["models"] == list(suite.suites()["cpu"])
    assert measured["systems"] == [*peers.PEERS, "whet"]
    names = sorted(f.name for f in (tmp_path / "results").iterdir())
    assert names == ["2026-01-02-cpu-small.json", "2026-01-02-cpu-small.txt"]
    assert "median ms" in capsys.readouterr().out


def test_a_choice_of_models_and_peers(measured, tmp_path):
    file = tmp_path / "deep" / "out.json"
    words = ["--models", "lstm,moe", "--peers", "eager", "--split", "--threads", "1", "--json"]
    assert cli.run(parsed(*words, str(file))) == 0
    assert measured["models"] == ["lstm", "moe"]
    assert measured["systems"] == ["eager", *peers.OURS]
    assert json.loads(file.read_text())["records"]
    assert not (tmp_path / "results").exists(), "a part of a suite must not replace the whole"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "gpu"], "no suite named 'gpu'"),
        (["--models", "lstn"], "did you mean lstm"),
        (["--peers", "eagre"], "did you mean eager"),
        (["--threads", "0"], "--threads 1 or more"),
    ],
)
def test_what_is_not_known_is_refused(measured, words, message):
    with pytest.raises(InputError) as error:
        cli.run(parsed(*words))
    assert message in str(error.value)
    assert not measured


def test_results_that_cannot_be_written(measured, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WhetError, match="cannot be written"):
        cli.run(parsed("--json", str(tmp_path / "file" / "out.json")))


def test_every_column_of_the_table_is_a_system():
    assert set(peers.SYSTEMS) == {*peers.PEERS, *peers.OURS}
    assert not set(peers.PEERS) & set(peers.OURS)
    assert not peers.PEERS["inductor-onednn"].torch_mode
    assert table.SYSTEMS is peers.SYSTEMS


def test_channels_last_is_for_images():
    conv = torch.nn.Conv2d(3, 4, 3)
    call = peers.channels_last(Case(conv, (torch.randn(1, 3, 8, 8),), 1))
    assert call.func.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.is_contiguous()
    with pytest.raises(DoesNotApplyError):
        peers.channels_last(Case(torch.nn.Linear(2, 2), (torch.randn(3, 2),), 1))


@pytest.mark.full
def test_routing_sends_linear_layers_to_onednn():
    """The generated code calls oneDNN where Inductor by itself calls MKL."""
    from torch._inductor.utils import fresh_cache, run_and_get_code

    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)).eval()
    inputs = (torch.randn(16, 64),)
    with torch.no_grad(), fresh_cache():
        codes = [
            run_and_get_code(inductor.compiled, module, inputs, {"freezing": True}, routed=routed)[
                1
            ]
            for routed in (False, True)
        ]
    plain, routed = ("".join(code) for code in codes)
    calls = re.findall(r"buf\d+ = torch\.ops\.mkldnn\._linear_pointwise", routed)
    assert len(calls) == 2, routed
    assert "_mkl_linear" not in routed
    if torch._C.has_mkl:
        assert "_linear_pointwise" not in plain


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of the systems themselves
@pytest.mark.parametrize("model", ["lstm", "squeezenet", "dlrm"])
def test_every_peer_is_right(model):
    """The real systems on small models: none fails, none computes in less than float32."""
    found = run(
        Job(model, tuple(peers.PEERS), 1, MACHINE.to_json(), 0.0, min_rounds=1, scale="small")
    )
    failed = [r for r in found["records"] if "failed" in r]
    assert not failed
    assert all(r["error"] < 1e-5 for r in found["records"] if "skipped" not in r)
