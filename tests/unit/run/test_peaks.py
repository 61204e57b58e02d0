"""Measuring the machine's limits: what is asked for, the C program, and the cache."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from whet.errors import WhetError
from whet.machine import Cache, Machine, Rate
from whet.run import peaks

MACHINE = Machine(
    name="small",
    processor="Small 1",
    isa=("avx2",),
    vector_bits=256,
    cores=4,
    threads=6,
    memory=64 << 30,
    caches=(Cache(1, 32 << 10, 4), Cache(3, 64 << 20, 1)),
)


def rates(value):
    return (Rate("flops", "float32", 1, value), Rate("read", "DRAM", 1, 10 - value))


def test_every_type_level_and_thread_count_is_wanted():
    wants = peaks.wanted(MACHINE)
    assert {(w.what, w.of) for w in wants} == {
        ("flops", "float32"),
        ("flops", "float64"),
        ("read", "L1"),
        ("read", "L3"),
        ("read", "DRAM"),
        ("copy", "DRAM"),
    }
    assert {w.threads for w in wants} == {1, 2, 4, 6}
    bytes_ = {(w.of, w.threads): int(w.argument) for w in wants if w.what == "read"}
    assert bytes_["L1", 2] == 2 * (16 << 10)
    assert bytes_["L1", 6] == 4 * (16 << 10), "no more than all instances hold"
    assert bytes_["L3", 1] == bytes_["L3", 6] == 32 << 20
    assert bytes_["DRAM", 1] == 512 << 20


def test_bfloat16_only_where_the_machine_has_it():
    half = dataclasses.replace(MACHINE, isa=("avx512_bf16",))
    assert "bfloat16" in {w.of for w in peaks.wanted(half)}
    assert "bfloat16" not in {w.of for w in peaks.wanted(MACHINE)}


def test_measured_once_then_read(tmp_path):
    first = peaks.calibrated(MACHINE, folder=tmp_path, measure=lambda m: rates(1.0))
    assert first.machine.rates == rates(1.0)
    assert (first.cached, first.kept) == (False, True)

    def never(machine):
        raise AssertionError("measured twice")

    second = peaks.calibrated(MACHINE, folder=tmp_path, measure=never)
    assert second.machine == first.machine
    assert (second.cached, second.kept) == (True, True)
    assert not list(tmp_path.rglob("*.part"))


def test_measuring_again_keeps_the_better_of_each(tmp_path):
    peaks.calibrated(MACHINE, folder=tmp_path, measure=lambda m: rates(1.0))
    again = peaks.calibrated(MACHINE, folder=tmp_path, again=True, measure=lambda m: rates(3.0))
    assert [r.value for r in again.machine.rates] == [3.0, 9.0]
    assert not again.cached


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"name": 1}'])
def test_a_spoilt_cache_is_measured_anew(tmp_path, text):
    peaks.calibrated(MACHINE, folder=tmp_path, measure=lambda m: rates(1.0))
    (file,) = tmp_path.rglob("*.json")
    file.write_text(text)
    found = peaks.calibrated(MACHINE, folder=tmp_path, measure=lambda m: rates(2.0))
    assert (found.cached, found.kept) == (False, True)
    assert json.loads(file.read_text())["fingerprint"] == MACHINE.fingerprint()


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "machines").write_text("a file where the folder should be")
    found = peaks.calibrated(MACHINE, folder=tmp_path, measure=lambda m: rates(2.0))
    assert found.machine.rates == rates(2.0)
    assert not found.kept


def test_the_cache_folder_is_the_named_one(private_store):
    assert peaks.cache_folder() == private_store


def test_no_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(WhetError, match="no C compiler") as error:
        peaks.measured(MACHINE)
    assert "apt-get install gcc" in str(error.value)


def test_this_machine_can_be_measured(monkeypatch):
    """The program builds and prints a number for each wanted rate, whatever the numbers are."""
    monkeypatch.setattr(peaks, "SECONDS", 0.01)
    monkeypatch.setattr(peaks, "_dram_bytes", lambda machine: 1 << 20)
    machine = Machine.detect()
    found = peaks.measured(machine)
    assert [(r.what, r.of, r.threads) for r in found] == [
        (w.what, w.of, w.threads) for w in peaks.wanted(machine)
    ]
    assert all(r.value > 0 for r in found)
    measured = machine.with_rates(found)
    assert measured.floor_s(1e9, 1e9) > 0


def test_a_program_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(peaks, "wanted", lambda m: (peaks.Want("read", "DRAM", str(1 << 62), 1),))
    with pytest.raises(WhetError, match="measuring the machine's limits failed") as error:
        peaks.measured(Machine.detect())
    assert "exit code 2" in str(error.value)
