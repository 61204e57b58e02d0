"""The one persistent store: rows of bytes or JSON, by kind and key.

    row   := kind, key → value            kind: "kernel-time", "artifact", "proof", "program", …
    value := bytes | JSON                 beyond 64 KiB: a file of its own, named by its SHA-256
    place := $WHET_CACHE or ~/.cache/whet
               store.sqlite               the rows (SQLite in WAL mode), each with a checksum
               blobs/ab/abcdef…           the large values
               quarantine/                what was found damaged, kept for whoever wants to look

Keys are the callers': the structural hash of what a row is about and, where it was measured, the
fingerprint of the machine. The store knows neither.

It is a cache, and never a reason to fail. Where it cannot write it goes on in memory, where it
finds damage it moves that out of the way, and each time `notes` counts why; with `strict` it raises
instead. What was put stays put when the process is killed at any moment, and any number of
processes may share a store.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from whet.errors import StoreError
from whet.store.database import Database

__all__ = ["CAP", "Stats", "Store"]

T = TypeVar("T")

CAP = 4 << 30  # bytes beyond which the least recently used rows go
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Stats:
    """What a store holds (rows and bytes by kind) and what was asked of it since it was opened."""

    path: str | None
    kinds: Mapping[str, tuple[int, int]]
    hits: int
    misses: int
    puts: int
    notes: Mapping[str, int]

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.kinds.values())

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.kinds.values())


class Store:
    """Rows by kind and key. Safe to use from several threads and after a fork.

    >>> with Store.memory() as store:
    ...     store.put("kernel-time", "3f2a/cpu", {"median_s": 0.0021})
    ...     store.get("kernel-time", "3f2a/cpu"), store.get("kernel-time", "other")
    ({'median_s': 0.0021}, None)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        strict: bool = False,
        cap: int = CAP,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the store in the folder `path`, or one in memory. Users call `open` or `memory`."""
        self.strict, self.cap, self.clock = strict, cap, clock
        self._notes: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._memory: Database | None = None
        self._disk: Database | None = None
        if path is not None:
            try:
                self._disk = Database(Path(path), self._note)
            except (OSError, sqlite3.Error, StoreError) as error:
                self._refuse("in memory only", path, error)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        strict: bool = False,
        cap: int = CAP,
        clock: Callable[[], float] = time.time,
    ) -> Store:
        """Open the store of this user, or the one in the folder `path`.

        Args:
            path: the folder; $WHET_CACHE, else ~/.cache/whet, unless given.
            strict: raise StoreError where the store would go on in memory or set damage aside.
            cap: bytes beyond which the least recently used rows are dropped.
            clock: seconds since 1970; tests pass their own.

        Raises:
            StoreError: with `strict` only.
        """
        if path is None:
            path = os.environ.get("WHET_CACHE") or Path.home() / ".cache" / "whet"
        return cls(path, strict=strict, cap=cap, clock=clock)

    @classmethod
    def memory(cls) -> Store:
        """A store that ends with its process."""
        return cls(None)

    @property
    def path(self) -> Path | None:
        """The folder, or None where the store is in memory only."""
        return None if self._disk is None else self._disk.folder

    @property
    def notes(self) -> Mapping[str, int]:
        """What went wrong and was worked around, with how often."""
        return dict(self._notes)

    def put(self, kind: str, key: str, value: Any) -> None:
        """Set a row to bytes, or to anything that JSON holds (a tuple comes back as a list).

        Raises:
            StoreError: the value is neither, or `strict` and the store cannot be written.
        """
        form, data = _encode(kind, key, value)
        self._asked["puts"] += 1
        with self._lock:
            self._put(kind, key, form, data)

    def get(self, kind: str, key: str, default: Any = None) -> Any:
        """The value last put there, or `default`. A damaged row is set aside, noted, and missed."""
        with self._lock:
            for database in self._databases():
                found = self._try("read", database.get, kind, key, self.clock())
                if found is not None:
                    self._asked["hits"] += 1
                    form, data = found
                    return json.loads(data) if form == "json" else data
            self._asked["misses"] += 1
            return default

    def delete(self, kind: str, key: str | None = None) -> None:
        """Drop a row, or every row of a kind."""
        with self._lock:
            for database in self._databases():
                self._try("delete", database.delete, kind, key)

    def keys(self, kind: str) -> list[str]:
        """The keys of a kind, sorted."""
        with self._lock:
            found: set[str] = set()
            for database in self._databases():
                found |= self._try("read", database.keys, kind) or set()
            return sorted(found)

    def prune(self, cap: int | None = None) -> int:
        """Drop the least recently used rows until at most `cap` bytes of values remain.

        Returns: how many rows went. `put` does this by itself.
        """
        cap = self.cap if cap is None else cap
        with self._lock:
            return sum(self._try("prune", d.prune, cap) or 0 for d in self._databases())

    def verify(self) -> int:
        """Read every row against its checksum, and the database against itself.

        Returns: how many rows were damaged; they are in quarantine now.
        """
        with self._lock:
            return sum(self._try("verify", d.verify) or 0 for d in self._databases())

    def export(self, file: str | os.PathLike[str]) -> int:
        """Write every row as JSON Lines, whole or not at all. Returns: how many."""
        written = 0
        with self._lock, _replacing(Path(file)) as out:
            for kind in sorted(self.stats().kinds):
                for key in self.keys(kind):
                    value = self.get(kind, key, _MISSING)
                    if value is _MISSING:
                        continue  # another process dropped it, or it was damaged and noted
                    row: dict[str, Any] = {"kind": kind, "key": key}
                    if isinstance(value, bytes):
                        row["bytes"] = base64.b64encode(value).decode()
                    else:
                        row["json"] = value
                    out.write(json.dumps(row).encode() + b"\n")
                    written += 1
        return written

    def load(self, file: str | os.PathLike[str]) -> int:
        """Put every row of an exported file, after reading all of it. Returns: how many.

        Raises:
            StoreError: the file cannot be read, or a line is not a row; nothing was put then.
        """
        rows = []
        try:
            lines = Path(file).read_bytes().splitlines()
        except OSError as error:
            raise StoreError("the rows cannot be read", where=file, got=error) from error
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                data = row.get("bytes")
                value = row["json"] if data is None else base64.b64decode(data, validate=True)
                rows.append((str(row["kind"]), str(row["key"]), value))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StoreError(
                    "this is no row of a store",
                    expected='{"kind": …, "key": …, "json": … or "bytes": base64}',
                    got=line[:80].decode(errors="replace"),
                    where=f"{os.fspath(file)}, line {number}",
                ) from error
        for kind, key, value in rows:
            self.put(kind, key, value)
        return len(rows)

    def stats(self) -> Stats:
        """What is there, and what was asked."""
        kinds: dict[str, tuple[int, int]] = {}
        with self._lock:
            for database in self._databases():
                for kind, rows, size in self._try("read", database.kinds) or ():
                    before = kinds.get(kind, (0, 0))
                    kinds[kind] = (before[0] + rows, before[1] + size)
        asked = self._asked
        path = None if self.path is None else str(self.path)
        return Stats(path, kinds, asked["hits"], asked["misses"], asked["puts"], self.notes)

    def close(self) -> None:
        """Write down what was used when, and let go of the files."""
        with self._lock:
            if self._disk is not None:
                self._try("close", self._disk.close)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _databases(self) -> list[Database]:
        """Where rows are; what is in memory is newer."""
        return [database for database in (self._memory, self._disk) if database is not None]

    def _put(self, kind: str, key: str, form: str, data: bytes) -> None:
        now = self.clock()
        if self._disk is not None:
            try:
                if len(data) > self.cap:
                    raise OSError(f"{len(data)} bytes in one row, of {self.cap} in all")
                self._disk.put(kind, key, form, data, now)
                if self._disk.size() > self.cap:
                    self._disk.prune(self.cap * 9 // 10)  # some room, or every put would prune
                if self._memory is not None:
                    self._memory.delete(kind, key)  # or the older value would hide the newer
                return
            except (OSError, sqlite3.Error) as error:
                self._refuse("a row is in memory only", self._disk.folder, error)
        if self._memory is None:
            self._memory = Database(None, self._note)
        self._memory.put(kind, key, form, data, now)

    def _try(self, verb: str, act: Callable[..., T], *args: Any) -> T | None:
        try:
            return act(*args)
        except (OSError, sqlite3.Error) as error:
            self._refuse(f"cannot {verb}", self.path, error)
            return None

    def _note(self, what: str, place: object, got: object) -> None:
        if self.strict:
            raise StoreError(what, where=place, got=got, hint="look at the quarantine folder")
        self._notes[f"{what}: {got}"] += 1

    def _refuse(self, what: str, place: object, got: object) -> None:
        if self.strict:
            if isinstance(got, StoreError):
                raise got
            raise StoreError(
                "the store cannot be used",
                expected="a folder that can be written, on a disk with room",
                got=got,
                where=place,
                hint="set WHET_CACHE to another folder",
            ) from (got if isinstance(got, Exception) else None)
        reason = got.summary if isinstance(got, StoreError) else got
        self._notes[f"{what}: {reason}"] += 1


def _encode(kind: str, key: str, value: Any) -> tuple[str, bytes]:
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes", bytes(value)
    try:
        return "json", json.dumps(value).encode()
    except (TypeError, ValueError) as error:
        raise StoreError(
            "a store holds bytes and JSON",
            expected="bytes, or dicts, lists, strings, numbers, booleans and None",
            got=f"{type(value).__name__} ({error})",
            where=f"put({kind!r}, {key!r}, …)",
        ) from error


@contextmanager
def _replacing(file: Path) -> Iterator[Any]:
    """A file that appears under its name when it is complete."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise StoreError("the rows cannot be written", where=file, got=error) from error
    finally:
        temporary.unlink(missing_ok=True)
