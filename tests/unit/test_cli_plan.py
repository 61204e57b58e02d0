"""`whet plan` and `whet run PLAN`: differences, staleness, refusals, and one real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plans import PLANS, planned
from whet import cli
from whet.capture.onnx.file import write_model
from whet.capture.onnx.writer import write_graph
from whet.capture.training import captured, training
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
    file.write_text(planfile.write(planfile.data(made.library, found, source)))
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


def parallelized(model, tmp_path, *words):
    """A plan that the search finds, and what it says of itself."""
    file = tmp_path / "plan.yaml"
    command = ["parallelize", f"models:{model}:small", "--batch", "8", "--plan", str(file), *words]
    assert cli.main(command) == 0
    return file, planfile.load(file.read_text())


def torchrun(file, ranks, tmp_path):
    """Ten steps under torchrun, compared with one process."""
    answer = tmp_path / "answer.json"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
        "--standalone", "-m", "whet", "run", str(file), "--compare", "--optimizer", "sgd",
        "--json", str(answer),
    ]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(answer.read_text())


def test_what_is_found_for_the_host_runs_under_torchrun(tmp_path, capsys):
    file, data = parallelized("dlrm", tmp_path, "--machine", "host", "--budget", "4s")
    said = capsys.readouterr().out
    assert "zero_bubble schedules: simulated only" in said
    assert "values equal on 2 ranks" in said
    assert data["proof"]["equal"] is True
    assert data["proof"]["error"] < 1e-9
    assert data["source"]["dtype"] == "float32"
    found = torchrun(file, 2, tmp_path)
    assert len(found["losses"]) == 10
    assert found["loss_error"] < 1e-4
    assert found["parameter_error"] < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("machine", ["host", "host:2"])
@pytest.mark.parametrize("model", ["bert_large", "llama3_8b", "resnet50", "dlrm", "mixtral_8x7b"])
def test_what_is_found_for_every_model_runs(model, machine, tmp_path):
    file, data = parallelized(model, tmp_path, "--machine", machine, "--budget", "10s")
    assert data["proof"]["equal"] is True
    found = torchrun(file, data["machine"]["devices"], tmp_path)
    assert found["loss_error"] < 1e-4
    assert found["parameter_error"] < 1e-4


def test_what_is_simulated_only_says_so_and_why_it_is_not_proven(tmp_path, capsys):
    _, data = parallelized(
        "dlrm", tmp_path, "--machine", "host", "--no-runnable", "--pin", "offload=optimizer",
        "--budget", "2s",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "--runnable finds a plan that whet run executes" in said
    assert data["proof"]["equal"] == "unknown"
    assert "simulated only" in data["proof"]["why"]


def test_a_proof_that_is_not_wanted_or_has_no_time_says_so(tmp_path):
    words = ["--machine", "host", "--budget", "1s"]
    _, data = parallelized("dlrm", tmp_path, *words, "--no-proof")
    assert data["proof"] == {"equal": "unknown", "why": "--no-proof"}
    _, data = parallelized("dlrm", tmp_path, *words, "--proof-budget", "0s")
    assert "time for the proof was up" in data["proof"]["why"]


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pin", "data=2", "--pin", "data=1"], "two pins contradict each other"),
        (["--pin", "data=2", "--pin", "tensor=2"], "the pinned degrees do not fit the machine"),
        (["--pin", "microbatches=3"], "the batch does not divide"),
        (["--pin", "*.nothing=whole"], "no parameter has such a name"),
        (["--devices", "0"], "a machine has a whole number of devices"),
        (["--machine", "h100x8,link.speed=3"], "a machine has no link.speed"),
        (["--machine", "nowhere"], "there is no machine named 'nowhere'"),
        (["--batch", "0"], "a step has samples"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_message(words, said, capsys):
    command = ["parallelize", "models:dlrm:small", "--batch", "8", "--machine", "host", *words]
    assert cli.main(command) == 1
    text = capsys.readouterr().err
    assert f"error: {said}" in text
    assert "  got:" in text
    assert "  try:" in text


def test_examples_of_a_fixed_number_of_samples_say_so(capsys):
    command = ["parallelize", "zoo:llama_decode:small", "--batch", "4", "--machine", "host"]
    assert cli.main([*command, "--inference"]) == 1
    text = capsys.readouterr().err
    assert "for another number of samples than its examples have" in text
    assert "expected: a batch of 1" in text
    assert "try:      --batch 1, or a function" in text


def test_a_plan_of_inference_becomes_files(tmp_path, capsys):
    file, _ = parallelized("dlrm", tmp_path, "--machine", "host", "--inference", "--budget", "1s")
    folder = tmp_path / "files"
    assert cli.main(["plan", "export", str(file), str(folder)]) == 0
    said = capsys.readouterr().out
    assert "results" in said
    assert "apart from the model" in said
    assert (folder / "plan.json").exists()
    assert list(folder.glob("stage0*.onnx"))
    assert cli.main(["plan", "check", str(tmp_path / "nothing.yaml")]) == 1
    assert "try:      in that folder: plan.yaml" in capsys.readouterr().err


def test_a_plan_of_training_does_not(plan, tmp_path, capsys):
    assert cli.main(["plan", "export", str(plan), str(tmp_path), "--unproven"]) == 1
    assert "ONNX files hold a forward pass" in capsys.readouterr().err


def test_an_onnx_file_is_planned_proven_and_becomes_two(tmp_path, capsys):
    step = training("models:bert_large:small", 8, "float32", inference=True)
    whole = tmp_path / "whole.onnx"
    write_model(write_graph(step.joint.graph, step.wholes()), whole)
    file = tmp_path / "plan.yaml"
    words = ["--batch", "8", "--machine", "host", "--inference", "--pin", "stages=2"]
    command = ["parallelize", str(whole), *words, "--budget", "1s", "--plan", str(file)]
    assert cli.main(command) == 0
    assert planfile.load(file.read_text())["proof"]["equal"] is True
    answer = tmp_path / "answer.json"
    command = ["plan", "export", str(file), str(tmp_path / "files"), "--json", str(answer)]
    assert cli.main(command) == 0
    found = json.loads(answer.read_text())
    assert found["files"] == ["stage0.onnx", "stage1.onnx"]
    assert found["error"] < 1e-5
