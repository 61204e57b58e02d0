"""Ranks of a host keep to their own processors, and their threads do not push others aside."""

from __future__ import annotations

import json
import os
import sys

import pytest

from whet.run.parallel.cores import share
from whet.run.parallel.launch import launch

SAYS = """
import json, os, threading
from whet.run.parallel.cores import settle_launched
settle_launched()
found = []
thread = threading.Thread(target=lambda: found.append(
    [sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0)]))
thread.start()
thread.join()
print(json.dumps(found[0]))
"""


def test_processors_are_dealt_out_and_none_is_left_out_where_there_are_too_few():
    assert [share([0, 1, 2, 3], k, 2) for k in range(2)] == [[0, 1], [2, 3]]
    assert share([4, 5, 7], 1, 2) == [5]
    assert share([0, 1], 3, 4) == [0, 1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_threads_that_a_rank_starts_follow_it():
    ended = launch([sys.executable, "-c", SAYS], 2, limit=60)
    assert [e.code for e in ended] == [0, 0], ended
    said = [json.loads(e.text) for e in ended]
    have = sorted(os.sched_getaffinity(0))
    assert [row[0] for row in said] == [share(have, k, 2) for k in range(2)]
    assert {row[1] for row in said} == {os.SCHED_BATCH}
