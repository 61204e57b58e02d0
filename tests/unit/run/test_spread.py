"""Threads that share a processor are parted, and may go anywhere afterwards."""

from __future__ import annotations

import ctypes
import os
import time

import pytest
import torch

from whet.backend.build import compile_text
from whet.backend.link import joined
from whet.machine import Machine
from whet.machine.target import Target
from whet.run import spread

TEAM = """
int omp_get_thread_num(void);
int sched_getcpu(void);
int sched_setaffinity(int, unsigned long, const void *);
int sched_getaffinity(int, unsigned long, void *);
/* Puts every thread of the team on one processor, or lets each go anywhere that `mask` allows. */
void put(unsigned long mask) {
#pragma omp parallel num_threads(2)
  sched_setaffinity(0, sizeof mask, &mask);
}
/* Where the threads are, and where each may go. */
void look(int *at, unsigned long *may) {
#pragma omp parallel num_threads(2)
  {
    int me = omp_get_thread_num();
    at[me] = sched_getcpu();
    may[me] = 0;
    sched_getaffinity(0, sizeof *may, may + me);
  }
}
"""
processors = sorted(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(
    len(processors) < 2 or max(processors) >= 64, reason="two processors below 64 are needed"
)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A team of two and the function, in one library: they share the threads."""
    target = Target.of(Machine.detect(), 2)
    file = tmp_path_factory.mktemp("spread") / "team.so"
    texts = (spread.text(2), TEAM)
    file.write_bytes(joined([compile_text(t, target) for t in texts], target))
    library = ctypes.CDLL(str(file))
    library.put.argtypes = (ctypes.c_ulong,)
    return library


def places(team: ctypes.CDLL) -> tuple[list[int], list[int]]:
    at, may = (ctypes.c_int * 2)(), (ctypes.c_ulong * 2)()
    team.look(at, may)
    return list(at), list(may)


@needs_two
def test_threads_on_one_processor_are_parted_and_stay_free(team: ctypes.CDLL) -> None:
    every = sum(1 << p for p in processors)
    one, two = processors[:2]
    try:
        team.put(1 << one)
        assert places(team)[0] == [one, one]
        time.sleep(0.01)  # it looks again after a few milliseconds only
        # Both may go nowhere else: nothing can be done, and nothing is.
        assert team.whet_spread() == 0
        assert places(team) == ([one, one], [1 << one] * 2)
        # Both may go to another one: where they still are together, one of them goes.
        for _ in range(50):
            team.put(1 << one)
            team.put(1 << one | 1 << two)
            time.sleep(0.01)
            assert team.whet_spread() <= 1
            assert places(team)[1] == [1 << one | 1 << two] * 2
    finally:
        team.put(every)


@needs_two
def test_it_does_not_look_again_at_once(team: ctypes.CDLL) -> None:
    one = processors[0]
    every = sum(1 << p for p in processors)
    try:
        time.sleep(0.01)
        team.whet_spread()
        start = time.perf_counter()
        calls = 0
        while time.perf_counter() - start < 1e-3:
            assert team.whet_spread() == 0
            calls += 1
        assert calls > 0
        assert one in processors
    finally:
        team.put(every)


def test_one_thread_needs_nothing() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert spread.spread() == 0
    finally:
        torch.set_num_threads(before)


def test_settled_leaves_everything_able_to_run_anywhere() -> None:
    torch.ones(1 << 16).add_(1)  # the pool's threads exist
    spread.settled()
    for thread in os.listdir("/proc/self/task"):
        try:
            assert sorted(os.sched_getaffinity(int(thread))) == processors
        except ProcessLookupError:
            continue
