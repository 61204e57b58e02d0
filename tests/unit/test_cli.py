"""The command line: every verb once on a tiny model, its files, its exit codes, what it says."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from whet.cli import VERBS, main, options
from whet.cli.console import Console, OutputError, check_writable, write
from whet.errors import WhetError

MODELS = """
import torch
from torch import nn

class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.scale(self.first(x)))
        for k in range(12):  # so much to fuse that the original is never the fastest
            x = torch.tanh(x * 1.5) + k
        return self.last(x)

class Sorted(nn.Module):
    def forward(self, x):
        return x.sort(-1).values + 1

def mlp():
    torch.manual_seed(0)
    return Mlp().eval(), torch.randn(4, 8)

def sorts():
    return Sorted().eval(), torch.randn(4, 8)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a module of models."""
    place = tmp_path_factory.mktemp("work")
    (place / "cli_models.py").write_text(MODELS)
    return place


@pytest.fixture(autouse=True)
def within(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    monkeypatch.setattr(importlib.import_module("whet.optimize"), "MEASURE_S", 0.3)
    yield
    sys.modules.pop("cli_models", None)


@pytest.fixture(scope="module")
def optimized(place: Path) -> tuple[str, int]:
    """What `whet optimize` says of the tiny model, and its exit code; the program is in out/mlp."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "stdout", said := io.StringIO())
        # Whatever the clock says: what is looked at is what was done, not whether it paid.
        walk = importlib.import_module("whet.optimize")
        patch.setattr(walk, "finalists", lambda timings, original: list(timings))
        patch.setattr(walk, "rather", lambda chosen, preferred, timings, original: preferred[-1])
        code = main(["optimize", "cli_models:mlp", "--budget", "20s", "--json", "report.json"])
    return said.getvalue(), code


# -- the frame -----------------------------------------------------------------------------------
def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, whet.cli\n"
        "try: whet.cli.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'z3'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {verb}" in done.stdout for verb in VERBS)


def test_optimize_is_the_function_whatever_was_imported_first() -> None:
    script = "import whet.optimize, whet; assert callable(whet.optimize), whet.optimize"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "whet.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "whet")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert "--json" in text
    assert "--debug" in text


def verb_that(monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    def run(*_: object) -> int:
        raise fault

    monkeypatch.setattr(importlib.import_module("whet.cli.zoo"), "run", run)


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (WhetError("it cannot be", hint="another way"), 1, ["error: it cannot be", "another way"]),
        (ZeroDivisionError("by zero"), 2, ["a fault of whet: ZeroDivisionError", "--debug"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
)
def test_faults_are_words(
    fault: BaseException,
    code: int,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb_that(monkeypatch, fault)
    assert main(["zoo"]) == code
    said = capsys.readouterr()
    assert not said.out
    assert all(word in said.err for word in words)
    assert "Traceback" not in said.err


@pytest.mark.parametrize("fault", [WhetError("it cannot be"), ZeroDivisionError("by zero")])
def test_debug_shows_the_traceback(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(monkeypatch, fault)
    assert main(["zoo", "--debug"]) in (1, 2)
    assert "Traceback" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals() -> None:
    for err, seen in ((io.StringIO(), False), (Terminal(), True)):
        console = Console(io.StringIO(), err)
        console.progress("capturing")
        assert ("capturing" in err.getvalue()) == seen
        console.print("done")
        assert err.getvalue().endswith("\r\x1b[K") == seen


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "deep" / "file.json", "1")
    assert (tmp_path / "deep" / "file.json").read_text() == "1"

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "deep" / "file.json", "2")
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["file.json"]
    assert (tmp_path / "deep" / "file.json").read_text() == "1"


def test_whether_a_place_can_be_written(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "file")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable(tmp_path / "file" / "within")


# -- arguments -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"), [("60", 60), ("60s", 60), ("1.5m", 90), ("500ms", 0.5), ("1h", 3600)]
)
def test_times(text: str, value: float) -> None:
    assert options.seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ("2K", 2048), ("3M", 3 << 20), ("1GiB", 1 << 30)]
)
def test_sizes(text: str, value: int) -> None:
    assert options.amount(text) == value


