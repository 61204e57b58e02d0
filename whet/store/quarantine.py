"""What was found damaged, moved where it does no harm and can be looked at."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from whet.store.schema import checksum

PATIENCE = 30.0  # seconds to wait for another process to finish writing


def set_database_aside(database: Path, quarantine: Path) -> Path | None:
    """Move a damaged database away; None if it is sound, because another process was here first."""
    with _locked(database.with_name("lock")):
        if _sound(database):
            return None
        aside = _unused(quarantine, database.name)
        for tail in ("-wal", "-shm", ""):  # the database last: without it this starts again
            with suppress(FileNotFoundError):
                os.replace(f"{database}{tail}", f"{aside}{tail}")
        return aside


def set_row_aside(row: tuple[Any, ...], why: str, quarantine: Path, file: Path | None) -> Path:
    """Write down a row, as far as it can be read, and move its file beside it."""
    aside = _unused(quarantine, "row.json")
    names = ("kind", "key", "form", "value", "blob", "size", "sum")
    record = {"why": why} | dict(zip(names, row, strict=True))
    for name in ("value", "sum"):
        if isinstance(record[name], bytes):
            record[name] = base64.b64encode(record[name]).decode()
    aside.write_text(json.dumps(record, default=repr) + "\n", encoding="utf-8")
    if file is not None:
        with suppress(FileNotFoundError):
            os.replace(file, aside.with_suffix(".blob"))
    return aside


def salvage(database: Path) -> Iterator[tuple[Any, ...]]:
    """The rows of a damaged database that can still be read and have their checksum."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as connection:
        for row in connection.execute("SELECT * FROM row"):
            if len(row) == 8 and row[6] == checksum(*row[:6]):
                yield row


def _sound(database: Path) -> bool:
    try:
        with closing(sqlite3.connect(database, timeout=PATIENCE)) as connection:
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.DatabaseError:
        return False
    return bool(verdict == ("ok",))


def _unused(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    paths = (folder / f"{stamp}-{os.getpid()}-{number}-{name}" for number in count())
    return next(path for path in paths if not path.exists())


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with open(file, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
