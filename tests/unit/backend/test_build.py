"""Compiling: each text once, in parallel, with clear words where it cannot be done."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.backend.compiled import native
from whet.backend.build import KIND, compile_units, compiler, link_objects
from whet.errors import UnsupportedError, WhetError
from whet.machine.target import Target
from whet.store import Store

TARGET = native()[0]
UNITS = {f"u{k}": f"int f{k}(void) {{ return {k}; }}" for k in range(3)}


def counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that notes each of its runs in a file."""
    log = folder / "log"
    log.touch()
    script = folder / "cc"
    script.write_text(f'#!/bin/sh\necho run >> {log}\nexec {shutil.which("gcc")} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("CC", str(script))
    return log


def runs(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_a_text_is_compiled_once(tmp_path, monkeypatch):
    log = counted(tmp_path, monkeypatch)
    with Store.open(tmp_path / "store") as store:
        compiler(TARGET)
        asked = runs(log)  # for its version
        first = compile_units({**UNITS, "again": UNITS["u0"]}, TARGET, store)
        assert runs(log) == asked + 3
        assert first["again"] == first["u0"]
        assert compile_units(UNITS, TARGET, store) == {n: first[n] for n in UNITS}
        assert runs(log) == asked + 3
        compile_units({"u0": UNITS["u0"]}, TARGET, store, flags=("-O1",))
        assert runs(log) == asked + 4  # other options, another object


def test_targets_do_not_share_objects():
    text = UNITS["u0"]
    keys = {compiler(t).key(text) for t in native()}
    assert len(keys) == len(native())


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(UnsupportedError, match="no-such-compiler") as fault:
        compile_units(UNITS, TARGET)
    assert "install" in str(fault.value)


def test_an_unknown_instruction_set():
    with pytest.raises(UnsupportedError, match="avx512f"):
        compile_units(UNITS, Target("tube", 64, 32, 1))


def test_a_text_that_is_no_c(tmp_path):
    with Store.open(tmp_path) as store:
        with pytest.raises(WhetError, match="does not compile") as fault:
            compile_units({"bad": "int f( {"}, TARGET, store)
        assert "error" in str(fault.value)
        assert store.keys(KIND) == []


def test_two_functions_of_one_name():
    objects = compile_units(
        {"a": "int f(void) { return 1; }", "b": "int f(void) { return 2; }"}, TARGET
    )
    with pytest.raises(WhetError, match="multiple definition"):
        link_objects(list(objects.values()), TARGET)


def _compile(place: str) -> None:
    with Store.open(place) as store:
        compile_units(UNITS, TARGET, store)


@pytest.mark.full
def test_processes_share_a_store(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_compile, args=(str(tmp_path),)) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
        assert w.exitcode == 0
    with Store.open(tmp_path) as store:
        assert len(store.keys(KIND)) == 3
        assert store.verify() == 0


@pytest.mark.full
def test_killed_halfway(tmp_path):
    """Whenever it ends, what is in the store is whole."""
    program = (
        "import sys; sys.path.insert(0, '.'); from tests.unit.backend import test_build as t;"
        f"t._compile({str(tmp_path)!r})"
    )
    root = Path(__file__).parents[3]
    for wait in (0.3, 0.8, 1.2, 1.6, 2.0, 2.4):
        child = subprocess.Popen([sys.executable, "-c", program], cwd=root, start_new_session=True)
        time.sleep(wait)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        with Store.open(tmp_path) as store:
            assert store.verify() == 0
            assert all(isinstance(store.get(KIND, key), bytes) for key in store.keys(KIND))
    _compile(str(tmp_path))
    with Store.open(tmp_path) as store:
        assert len(store.keys(KIND)) == 3