@pytest.mark.parametrize("read", [options.seconds, options.amount, options.threads])
@pytest.mark.parametrize("text", ["", "-1", "much", "3 weeks", "0x"])
def test_nonsense_is_refused(read: object, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        read(text)  # type: ignore[operator]


# -- optimize, and what is done with a program ---------------------------------------------------
def test_optimize(optimized: tuple[str, int], place: Path) -> None:
    said, code = optimized
    assert code == 0
    for word in ("cli_models:mlp", "vs eager", "original", "fold batch norm", "out/mlp"):
        assert word in said
    data = json.loads((place / "report.json").read_text())
    assert data["model"] == "cli_models:mlp"
    assert {"original", "rewrites"} <= {stage["name"] for stage in data["stages"]}
    assert all(stage["error"] < 1e-5 for stage in data["stages"])
    assert data["out"] == "out/mlp"
    page = (place / "out" / "mlp" / "report.html").read_text()
    assert "fold batch norm" in page
    assert "<script" not in page


def test_a_program_is_replaced_and_nothing_else(
    optimized: tuple[str, int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["optimize", "cli_models:mlp", "--budget", "5s"]) == 0  # over the one that is there
    assert sorted(f.name for f in (place / "out").iterdir()) == ["mlp"]
    (place / "mine").mkdir(exist_ok=True)
    (place / "mine" / "thesis.txt").write_text("years of work")
    assert main(["optimize", "cli_models:mlp", "--out", "mine"]) == 1
    assert "no program" in capsys.readouterr().err
    assert [f.name for f in (place / "mine").iterdir()] == ["thesis.txt"]


def test_run(optimized: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "out/mlp", "--budget", "100ms", "--json", "run.json"]) == 0
    assert "cli_models:mlp" in capsys.readouterr().out
    data = json.loads(Path("run.json").read_text())
    assert data["error"] is not None
    assert data["error"] < 1e-5
    assert data["seconds"] > 0


def test_explain_a_program(optimized: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "out/mlp"]) == 0
    said = capsys.readouterr().out
    assert all(
        word in said for word in ("stages", "rewrites", "aten.linear", "where the time went")
    )


def test_explain_a_model_that_the_store_knows(
    optimized: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "cli_models:mlp", "--budget", "5s"]) == 0
    said = capsys.readouterr().out
    assert "recall" in said
    assert "fold batch norm" in said


def test_verify(optimized: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["verify", "out/mlp", "--model", "cli_models:mlp", "--json", "verify.json"]
    assert main(command) == 0
    assert "fold batch norm" in capsys.readouterr().out
    data = json.loads(Path("verify.json").read_text())
    assert data["verified"]
    assert sum(data["rewrites"].values()) >= 1


def test_verify_refuses_another_model(
    optimized: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "out/mlp", "--model", "cli_models:sorts"]) == 1
    assert "not the model that the program was made from" in capsys.readouterr().err


