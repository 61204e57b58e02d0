"""Kernels that crash, hang, overrun, lie; and those between them that do not."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from whet.run.farm import Failed, Farm, Kernel, Task
from whet.run.measure import Timing
from whet.run.runner import distance

SOURCE = r"""
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef void *const *args_t;
#define BODY for (int i = 0; i < 1000; i++) y[i] = 2 * x[i]
#define NAME(f) void f(args_t a, void *s) { const float *x = a[0]; float *y = a[1];
NAME(good) BODY; }
NAME(slow) volatile float t = 0; for (int i = 0; i < 20000; i++) t += x[i % 1000]; BODY; }
NAME(wrong) BODY; y[7] += 1; }
NAME(lazy) for (int i = 0; i < 999; i++) y[i] = 2 * x[i]; }
NAME(nan) BODY; y[3] = 0.0f / 0.0f; }
NAME(crash) raise(SIGSEGV); }
NAME(hang) for (;;) pause(); }
NAME(far) BODY; y[1000 + 16] = 0; }
NAME(near) BODY; y[1000] = 0; }
NAME(before) BODY; y[-1] = 0; }
NAME(reader) BODY; ((float *)x)[5] = 0; }
NAME(scratch) BODY; memset(s, 0, 4096); }
NAME(greedy) BODY; memset(s, 0, 4097); }
NAME(exits) exit(0); }
NAME(later) static int n = 0; BODY; if (++n > 3) abort(); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    place = tmp_path_factory.mktemp("farm")
    (place / "k.c").write_text(SOURCE)
    command = ["gcc", "-O1", "-shared", "-fPIC", "-w", "-o", place / "k.so", place / "k.c"]
    subprocess.run(command, check=True)
    return place / "k.so"


@pytest.fixture
def farm():
    with Farm(threads=1, patience_s=2) as farm:
        yield farm


@pytest.fixture
def task():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    return Task((x,), (2 * x.astype(np.float64),), ("float32",))


def kernels(library, *names, scratch=4096):
    return {name: Kernel(library, name, scratch) for name in names}


def test_right_kernels_are_timed_in_turns(farm, task, library):
    found = farm.measure(task, kernels(library, "good", "slow"), rounds=5)
    assert all(isinstance(v, Timing) and v.rounds == 5 for v in found.values())
    assert found["good"].median_s < found["slow"].median_s
    assert found["good"].calls > found["slow"].calls > 1
    assert farm.deaths == 0


def test_cold_calls_are_single(farm, task, library):
    found = farm.measure(task, kernels(library, "good"), rounds=3, cold=True)["good"]
    assert found.calls == 1


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("wrong", "wrong", "result 0 is off by"),
        ("lazy", "wrong", "result 0 is off by"),
        ("nan", "wrong", "off by inf"),
        ("crash", "crash", "SIGSEGV"),
        ("exits", "crash", "exit code 0"),
        ("far", "crash", "SIGSEGV"),
        ("near", "corrupt", "wrote beside operand 1"),
        ("before", "corrupt", "wrote beside operand 1"),
        ("reader", "corrupt", "wrote into operand 0, which it reads"),
        ("greedy", "crash", "SIGSEGV"),
        ("missing", "load", "missing"),
    ],
)
def test_a_bad_kernel_fails_alone(farm, task, library, name, kind, reason):
    found = farm.measure(task, kernels(library, "good", name, "scratch"), rounds=2)
    assert isinstance(found["good"], Timing)
    assert isinstance(found["scratch"], Timing)
    assert isinstance(found[name], Failed)
    assert (found[name].kind, reason in found[name].reason) == (kind, True), found[name]


def test_a_kernel_that_hangs(task, library):
    with Farm(threads=1, patience_s=0.5) as farm:
        found = farm.measure(task, kernels(library, "hang", "good"), rounds=2)
    assert found["hang"] == Failed("hang", found["hang"].reason)
    assert isinstance(found["good"], Timing)
    assert farm.deaths == 1


def test_a_kernel_that_dies_of_being_timed(farm, task, library):
    found = farm.measure(task, kernels(library, "good", "later"), rounds=3)
    assert found["later"].kind == "crash"
    assert isinstance(found["good"], Timing)


def test_no_such_library(farm, task, tmp_path):
    found = farm.measure(task, kernels(tmp_path / "none.so", "good"))
    assert found["good"].kind == "load"


def test_distance():
    want = np.array([1.0, -4.0, np.inf, np.nan])
    assert distance(want.astype(np.float32), want) == 0
    assert distance(np.array([1.5, -4.0, np.inf, np.nan]), want) == 0.125
    assert distance(np.array([1.0, -4.0, -np.inf, np.nan]), want) == np.inf
    assert distance(np.array([1.0, np.nan, np.inf, np.nan]), want) == np.inf
    assert distance(np.array([1, 2]), np.array([1, 3])) == np.inf
    assert distance(np.zeros(2), np.zeros(3)) == np.inf
    assert distance(np.zeros(0), np.zeros(0)) == 0


def test_slow_kernels_are_timed_by_one_call(farm, task, library):
    found = farm.measure(task, kernels(library, "good", "slow"), rounds=5, limit_s=1e-9)
    assert all(v.rounds == 1 for v in found.values())


def test_a_runner_that_knows_the_task_goes_on(farm, task, library):
    farm.measure(task, kernels(library, "good"), rounds=1)
    process = farm._process
    found = farm.measure(task, kernels(library, "slow"), rounds=1)
    assert isinstance(found["slow"], Timing)
    assert farm._process is process


def test_an_operand_may_lie_otherwise(farm, library, tmp_path):
    text = """void f(void *const *a, void *s) {
        const float *x = a[0]; float *y = a[1]; (void)s;
        for (int i = 0; i < 3; i++) for (int j = 0; j < 5; j++)
            y[5 * i + j] = x[((j / 4) * 3 + i) * 4 + j % 4]; }"""
    (tmp_path / "f.c").write_text(text)
    place = tmp_path / "f.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", place, tmp_path / "f.c"], check=True)
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    laid = {0: ((3, 8), (3, 2, 4), (1, 0, 2))}
    named = {"laid": Kernel(place, "f", 0, laid), "plain": Kernel(place, "f")}
    found = farm.measure(Task((x,), (x.astype(float),), ("float32",)), named, rounds=1)
    assert isinstance(found["laid"], Timing)
    assert isinstance(found["plain"], Failed)
