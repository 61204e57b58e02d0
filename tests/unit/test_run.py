"""The runner: it lists its verbs, and says in one line what is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "run"
TOOLS = ("bash", "cat", "dirname", "env", "git")


@pytest.fixture
def run(tmp_path):
    """`run(*arguments, tools=…)` in a bare clone, on a machine that has these tools alone."""
    clone, path = tmp_path / "clone", tmp_path / "bin"
    clone.mkdir()
    path.mkdir()
    for name in ("run", "pyproject.toml", "constraints.txt"):
        shutil.copy(RUN.parent / name, clone)

    def call(*arguments: str, tools: tuple[str, ...] = TOOLS) -> subprocess.CompletedProcess[str]:
        for name in tools:
            (path / name).symlink_to(shutil.which(name))
        return subprocess.run(
            [shutil.which("bash"), str(clone / "run"), *arguments],
            env={"PATH": str(path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield call
    assert not (clone / ".venv").exists()


def verbs(text: str) -> list[str]:
    return re.findall(r"^  (\w+) ", text, re.MULTILINE)


def test_alone_it_lists_its_verbs(run):
    done = run()
    assert done.returncode == 0
    assert verbs(done.stdout) == "setup demo whet bench test lint fix help".split()


def test_each_listed_verb_is_there():
    text = RUN.read_text(encoding="utf-8")
    cases = re.findall(r"^  ([\w| -]+)\)$", text[text.rindex("case $verb in") :], re.MULTILINE)
    listed = text[text.index("usage: ./run") : text.index("\nTEXT\n")]
    assert {case.split()[0] for case in cases} == set(verbs(listed))


def test_an_unknown_verb(run):
    done = run("tset")
    assert done.returncode == 2
    assert "no verb is called 'tset'" in done.stderr
    assert "setup" in verbs(done.stderr)


def test_an_unknown_extra(run):
    done = run("setup", "tset")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: no extra is called 'tset'; there are: test, bench, onnx, none"
    )


@pytest.mark.parametrize(
    ("missing", "present", "words"),
    [
        ("g++", TOOLS, "apt install g++"),
        ("git", ("bash", "cat", "dirname", "env", "g++"), "apt install git"),
        ("Python 3.11", (*TOOLS, "g++"), "apt install python3"),
    ],
)
@pytest.mark.parametrize("verb", ["setup", "demo", "test"])
def test_what_is_missing_gets_one_line(run, verb, missing, present, words):
    done = run(verb, tools=present)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {missing}")
    assert words in line