def test_verify_refuses_a_certificate_with_a_step_missing(
    optimized: tuple[str, int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = place / "forged"
    forged.mkdir()
    for name in ("plan.txt", "source.txt", "graph.txt"):
        (forged / name).write_text((place / "out" / "mlp" / name).read_text())
    lines = (forged / "plan.txt").read_text().splitlines()
    (forged / "plan.txt").write_text("\n".join(x for x in lines if not x.startswith("rewrite")))
    assert main(["verify", "forged"]) == 1
    assert "does not lead to the saved graph" in capsys.readouterr().err


def test_verify_refuses_another_graph(
    optimized: tuple[str, int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = place / "swapped"
    swapped.mkdir()
    for name, origin in (("plan", "plan"), ("source", "source"), ("graph", "source")):
        text = (place / "out" / "mlp" / f"{origin}.txt").read_text()
        (swapped / f"{name}.txt").write_text(text)
    assert main(["verify", "swapped/plan.txt"]) == 1
    assert "not about the graph in graph.txt" in capsys.readouterr().err


def test_dry_run_lists_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*.txt"))
    assert main(["optimize", "cli_models:sorts", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "aten.sort.default: no record computes it" in said
    assert "cli_models.py:18: return x.sort(-1).values + 1" in said
    assert sorted(place.rglob("*.txt")) == before


def test_a_saved_program_of_torch(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU()).eval()
    torch.export.save(torch.export.export(model, (torch.randn(2, 8),)), place / "saved.pt2")
    capfd.readouterr()
    assert main(["optimize", "saved.pt2", "--dry-run", "--json", "dry.json"]) == 0
    said = capfd.readouterr()
    assert "every call has a record" in said.out
    assert not said.err
    assert json.loads((place / "dry.json").read_text())["coverage"]["aten.linear.default"] == 1


def test_an_interrupted_search_is_saved(
    optimized: tuple[str, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("whet.optimize")
    optimize = module.optimize

    def interrupted(*args: object, **named: object) -> object:
        found = optimize(*args, **named)
        found.report.stop = "Interrupted"
        return found

    monkeypatch.setattr(module, "optimize", interrupted)
    command = ["optimize", "cli_models:mlp", "--budget", "5s", "--out", "stopped"]
    assert main(command) == 130
    assert "interrupted" in capsys.readouterr().err
    assert (Path("stopped") / "plan.txt").exists()


# -- the other verbs -----------------------------------------------------------------------------
def test_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list"]) == 0
    assert "zoo:resnet50" in capsys.readouterr().out


def test_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "list"]) == 0
    assert "merge linears" in capsys.readouterr().out
    assert main(["rules", "show", "merge linears"]) == 0
    said = capsys.readouterr().out
    assert "all-shapes" in said
    assert "bit-exact" in said
    command = ["rules", "verify", "no reshape", "times one", "--json", "rules.json"]
    assert main(command) == 0
    data = json.loads(Path("rules.json").read_text())
    assert data["proven"] == len(data["statements"]) == 2
    assert main(["rules", "show", "merge linear"]) == 1
    assert "'merge linears'" in capsys.readouterr().err


def test_rules_as_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "rules.json"
    assert main(["rules", "list", "--json", str(place)]) == 0
    rules = json.loads(place.read_text())["rules"]
    assert {"name", "lhs", "rhs", "guard", "proof", "float_class"} <= rules[0].keys()
    assert rules[-1]["origin"] == "stated by hand"
    assert main(["rules", "show", "times one", "--json", str(place)]) == 0
    (shown,) = json.loads(place.read_text())["rules"]
    assert (shown["lhs"], shown["proof"]["covers"]) == ("x[*B] * 1", "all-shapes (rank of B 2)")
    assert "\u2514 mul" in capsys.readouterr().out


def test_rules_are_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, place = tmp_path / "stated.json", tmp_path / "verdicts.json"
    inputs = {"x": ["m", "k"], "y": ["k", "m"]}
    turned = "permute(matmul(permute(y, dims=(1, 0)), permute(x, dims=(1, 0))), dims=(1, 0))"
    sides = {"right": turned,
             "wrong": "matmul(y, x)", "unread": "matmul(x"}  # fmt: skip
    file.write_text(json.dumps([{"name": n, "inputs": inputs, "lhs": "matmul(x, y)", "rhs": r}
                                for n, r in sides.items()]))  # fmt: skip
    assert main(["rules", "decide", str(file), "--json", str(place)]) == 0
    found = json.loads(place.read_text())
    assert [d["verdict"] for d in found] == ["proven", "refuted", "unknown"]
    assert found[1]["counterexample"]
    assert "does not parse" in found[2]["reason"]
    assert "1 proven, 1 refuted, 1 unknown" in capsys.readouterr().out
    file.write_text("{}")
    assert main(["rules", "decide", str(file)]) == 1
    assert "no list of conjectures" in capsys.readouterr().err


WHOLE = {"name": "whole", "inputs": {"x": ["m"]}, "lhs": "x", "rhs": "x"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("x == x", "an entry is no object"),
        ({**WHOLE, "rhs": 3}, "rhs of an entry is no str and no list"),
        ({**WHOLE, "inputs": ["x"]}, "inputs of an entry is no dict"),
        ({**WHOLE, "inputs": {"x": "m"}}, "the shape of x is no list of sizes"),
        ({k: v for k, v in WHOLE.items() if k != "lhs"}, "an entry has no lhs"),
    ],
)
def test_an_entry_that_is_no_conjecture_is_named(
    entry: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "stated.json"
    file.write_text(json.dumps([WHOLE, entry]))
    assert main(["rules", "decide", str(file)]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "entry 2" in told
    assert ("(whole)" in told) == isinstance(entry, dict)


def test_rules_that_are_not_proven_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from whet.rewrite import conjectures
    from whet.rewrite.conjecture import Conjecture

    wrong = Conjecture("relu is identity: relu(x[*B]) == x")
    monkeypatch.setattr(conjectures, "CONJECTURES", {wrong.name: wrong})
    assert main(["rules", "verify", wrong.name]) == 1
    said = capsys.readouterr().out
    assert "Refutation" in said
    assert "0 of 1 statement proven" in said


def test_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whet.store import Store

    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "one"))
    with Store.open() as store:
        store.put("kernel-time", "a", {"s": 1})
        store.put("artifact", "b", b"x" * 100)

    def told(*words: str) -> dict[str, object]:
        assert main(["store", *words, "--json", str(tmp_path / "told.json")]) == 0
        data = json.loads((tmp_path / "told.json").read_text())
        assert isinstance(data, dict)
        return data

    assert told("stats")["rows"] == 2
    assert told("export", str(tmp_path / "rows.jsonl"))["rows"] == 2
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "two"))
    assert told("stats")["rows"] == 0
    assert told("import", str(tmp_path / "rows.jsonl"))["rows"] == 2
    assert told("prune", "--cap", "50")["rows"] == 1
    assert main(["store", "export"]) == 1


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--quick", "--json", "doctor.json"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("torch", "processor", "g++", "store", "all in order"))
    findings = json.loads(Path("doctor.json").read_text())["findings"]
    assert {"torch", "numpy", "threads"} <= {f["what"] for f in findings}
    monkeypatch.setenv("PATH", "")
    assert main(["doctor", "--quick"]) == 1
    assert "apt install g++" in capsys.readouterr().out


def test_bench_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "bench.cli", raising=False)
    monkeypatch.setitem(sys.modules, "bench", None)
    assert main(["bench", "--suite", "cpu"]) == 1
    assert "./run bench in a clone" in capsys.readouterr().err


@pytest.mark.full
def test_demo(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "--small", "--models", "zoo:lstm", "--out", "demo", "--json", "demo.json"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "vs torch.compile" in said
    data = json.loads((place / "demo.json").read_text())
    assert data["complete"]
    assert data["models"][0]["peers"][0]["seconds"] > 0
    assert (place / "demo" / "lstm" / "plan.txt").exists()
