"""One database of rows, in a folder or in memory: transactions, retries and repair.

Errors of SQLite and of the file system pass through; what they mean for a user is the store's to
say. Damage is repaired here and handed to `note`: a row whose checksum differs is set aside and
missed, a database that SQLite finds broken is replaced by one with the rows that could be saved.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from whet.store import blobs
from whet.store.quarantine import PATIENCE, salvage, set_database_aside, set_row_aside
from whet.store.schema import checksum, migrate

T = TypeVar("T")

LARGE = 64 * 1024  # bytes beyond which a value becomes a file
ATTEMPTS = 8

PUT = """
    INSERT INTO row VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        form = excluded.form, value = excluded.value, blob = excluded.blob,
        size = excluded.size, sum = excluded.sum, used = excluded.used
"""
GET = "SELECT kind, key, form, value, blob, size, sum FROM row WHERE kind = ? AND key = ?"
# Rows go from the least recently used on, until those before a row are enough.
PRUNE = """
    DELETE FROM row WHERE (kind, key) IN (
        SELECT kind, key FROM (
            SELECT kind, key, size, sum(size) OVER (ORDER BY used, kind, key) AS upto FROM row)
        WHERE upto - size < ?)
"""


class Database:
    """The rows in `folder`, or in memory where it is None.

    Args:
        note: is told what was damaged, where it is now, and what was found.
    """

    def __init__(self, folder: Path | None, note: Callable[[str, Path | None, str], None]) -> None:
        self.folder, self._tell = folder, note
        self._touched: dict[tuple[str, str], float] = {}
        self._connection: sqlite3.Connection | None = None
        self._inherited: list[sqlite3.Connection] = []
        self._process = os.getpid()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.blobs = blobs.Blobs(folder / "blobs")
        self._run(_total)

    def put(self, kind: str, key: str, form: str, data: bytes, now: float) -> None:
        blob = blobs.name(data) if self.folder and len(data) > LARGE else None
        row = (kind, key, form, None if blob else data, blob, len(data))
        prepared = self.blobs.prepare(blob, data) if blob else None

        def write(connection: sqlite3.Connection) -> None:
            if blob and prepared:
                # Under the write lock, so that no pruning takes the file before its row is there.
                self.blobs.settle(blob, prepared)
            connection.execute(PUT, (*row, checksum(*row), now))
            self._write_touched(connection)

        try:
            self._transact(write)
        finally:
            if prepared:
                prepared.unlink(missing_ok=True)

    def get(self, kind: str, key: str, now: float) -> tuple[str, bytes] | None:
        """The form and the value of a row, or None."""
        for last in (False, True):
            row = self._run(lambda c: c.execute(GET, (kind, key)).fetchone())
            if row is None:
                return None
            _, _, form, value, blob, _, recorded = row
            if checksum(*row[:6]) != recorded:
                self._condemn(row, "its checksum differs")
                return None
            data: bytes | None = value
            if blob is not None:
                try:
                    data = self.blobs.read(blob)
                except FileNotFoundError:
                    if last:  # and not just replaced by another process while we looked
                        self._condemn(row, "its file is gone")
                    continue
                if data is None:
                    self._condemn(row, "its file is damaged", self.blobs.path(blob))
                    return None
            self._touched[kind, key] = now
            return form, data or b""
        return None

    def delete(self, kind: str, key: str | None) -> None:
        text, values = "DELETE FROM row WHERE kind = ?", [kind]
        if key is not None:
            text, values = f"{text} AND key = ?", [kind, key]
        self._transact(lambda c: c.execute(text, values))

    def keys(self, kind: str) -> set[str]:
        text = "SELECT key FROM row WHERE kind = ?"
        return {key for (key,) in self._run(lambda c: c.execute(text, (kind,)).fetchall())}

    def kinds(self) -> list[tuple[str, int, int]]:
        """Each kind with its rows and their bytes."""
        text = "SELECT kind, count(*), sum(size) FROM row GROUP BY kind"
        return self._run(lambda c: c.execute(text).fetchall())

    def size(self) -> int:
        """Bytes of all values; one that two rows share counts twice."""
        return int(self._run(_total))

    def prune(self, cap: int) -> int:
        """Drop the least recently used rows beyond `cap` bytes, then the files nobody names."""

        def drop(connection: sqlite3.Connection) -> int:
            self._write_touched(connection)
            return connection.execute(PRUNE, (_total(connection) - cap,)).rowcount

        gone = self._transact(drop)
        if self.folder is not None:
            # In a transaction of its own: were it undone, rows would name files that are gone.
            self._transact(self._sweep)
        return gone

    def verify(self) -> int:
        """Read everything. Returns: how many rows were damaged."""
        (verdict,) = self._run(lambda c: c.execute("PRAGMA integrity_check(1)").fetchone())
        if verdict != "ok":
            self._mend(sqlite3.DatabaseError(verdict))
        rows = self._run(lambda c: c.execute("SELECT kind, key FROM row").fetchall())
        used = dict(self._touched)  # to be checked is not to be used
        damaged = [key for kind, key in rows if self.get(kind, key, 0.0) is None]
        self._touched = used
        return len(damaged)

    def close(self) -> None:
        if self._connection is not None and self._process == os.getpid():
            if self._touched:
                self._transact(self._write_touched)
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        if self.folder is not None and self._process != os.getpid():
            # A connection to a file must not be used across a fork, nor closed by the child.
            self._inherited += [self._connection] if self._connection else []
            self._connection, self._process = None, os.getpid()
        if self._connection is None:
            name = ":memory:" if self.folder is None else str(self.folder / "store.sqlite")
            connection = sqlite3.connect(
                name, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                migrate(connection, name)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _transact(self, act: Callable[[sqlite3.Connection], T]) -> T:
        def transact(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = act(connection)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled back already
                    connection.execute("ROLLBACK")
                raise
            return result

        return self._run(transact)

    def _run(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Do it; wait while another process has the lock; mend the database once, if broken."""
        mended = self.folder is None
        for attempt in count(1):
            try:
                return act(self._connected())
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and attempt < ATTEMPTS:
                    # Not covered by SQLite's own patience: the change to WAL, a recovery.
                    time.sleep(0.01 * 2**attempt)
                elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) and not mended:
                    mended = True
                    self._mend(error)
                else:
                    raise
        raise AssertionError("counting ended")

    def _mend(self, error: sqlite3.DatabaseError) -> None:
        assert self.folder is not None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        aside = set_database_aside(self.folder / "store.sqlite", self.folder / "quarantine")
        if aside is None:
            return
        saved = list(salvage(aside))
        insert = "INSERT OR IGNORE INTO row VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        self._transact(lambda c: c.executemany(insert, saved))
        self._tell("the database was damaged and set aside", aside, f"{error}; {len(saved)} saved")

    def _condemn(self, row: tuple[Any, ...], why: str, file: Path | None = None) -> None:
        kind, key, *_, recorded = row
        aside = None
        if self.folder is not None:
            aside = set_row_aside(row, why, self.folder / "quarantine", file)
        self._touched.pop((kind, key), None)
        drop = "DELETE FROM row WHERE kind = ? AND key = ? AND sum IS ?"
        self._transact(lambda c: c.execute(drop, (kind, key, recorded)))
        self._tell(f"a damaged row of {kind!r} was set aside", aside, why)

    def _write_touched(self, connection: sqlite3.Connection) -> None:
        rows = [(now, kind, key) for (kind, key), now in self._touched.items()]
        text = "UPDATE row SET used = max(used, ?) WHERE kind = ? AND key = ?"
        connection.executemany(text, rows)
        self._touched.clear()

    def _sweep(self, connection: sqlite3.Connection) -> None:
        named = connection.execute("SELECT DISTINCT blob FROM row WHERE blob IS NOT NULL")
        self.blobs.sweep({blob for (blob,) in named})


def _total(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT bytes FROM total").fetchone()[0])
