"""Bad input: a clear message, an exit code, no traceback, and nothing half-written.

Each case is a command or a call as a user makes it, and the words that the answer must have.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import whet
from whet.cli import main
from whet.errors import InputError
from whet.run.module import Optimized

MODELS = """
import pathlib
import time
import torch
from torch import nn

class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

class Sorted(nn.Module):
    def forward(self, x):
        return x.sort(-1).values + 1

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        pathlib.Path("started").touch()
        time.sleep(0.003)
        return self.layer(x)

def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval(), torch.randn(4, 8)

def branch():
    return Branch().eval(), torch.randn(4, 8)

def sorts():
    return Sorted().eval(), torch.randn(4, 8)

def slow():
    return Slow().eval(), torch.randn(4, 8)

def fails():
    return no_such_name
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of models and a corrupt file of each kind."""
    (tmp_path / "bad_models.py").write_text(MODELS)
    (tmp_path / "corrupt.onnx").write_bytes(b"\x08\x07\x12\x99 this is no protobuf \xff" * 9)
    (tmp_path / "corrupt.pt2").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "empty.pt2").touch()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("whet.optimize"), "MEASURE_S", 0.3)
    yield tmp_path
    sys.modules.pop("bad_models", None)


def left(place: Path) -> set[str]:
    """What a command has left behind, in the working directory."""
    before = {"bad_models.py", "corrupt.onnx", "corrupt.pt2", "empty.pt2", "file", "__pycache__"}
    return {f.name for f in place.iterdir()} - before


# fmt: off
COMMANDS = [
    # command                                       what the answer says
    ("optimize nowhere.onnx",                       ["there is no file nowhere.onnx"]),
    ("optimize nowhere.pt2",                        ["there is no file nowhere.pt2"]),
    ("optimize corrupt.onnx",                       ["corrupt.onnx"]),
    ("optimize corrupt.pt2",                        ["corrupt.pt2", "torch.export.save"]),
    ("optimize empty.pt2",                          ["empty.pt2"]),
    ("optimize bad_models:branch",                  ["does not trace", "torch.where",
                                                     "bad_models.py:9: if x.sum() > 0:"]),
    ("optimize bad_models:branch --dry-run",        ["does not trace"]),
    ("explain bad_models:branch",                   ["does not trace"]),
    ("optimize zoo:resnet5",                        ["no model named 'resnet5'",
                                                     "did you mean resnet50"]),
    ("optimize resnet50",                           ["names no model", "zoo:resnet50"]),
    ("optimize bad_models:mlpp",                    ["has no mlpp", "mlp"]),
    ("optimize bad_models:fails",                   ["failed to make a model", "no_such_name"]),
    ("optimize no_such_module:build",               ["no Python module no_such_module"]),
    ("optimize bad_models:sorts --strict",          ["without a record", "aten.sort.default",
                                                     "bad_models.py:15: return x.sort(-1)"]),
    ("optimize bad_models:sorts --strict --dry-run", ["without a record", "adding-an-operator"]),
    ("optimize bad_models:mlp --out file",          ["file", "no program", "--out"]),
    ("optimize bad_models:mlp --out file/within",   ["cannot be written"]),
    ("optimize bad_models:mlp --json file/report",  ["cannot be written"]),
    ("run nowhere",                                 ["no report in this folder", "nowhere"]),
    ("verify nowhere",                              ["no program to verify"]),
    ("verify corrupt.onnx",                         ["corrupt.onnx"]),
    ("rules show nothing",                          ["no rule is called 'nothing'"]),
    ("store import nowhere.jsonl",                  ["cannot be read", "nowhere.jsonl"]),
    ("store import file/within",                    ["cannot be read"]),
    ("bench --models resnet5 --small",              ["no model named 'resnet5'", "resnet50"]),
]
# fmt: on


@pytest.mark.parametrize(("command", "words"), COMMANDS, ids=[c for c, _ in COMMANDS])
def test_commands(
    command: str, words: list[str], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 1
    said = capfd.readouterr()
    assert said.err.startswith("error: ")
    assert all(word in said.err for word in words), said.err
    assert "Traceback" not in said.err + said.out
    assert not left(place)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("optimise zoo:lstm", "no verb is called 'optimise'; did you mean optimize?"),
        ("", "whet --help"),
        ("optimize zoo:lstm --fast", "unrecognized arguments: --fast"),
        ("optimize zoo:lstm --budget soon", "expected a time such as 60s"),
        ("optimize zoo:lstm --threads 0", "expected 1 or more threads"),
        ("rules prove", "invalid choice: 'prove'"),
        ("store", "arguments are required"),
    ],
)
def test_what_is_not_understood(
    command: str, words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(command.split())
    assert end.value.code == 2
    assert words in capsys.readouterr().err
    assert not left(place)


@pytest.mark.parametrize("command", ["optimize bad_models:mlp", "store stats"])
@pytest.mark.parametrize("cache", ["file", "file/within", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written(
    command: str,
    cache: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WHET_CACHE", cache if cache.startswith("/") else str(place / cache))
    assert main(command.split()) == 1
    said = capsys.readouterr().err
    assert "the store cannot be used" in said
    assert "WHET_CACHE" in said
    assert not left(place)


def test_a_damaged_program(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whet.save(tiny(), place / "program")
    (place / "program" / "parameters.pt").write_bytes(b"PK damaged")
    assert main(["run", "program"]) == 1
    assert "damaged" in capsys.readouterr().err


# -- at run time ---------------------------------------------------------------------------------
def tiny(**options: object) -> Optimized:
    """A small optimized module; library calls alone, so that no compiler is waited for.

    Whatever the clock says, it has a program: what is looked at is what that refuses.
    """
    torch.manual_seed(0)
    block = (torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.BatchNorm1d(8))
    model = torch.nn.Sequential(*block, *block, torch.nn.Linear(8, 3))
    with pytest.MonkeyPatch.context() as patch:
        walk = importlib.import_module("whet.optimize")
        patch.setattr(walk, "choose", lambda timings, original: next(reversed(timings)))
        module = whet.optimize(model.eval(), (torch.randn(4, 8),), disable={"regions"}, **options)
    assert module.program is not None
    return module


# fmt: off
CALLS = [
    # arguments                                    what the answer says
    ((torch.zeros(2, 4, 8),),                      "rank 2, got rank 3"),
    ((torch.zeros(4, 8, dtype=torch.float64),),    "expected float32, got float64"),
    ((torch.zeros(4, 8, device="meta"),),          "expected device cpu, got meta"),
    ((torch.zeros(5, 8),),                         "expected shape [4, 8], got [5, 8]"),
    (("zeros",),                                   "expected a tensor, got str"),
    ((torch.zeros(4, 8), 1),                       "another structure"),
]
# fmt: on


@pytest.mark.parametrize(("args", "words"), CALLS, ids=[w for _, w in CALLS])
def test_calls_in_strict_mode(args: tuple[object, ...], words: str) -> None:
    module = tiny(strict=True)
    with torch.no_grad(), pytest.raises(InputError) as found:
        module(*args)
    assert words in str(found.value)
    assert "float32[4, 8]" in str(found.value)


@pytest.mark.parametrize(("args", "words"), CALLS, ids=[w for _, w in CALLS])
def test_calls_of_a_loaded_program(args: tuple[object, ...], words: str, place: Path) -> None:
    whet.save(tiny(), place / "program")
    module = whet.load(place / "program")
    with torch.no_grad(), pytest.raises(InputError) as found:
        module(*args)
    assert words in str(found.value)


def test_without_strict_the_original_is_asked() -> None:
    module = tiny()
    with torch.no_grad(), pytest.warns(UserWarning, match="runs the original"):
        assert module(torch.zeros(5, 8)).shape == (5, 3)
    assert sum(module.fallbacks.values()) == 1


def test_where_the_original_refuses_as_well_both_reasons_are_given() -> None:
    module = tiny()
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="runs the original"),
        pytest.raises(InputError) as found,
    ):
        module(torch.zeros(4, 8, dtype=torch.float64))
    assert "expected float32, got float64" in str(found.value)
    assert "the original says" in str(found.value)


# -- Ctrl-C --------------------------------------------------------------------------------------
@pytest.mark.parametrize("after", [0.0, 1.5])
def test_ctrl_c(after: float, place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The command ends by itself, and what it has saved is a whole program or nothing."""
    command = [sys.executable, "-m", "whet.cli", "optimize", "bad_models:slow", "--out", "out/slow"]
    cache = str(tmp_path_factory.mktemp("cache"))
    child = subprocess.Popen(
        command,
        cwd=place,
        env={**os.environ, "WHET_CACHE": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (place / "started").exists() and child.poll() is None:
            assert time.monotonic() < deadline, "it never began"
            time.sleep(0.05)
        time.sleep(after)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130, out + err
    assert "interrupted" in err
    assert "Traceback" not in out + err
    assert left(place) <= {"started", "out"}
    if (place / "out").exists():
        assert [f.name for f in (place / "out").iterdir()] in ([], ["slow"])
    if (place / "out" / "slow").exists():
        assert whet.load(place / "out" / "slow") is not None
