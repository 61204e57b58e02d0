"""Journals: every candidate is there, a torn end does no harm, and the way can be walked again."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.search.spaces import Graph, Wander, interrupting, line
from whet.errors import SearchError
from whet.search import (
    Annealing,
    Beam,
    Budget,
    Greedy,
    Journal,
    Scored,
    StopReason,
    fingerprint,
    read,
    replay,
    search,
)

SMALL = Graph({0: [1, 2], 2: [3, 1]}, {0: 4, 1: math.inf, 2: 2, 3: 1}, frozenset({(2, 1)}))


def test_every_candidate_is_written_with_its_verdict():
    journal = Journal()
    space = Graph({0: [1, 2], 2: [3]}, {0: 4, 1: math.inf, 2: 2, 3: 1}, frozenset({(2, 3)}))
    search(space, Greedy(), Budget(), journal)
    events = [json.loads(line) for line in journal.lines]
    assert [e["event"] for e in events] == [
        *("begin", "round", "scored", "scored", "round", "refuted", "end")
    ]
    assert events[0]["strategy"] == "Greedy()"
    assert events[2]["cost"]["seconds"] is None
    assert events[3]["cost"] == {"seconds": 2, "bytes": 0, "source": "measured", "spread": 0}
    assert (events[5]["how"], events[5]["reason"]) == ("2->3", "forbidden")
    assert events[5]["data"] == {"way": [2, 3]}
    assert (events[6]["stop"], events[6]["best"]) == ("Saturated", fingerprint(2))


def test_a_file_is_complete_after_every_line(tmp_path):
    file = tmp_path / "search.jsonl"
    space = line([3, 2, 1])
    lengths = []
    inner = space.cost
    space.cost = lambda cs: lengths.append(file.read_bytes().count(b"\n")) or inner(cs)
    with Journal(file) as journal:
        search(space, Greedy(), Budget(), journal)
    assert lengths == [0, 2, 4]
    assert read(file).stop is StopReason.CONVERGED


def test_a_torn_last_line_is_dropped_and_cut_before_the_next_search(tmp_path):
    file = tmp_path / "search.jsonl"
    with Journal(file) as journal:
        search(SMALL, Greedy(), Budget(), journal)
    whole = file.read_bytes()
    lines = whole.count(b"\n")
    for cut in range(len(whole) - 1, whole.index(b"\n"), -7):
        file.write_bytes(whole[:cut])
        log = read(file)
        assert log.torn == (whole[cut - 1 : cut] != b"\n")
        assert replay(file, SMALL).state in (0, 2, 3)
    with Journal(file) as journal:
        search(SMALL, Greedy(), Budget(), journal)
    log = read(file)
    assert (log.torn, log.stop) == (False, StopReason.SATURATED)
    assert file.read_bytes().count(b"\n") < 2 * lines


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "search.jsonl"
    with Journal(file) as journal:
        search(SMALL, Greedy(), Budget(), journal)
    lines = file.read_text().splitlines(keepends=True)
    for broken in ("{not json\n", '{"event": "odd"}\n', '{"no": 1}\n', "3\n", "\n"):
        file.write_text("".join([*lines[:2], broken, *lines[3:]]))
        with pytest.raises(SearchError, match="the journal is damaged") as error:
            read(file)
        assert f"{file}, line 3" in str(error.value)


def test_a_journal_without_a_search_and_a_missing_one(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(SearchError, match="holds no search"):
        read(tmp_path / "empty")
    with pytest.raises(SearchError, match="cannot be read"):
        read(tmp_path / "none")
    with pytest.raises(SearchError, match="cannot be written"):
        Journal(tmp_path / "no" / "folder")


def test_a_full_disk_does_not_end_the_search():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    journal = Journal()
    with open("/dev/full", "wb", buffering=0) as journal._file:
        outcome = search(line([2, 1]), Greedy(), Budget(), journal)
    assert outcome.best.state == 1
    assert journal.lost > 0


def test_the_moves_to_the_best_state():
    journal = Journal()
    search(line([5, 4, 3, 2, 9]), Greedy(), Budget(), journal)
    assert read(journal).moves() == ["0->1", "1->2", "2->3"]
    assert [e["how"] for e in read(journal).verdicts()][:2] == ["0->1", "1->0"]


@pytest.mark.parametrize("strategy", [Greedy(), Beam(3), Annealing(rounds=40, window=5)])
def test_replay_walks_to_the_same_state_without_pricing(strategy):
    journal, space = Journal(), Wander(seed=3)
    best = search(space, strategy, Budget(candidates=300), journal).best
    again = Wander(seed=3)
    again.cost = None  # type: ignore[assignment]
    assert replay(journal, again) == best


def test_an_interrupted_search_can_be_replayed():
    journal = Journal()
    space = interrupting(line([9, 8, 7, 6, 5]), "cost", 4)
    outcome = search(space, Greedy(), Budget(), journal)
    assert outcome.stop is StopReason.INTERRUPTED
    assert replay(journal, line([9, 8, 7, 6, 5])) == outcome.best


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        (Graph({0: [1, 2], 2: [3]}, {}), None),
        (Graph({0: [2, 1], 2: [3]}, {}), "round 1, candidate 1: 0->1"),
        (Graph({0: [1, 2], 2: []}, {}), "round 2, candidate 3: 2->3"),
        (Graph({0: [1, 2], 2: [3]}, {}, frozenset({(2, 3)})), "round 2, candidate 3: 2->3"),
    ],
)
def test_replay_names_the_first_divergence(changed, where):
    journal = Journal()
    search(Graph({0: [1, 2], 2: [3]}, {0: 4, 1: 3, 2: 2, 3: 1}), Greedy(), Budget(), journal)
    if where is None:
        assert replay(journal, changed).state == 3
        return
    with pytest.raises(SearchError, match="does not go the way the journal says") as error:
        replay(journal, changed)
    assert where in str(error.value)


def test_a_journal_whose_answer_is_not_its_best_is_refused():
    journal = Journal()
    search(line([3, 2, 1]), Greedy(), Budget(), journal)
    journal.lines = [row for row in journal.lines if '"1->2"' not in row]
    with pytest.raises(SearchError, match="does not go the way") as error:
        replay(journal, line([3, 2, 1]))
    assert "round 3" in str(error.value)
    third = next(i for i, row in enumerate(journal.lines) if '"round": 3' in row)
    del journal.lines[third:-1]
    with pytest.raises(SearchError, match="does not go the way") as error:
        replay(journal, line([3, 2, 1]))
    assert "the best state" in str(error.value)


def test_a_search_stopped_from_the_keyboard_leaves_a_whole_journal(tmp_path):
    script = """if True:
        import os, signal, sys, threading
        from tests.unit.search.spaces import Wander
        from whet.search import Annealing, Budget, Journal, search

        with Journal(sys.argv[1]) as journal:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            outcome = search(Wander(), Annealing(rounds=10**9), Budget(seconds=60), journal)
        print(outcome.stop, outcome.best.seconds <= outcome.start.seconds)
    """
    file = tmp_path / "search.jsonl"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, file], capture_output=True, text=True, cwd=root, check=False
    )
    assert (done.stdout, done.stderr) == ("Interrupted True\n", "")
    log = read(file)
    assert (log.stop, log.torn) == (StopReason.INTERRUPTED, False)
    assert replay(log, Wander()).state <= 1000


def test_replay_from_another_start_is_refused():
    journal = Journal()
    search(line([2, 1]), Greedy(), Budget(), journal)
    other = line([2, 1])
    other.start = lambda: 1
    with pytest.raises(SearchError, match="does not go the way") as error:
        replay(journal, other)
    assert "the start state" in str(error.value)


def test_a_state_is_named_the_same_everywhere_or_not_at_all():
    class Node:
        digest = "abc"

    @dataclass(frozen=True)
    class Value:
        n: int

    class Anonymous:
        pass

    assert fingerprint(Node()) == "abc"
    assert fingerprint(Value(1)) == fingerprint(Value(1)) != fingerprint(Value(2))
    with pytest.raises(SearchError, match="a Anonymous has no name"):
        fingerprint(Anonymous())


def test_reasons_and_resources_come_back():
    journal, space = Journal(), line([2, 1])
    inner = space.cost
    space.cost = lambda cs: [
        Scored(s.state, s.cost, "spill", {"registers": 32.0}) for s in inner(cs)
    ]
    best = search(space, Greedy(), Budget(), journal).best
    assert replay(journal, line([2, 1])) == best
    assert best.resources == {"registers": 32.0}
