"""What a machine is, and the floor it sets."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from whet.errors import WhetError
from whet.machine import Cache, Machine, Rate

RATES = (
    Rate("flops", "float32", 1, 100e9),
    Rate("flops", "float32", 2, 200e9),
    Rate("flops", "float64", 2, 100e9),
    Rate("read", "L3", 2, 50e9),
    Rate("read", "DRAM", 1, 8e9),
    Rate("read", "DRAM", 2, 10e9),
)
SMALL = Machine(
    name="small",
    processor="Small 1 (1/2)",
    isa=("avx2", "fma"),
    vector_bits=256,
    cores=2,
    threads=2,
    memory=1 << 30,
    caches=(Cache(1, 32 << 10, 2), Cache(3, 1 << 20, 1)),
    rates=RATES,
)


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A Linux of eight threads on four cores; `detect` is told that it may use them all."""
    monkeypatch.setattr("whet.machine.processor._allowed_threads", lambda: 8)
    files = {
        "proc/cpuinfo": "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Fast CPU\n"
        "flags\t\t: fpu sse2 avx avx2 fma avx512f\n\nprocessor\t: 1\nmodel name\t: other\n",
        "proc/meminfo": "MemTotal:       16384 kB\nMemFree: 1 kB\n",
        "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0,4\n",
    }
    levels = (
        (1, "Data", "32K", "0,4"),
        (1, "Instruction", "32K", "0,4"),
        (3, "Unified", "8M", "0-7"),
    )
    for k, row in enumerate(levels):
        for key, value in zip(("level", "type", "size", "shared_cpu_list"), row, strict=True):
            files[f"sys/devices/system/cpu/cpu0/cache/index{k}/{key}"] = f"{value}\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_detect_reads_the_system(linux):
    assert Machine.detect(linux) == Machine(
        name="fast-cpu-6-85-8t",
        processor="Fast CPU (6/85)",
        isa=("avx512f", "avx2", "avx", "sse2", "fma"),
        vector_bits=512,
        cores=4,
        threads=8,
        memory=16 << 20,
        caches=(Cache(1, 32 << 10, 4), Cache(3, 8 << 20, 1)),
    )


def test_detect_without_any_of_it(tmp_path):
    machine = Machine.detect(tmp_path)
    assert machine.threads >= 1
    assert machine.caches == ()
    assert machine.vector_bits == 128


def test_this_machine_is_detected():
    machine = Machine.detect()
    assert machine.cores >= 1
    assert machine.name == machine.name.lower()
    assert Machine.detect().fingerprint() == machine.fingerprint()


def test_json_round_trip():
    data = json.loads(json.dumps(SMALL.to_json()))
    assert data["fingerprint"] == SMALL.fingerprint()
    assert Machine.from_json(data) == SMALL


@pytest.mark.parametrize("change", [{"wings": 2}, {"isa": 3}, {"rates": [{"what": "flops"}]}])
def test_what_is_not_a_machine_is_refused(change):
    with pytest.raises(WhetError, match="not the description of a machine"):
        Machine.from_json({**SMALL.to_json(), **change})


def test_a_missing_field_is_refused():
    data = SMALL.to_json()
    del data["threads"]
    with pytest.raises(WhetError, match=r"expected:.*threads"):
        Machine.from_json(data)


def test_fingerprint_is_that_of_the_machine_not_of_its_rates():
    print_ = SMALL.fingerprint()
    assert SMALL.with_rates(()).fingerprint() == print_
    different = [
        replace(SMALL, processor="Small 2 (1/2)"),
        replace(SMALL, isa=("avx2",)),
        replace(SMALL, threads=4),
        replace(SMALL, caches=()),
    ]
    assert len({print_, *(m.fingerprint() for m in different)}) == 5


@pytest.mark.parametrize(
    ("what", "of", "threads", "value"),
    [
        ("flops", "float32", None, 200e9),
        ("flops", "float32", 1, 100e9),
        ("flops", "float32", 5, 200e9),
        ("read", "DRAM", 1, 8e9),
    ],
)
def test_rate(what, of, threads, value):
    assert SMALL.rate(what, of, threads) == value


@pytest.mark.parametrize(("of", "threads"), [("float64", 1), ("float16", None)])
def test_a_rate_that_was_not_measured(of, threads):
    with pytest.raises(WhetError, match="no measured rate") as error:
        SMALL.rate("flops", of, threads)
    assert "calibrated" in str(error.value)


def test_more_threads_are_never_taken_for_slower():
    """A disturbed measurement with two threads does not hide what one reaches alone."""
    machine = SMALL.with_rates([Rate("flops", "float32", 1, 9.0), Rate("flops", "float32", 2, 4.0)])
    assert machine.rate("flops", "float32") == 9.0


@pytest.mark.parametrize(
    ("flops", "bytes", "options", "seconds"),
    [
        (400e9, 1, {}, 2.0),  # arithmetic decides
        (400e9, 1, {"threads": 1, "dtype": "float32"}, None),  # no L3 rate for one thread
        (1, 20e9, {}, 2.0),  # main memory decides
        (1, 1 << 20, {}, (1 << 20) / 50e9),  # just fits in L3
        (1, (1 << 20) + 1, {}, ((1 << 20) + 1) / 10e9),
        (400e9, 1, {"dtype": "float64"}, 4.0),
    ],
)
def test_floor(flops, bytes, options, seconds):
    if seconds is None:
        with pytest.raises(WhetError, match="read of L3"):
            SMALL.floor_s(flops, bytes, **options)
    else:
        assert SMALL.floor_s(flops, bytes, **options) == pytest.approx(seconds)
