"""The store keeps what it was given, whatever happens to its process, its files or its disk."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.errors import StoreError
from whet.store import Store, blobs, database, schema

BIG = bytes(range(256)) * 1024  # a blob
KEY = ("artifact", "k")


class Time:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        self.now += 1
        return self.now


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# -- what is put is got -------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.tuples(st.text(), st.text()), st.binary() | values, max_size=8))
def test_round_trip(rows):
    with Store.memory() as store:
        for (kind, key), value in rows.items():
            store.put(kind, key, b"an older value")
            store.put(kind, key, value)
        missing = object()
        assert {at: store.get(*at, missing) for at in rows} == rows
        assert store.stats().rows == len(rows)


@pytest.mark.parametrize("value", [b"", b"small", BIG, None, 1.5, {"a": [1, "ü"]}, "x" * 100_000])
def test_a_value_outlives_its_process(tmp_path, value):
    with Store.open(tmp_path) as store:
        store.put("proof", "k", value)
    with Store.open(tmp_path) as store:
        assert store.get("proof", "k", "missing") == value
        assert store.notes == {}


def test_a_miss_gives_the_default(tmp_path):
    with Store.open(tmp_path) as store:
        assert store.get("proof", "k") is None
        assert store.get("proof", "k", 7) == 7
        store.put("proof", "k", None)
        assert store.get("proof", "k", 7) is None


def test_keys_and_delete(tmp_path):
    with Store.open(tmp_path) as store:
        for key in "cab":
            store.put("proof", key, key)
            store.put("program", key, key)
        assert store.keys("proof") == ["a", "b", "c"]
        store.delete("proof", "b")
        assert store.keys("proof") == ["a", "c"]
        store.delete("proof")
        assert (store.keys("proof"), store.keys("program")) == ([], ["a", "b", "c"])


def test_the_place_is_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "here"))
    with Store.open() as store:
        assert store.path == tmp_path / "here"
    monkeypatch.delenv("WHET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    with Store.open() as store:
        assert store.path == tmp_path / ".cache" / "whet"


@pytest.mark.parametrize("value", [object(), {1, 2}, {"a": b"bytes"}])
def test_other_values_are_refused(value):
    with pytest.raises(StoreError, match="a store holds bytes and JSON") as error:
        Store.memory().put("proof", "k", value)
    assert "put('proof', 'k', …)" in str(error.value)


def test_statistics(tmp_path):
    with Store.open(tmp_path) as store:
        store.put("artifact", "a", BIG)
        store.put("proof", "p", b"123")
        store.put("proof", "q", b"4567")
        store.get("proof", "p")
        store.get("proof", "none")
        stats = store.stats()
    assert stats.kinds == {"artifact": (1, len(BIG)), "proof": (2, 7)}
    assert (stats.rows, stats.bytes) == (3, len(BIG) + 7)
    assert (stats.hits, stats.misses, stats.puts) == (1, 1, 3)
    assert (stats.path, stats.notes) == (str(tmp_path), {})


# -- blobs and pruning --------------------------------------------------------------------------


def test_large_values_are_files_shared_by_content_and_removed_with_their_last_row(tmp_path):
    with Store.open(tmp_path) as store:
        store.put("artifact", "a", BIG)
        store.put("artifact", "b", BIG)
        (file,) = files(tmp_path / "blobs")
        assert file.read_bytes() == BIG
        store.delete("artifact", "a")
        store.prune()
        assert store.get("artifact", "b") == BIG
        store.delete("artifact", "b")
        store.prune()
        assert files(tmp_path / "blobs") == []


def test_the_least_recently_used_rows_go(tmp_path):
    with Store.open(tmp_path, clock=Time()) as store:
        for key in "abcdef":
            store.put("artifact", key, bytes(100))
        store.get("artifact", "a")
        assert store.prune(300) == 3
        assert store.keys("artifact") == ["a", "e", "f"]
        assert store.stats().bytes == 300
        assert store.prune(299) == 1
        assert store.prune(0) == 2


def test_use_is_remembered_across_processes(tmp_path):
    clock = Time()
    with Store.open(tmp_path, clock=clock) as store:
        for key in "abc":
            store.put("artifact", key, bytes(100))
    with Store.open(tmp_path, clock=clock) as store:
        store.get("artifact", "a")
    with Store.open(tmp_path, clock=clock) as store:
        store.prune(100)
        assert store.keys("artifact") == ["a"]


def test_a_full_store_prunes_itself(tmp_path):
    with Store.open(tmp_path, cap=1000, clock=Time()) as store:
        for number in range(50):
            store.put("artifact", f"{number:02}", bytes(100))
            assert store.stats().bytes <= 1000
        assert store.keys("artifact")[-1] == "49"
        store.put("artifact", "huge", bytes(1001))
        assert store.get("artifact", "huge") == bytes(1001)
        (note,) = store.notes
        assert note == "a row is in memory only: 1001 bytes in one row, of 1000 in all"


def test_an_unfinished_file_is_swept_when_it_is_old(tmp_path):
    with Store.open(tmp_path) as store:
        store.put("artifact", "a", BIG)
        (file,) = files(tmp_path / "blobs")
        old, new = (file.with_name(f"{name}.tmp") for name in ("old", "new"))
        old.touch()
        new.touch()
        os.utime(old, (0, 0))
        store.prune()
        assert files(tmp_path / "blobs") == sorted([file, new])


# -- many at once, and killed -------------------------------------------------------------------


def test_threads_share_a_store(tmp_path):
    with Store.open(tmp_path) as store:

        def work(name):
            for number in range(20):
                store.put("proof", f"{name}{number}", number)
                assert store.get("proof", f"{name}{number}") == number

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.keys("proof")) == 80


def run(script: str, *args: object) -> str:
    """The output of a script in a process of its own, which must succeed."""
    command = [sys.executable, "-W", "error", "-c", script, *map(str, args)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_processes_open_and_write_at_once(tmp_path):
    script = """if True:
        import os, sys
        from whet.store import Store
        children = []
        for name in "abcd":
            if not (child := os.fork()):
                with Store.open(sys.argv[1], strict=True) as store:
                    for number in range(25):
                        store.put("proof", f"{name}{number}", number)
                os._exit(0)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    """
    run(script, tmp_path)
    with Store.open(tmp_path, strict=True) as store:
        assert len(store.keys("proof")) == 100
        assert store.verify() == 0


def test_a_store_may_be_used_after_a_fork(tmp_path):
    script = """if True:
        import os, sys
        from whet.store import Store
        store = Store.open(sys.argv[1], strict=True)
        store.put("proof", "before", 1)
        if not (child := os.fork()):
            assert store.get("proof", "before") == 1
            store.put("proof", "child", 2)
            store.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        store.put("proof", "parent", 3)
        assert store.keys("proof") == ["before", "child", "parent"]
        store.close()
    """
    run(script, tmp_path)


def test_nothing_committed_is_lost_when_the_writer_is_killed(tmp_path):
    # The parent forks a writer, lets it commit for a while, and kills it, fifty times over. The
    # writer says through a pipe what it has put; all of that has to be there.
    script = """if True:
        import os, random, signal, sys, time
        from whet.store import Store

        def value(key):
            return (key * 30_000).encode() if key.endswith("7") else {"key": key}

        promised = []
        for turn in range(50):
            out, into = os.pipe()
            if not (child := os.fork()):
                os.close(out)
                store = Store.open(sys.argv[1], strict=True)
                for number in range(100_000):
                    key = f"{turn}-{number}"
                    store.put("proof", key, value(key))
                    if number % 5 == 4:
                        store.prune()
                    os.write(into, f"{key}\\n".encode())
            os.close(into)
            time.sleep(0.02 + 0.08 * random.random())
            os.kill(child, signal.SIGKILL)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
            with open(out, "rb") as pipe:
                promised += pipe.read().decode().split()
        with Store.open(sys.argv[1], strict=True) as store:
            assert all(store.get("proof", key) == value(key) for key in promised)
            assert store.verify() == 0
            assert store.notes == {}
        print(len(promised))
    """
    assert int(run(script, tmp_path)) > 100
    assert not (tmp_path / "quarantine").exists()


# -- damage -------------------------------------------------------------------------------------


def filled(folder: Path, rows: int = 50) -> None:
    with Store.open(folder, strict=True) as store:
        for number in range(rows):
            store.put("proof", f"{number:03}", {"value": "x" * 300, "number": number})
        store.put(*KEY, BIG)


def tamper(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / "store.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE row SET value = '{\"value\": 1}' WHERE key = '007'",
        "UPDATE row SET value = NULL WHERE key = '007'",
        "UPDATE row SET form = 'bytes' WHERE key = '007'",
        "UPDATE row SET sum = x'00' WHERE key = '007'",
        "UPDATE row SET key = '007' WHERE key = '050'",
    ],
)
def test_a_damaged_row_is_set_aside_and_missed(tmp_path, statement):
    filled(tmp_path, 51)
    if "050" in statement:
        tamper(tmp_path, "DELETE FROM row WHERE key = '007'")
    tamper(tmp_path, statement)
    with Store.open(tmp_path) as store:
        assert store.get("proof", "007") is None
        assert store.notes == {"a damaged row of 'proof' was set aside: its checksum differs": 1}
        (aside,) = files(tmp_path / "quarantine")
        assert json.loads(aside.read_text())["key"] == "007"
        assert "007" not in store.keys("proof")
        assert store.get("proof", "008")["number"] == 8
        store.put("proof", "007", "new")
        assert store.get("proof", "007") == "new"


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_set_aside_and_missed(tmp_path, damage):
    filled(tmp_path)
    (file,) = files(tmp_path / "blobs")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(BIG[:-1] + (b"!" if damage == "flip" else b""))
    with Store.open(tmp_path) as store:
        assert store.get(*KEY) is None
        (note,) = store.notes
        assert "its file is " + ("gone" if damage == "gone" else "damaged") in note
        kept = {path.suffix for path in files(tmp_path / "quarantine")}
        assert kept == ({".json"} if damage == "gone" else {".json", ".blob"})
        store.put(*KEY, BIG)
        assert store.get(*KEY) == BIG


def scribble(file: Path, where: float, what: bytes) -> None:
    with open(file, "r+b") as out:
        out.seek(int(file.stat().st_size * where))
        out.write(what)


@pytest.mark.parametrize("where", [0.0, 0.2, 0.5, 0.8])
def test_a_damaged_database_is_set_aside_and_its_rows_are_saved(tmp_path, where):
    filled(tmp_path, 200)
    scribble(tmp_path / "store.sqlite", where, random.randbytes(6000))
    with Store.open(tmp_path) as store:
        store.verify()
        good = [key for key in store.keys("proof") if store.get("proof", key) is not None]
        assert all(store.get("proof", key)["number"] == int(key) for key in good)
        assert len(good) < 200
        assert store.notes, "damage is never passed over in silence"
        assert any("store.sqlite" in path.name for path in files(tmp_path / "quarantine"))
        store.put("proof", "new", 1)
    with Store.open(tmp_path, strict=True) as store:
        assert store.get("proof", "new") == 1
        assert store.verify() == 0


def test_a_file_that_is_no_database_is_set_aside(tmp_path):
    (tmp_path / "store.sqlite").write_bytes(b"something else" * 100)
    with Store.open(tmp_path) as store:
        (note,) = store.notes
        assert note.startswith("the database was damaged and set aside: file is not a database")
        assert store.path == tmp_path
    (aside,) = files(tmp_path / "quarantine")
    assert aside.read_bytes() == b"something else" * 100


def test_one_of_many_processes_mends_the_database(tmp_path):
    filled(tmp_path)
    (tmp_path / "store.sqlite").write_bytes(b"something else" * 1000)
    script = """if True:
        import os, sys
        from whet.store import Store
        children = []
        for name in "abcd":
            if not (child := os.fork()):
                with Store.open(sys.argv[1]) as store:
                    store.put("proof", name, 1)
                    os._exit(sum(store.notes.values()))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 0, 0, 1], codes
    """
    run(script, tmp_path)
    with Store.open(tmp_path, strict=True) as store:
        assert store.keys("proof") == ["a", "b", "c", "d"]
    assert len(files(tmp_path / "quarantine")) == 1


def test_damage_raises_when_strict(tmp_path):
    filled(tmp_path)
    tamper(tmp_path, "UPDATE row SET value = 'x' WHERE key = '007'")
    with Store.open(tmp_path, strict=True) as store:
        with pytest.raises(StoreError, match="a damaged row of 'proof' was set aside") as error:
            store.get("proof", "007")
        assert "quarantine" in str(error.value)
    (tmp_path / "store.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(StoreError, match="the database was damaged"):
        Store.open(tmp_path, strict=True)


def test_verify_finds_all_damage(tmp_path):
    filled(tmp_path)
    tamper(tmp_path, "UPDATE row SET value = 'x' WHERE key IN ('003', '004')")
    files(tmp_path / "blobs")[0].unlink()
    with Store.open(tmp_path) as store:
        assert store.verify() == 3
        assert store.verify() == 0
        assert sum(store.notes.values()) == 3


# -- no place, no room --------------------------------------------------------------------------


def test_where_nothing_can_be_written_it_works_in_memory(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with Store.open(blocked / "store") as store:
        assert store.path is None
        store.put("proof", "k", 1)
        store.put(*KEY, BIG)
        assert (store.get("proof", "k"), store.get(*KEY)) == (1, BIG)
        (note,) = store.notes
        assert note.startswith("in memory only: ")
    with pytest.raises(StoreError, match="the store cannot be used") as error:
        Store.open(blocked / "store", strict=True)
    assert "set WHET_CACHE to another folder" in str(error.value)


def test_a_full_database_goes_on_in_memory(tmp_path):
    with Store.open(tmp_path) as store:
        store.put("proof", "small", 1)
        store._disk._connected().execute("PRAGMA max_page_count = 12")
        for number in range(4):
            store.put("artifact", str(number), bytes([number]) * 30_000)
        (note,) = store.notes
        assert note == "a row is in memory only: database or disk is full"
        assert store.notes[note] >= 3
        assert store.get("artifact", "3") == b"\3" * 30_000
        assert store.keys("artifact") == ["0", "1", "2", "3"]
        store.put("proof", "small", 2)
        assert store.get("proof", "small") == 2
        # Once there is room again, the newer value goes to disk and the one in memory goes.
        store._disk._connected().execute("PRAGMA max_page_count = 100000")
        store.put("artifact", "3", b"on disk")
        assert store.get("artifact", "3") == b"on disk"
    with Store.open(tmp_path, strict=True) as store:
        assert store.get("artifact", "3") == b"on disk"


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store.open(tmp_path) as store:
        monkeypatch.setattr(blobs.os, "fsync", full)
        store.put(*KEY, BIG)
        assert store.get(*KEY) == BIG
        assert store.notes == {"a row is in memory only: [Errno 28] No space left on device": 1}
        assert files(tmp_path / "blobs") == []
        store.strict = True
        with pytest.raises(StoreError, match="the store cannot be used"):
            store.put(*KEY, BIG)


def test_a_locked_database_is_waited_for_and_then_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE", 0.01)
    monkeypatch.setattr(database, "ATTEMPTS", 3)
    with Store.open(tmp_path) as store:
        other = sqlite3.connect(
            tmp_path / "store.sqlite", isolation_level=None, check_same_thread=False
        )
        other.execute("BEGIN IMMEDIATE")
        store.put("proof", "k", 1)
        assert store.notes == {"a row is in memory only: database is locked": 1}
        assert store.get("proof", "k") == 1
        monkeypatch.setattr(database, "ATTEMPTS", 8)
        timer = threading.Timer(0.05, other.close)
        timer.start()
        store.put("proof", "k", 2)
        timer.join()
        assert sum(store.notes.values()) == 1
    with Store.open(tmp_path, strict=True) as store:
        assert store.get("proof", "k") == 2


# -- versions -----------------------------------------------------------------------------------


def test_an_older_store_is_brought_up_to_date(tmp_path, monkeypatch):
    filled(tmp_path)
    added = "CREATE TABLE more (\n  n\n);\nINSERT INTO more VALUES (1);\n"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    with Store.open(tmp_path, strict=True) as store:
        assert store.get("proof", "007")["number"] == 7
        connection = store._disk._connected()
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT n FROM more").fetchall() == [(1,)]


def test_a_failed_migration_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    filled(tmp_path)
    with monkeypatch.context() as patch:
        broken = "CREATE TABLE more (n);\nINSERT INTO nowhere VALUES (1);\n"
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with Store.open(tmp_path) as store:
            assert store.notes == {"in memory only: no such table: nowhere": 1}
    with Store.open(tmp_path, strict=True) as store:
        assert store.get("proof", "007")["number"] == 7


def test_a_newer_store_is_left_alone(tmp_path):
    filled(tmp_path)
    tamper(tmp_path, "PRAGMA user_version = 99")
    before = (tmp_path / "store.sqlite").read_bytes()
    with Store.open(tmp_path) as store:
        (note,) = store.notes
        assert note == "in memory only: the store is of version 99, newer than this program's 1"
    with pytest.raises(StoreError, match="version 99"):
        Store.open(tmp_path, strict=True)
    assert (tmp_path / "store.sqlite").read_bytes() == before


def test_a_database_of_another_program_is_left_alone(tmp_path):
    tamper(tmp_path, "CREATE TABLE theirs (n)")
    with Store.open(tmp_path) as store:
        assert store.notes == {"in memory only: this database is not a store": 1}
        store.put("proof", "k", 1)
        assert store.get("proof", "k") == 1


# -- export and load ----------------------------------------------------------------------------


def test_what_is_exported_can_be_loaded_elsewhere(tmp_path):
    filled(tmp_path / "one")
    with Store.open(tmp_path / "one") as one, Store.open(tmp_path / "two") as two:
        assert one.export(tmp_path / "rows.jsonl") == 51
        assert two.load(tmp_path / "rows.jsonl") == 51
        assert two.stats().kinds == one.stats().kinds
        assert two.get(*KEY) == BIG
        assert two.get("proof", "007") == one.get("proof", "007")


@pytest.mark.parametrize(
    "line", ["{", "3", '{"kind": "proof", "key": "k"}', '{"kind": "a", "key": "b", "bytes": "?"}']
)
def test_a_bad_line_is_named_and_nothing_is_loaded(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"kind": "proof", "key": "k", "json": 1}\n' + line + "\n")
    store = Store.memory()
    with pytest.raises(StoreError, match="this is no row of a store") as error:
        store.load(file)
    assert f"{file}, line 2" in str(error.value)
    assert store.stats().rows == 0


def test_files_that_cannot_be_read_or_written(tmp_path):
    store = Store.memory()
    store.put("proof", "k", 1)
    with pytest.raises(StoreError, match="the rows cannot be read"):
        store.load(tmp_path / "none")
    with pytest.raises(StoreError, match="the rows cannot be written"):
        store.export(tmp_path / "no" / "folder")
    assert files(tmp_path) == []
