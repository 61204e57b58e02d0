"""The schema of the database, and how an older one becomes the present one."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import suppress

from whet.errors import StoreError

APPLICATION = 0x77686574  # "whet": tells our database from another's

# Entry v brings a database from version v to v + 1. Entries are never changed, only appended.
MIGRATIONS = (
    """
    CREATE TABLE row (
        kind TEXT NOT NULL, key TEXT NOT NULL,
        form TEXT NOT NULL,              -- 'bytes' or 'json'
        value BLOB,                      -- null: in the blob
        blob TEXT,                       -- the SHA-256 of the value, which is its file's name
        size INTEGER NOT NULL,           -- bytes of the value
        sum BLOB NOT NULL,               -- checksum of everything above
        used REAL NOT NULL,              -- seconds since 1970, of the last use
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
    CREATE INDEX row_blob ON row (blob) WHERE blob IS NOT NULL;
    CREATE TABLE total (bytes INTEGER NOT NULL);
    INSERT INTO total VALUES (0);
    CREATE TRIGGER more AFTER INSERT ON row BEGIN UPDATE total SET bytes = bytes + new.size; END;
    CREATE TRIGGER less AFTER DELETE ON row BEGIN UPDATE total SET bytes = bytes - old.size; END;
    CREATE TRIGGER other AFTER UPDATE OF size ON row
        BEGIN UPDATE total SET bytes = bytes + new.size - old.size; END;
    """,
)


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Bring a database to the present version, whichever process comes first."""

    def number(pragma: str) -> int:
        return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])

    present = len(MIGRATIONS)
    if number("user_version") == present and number("application_id") == APPLICATION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = number("user_version")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and number("application_id") != APPLICATION:
            raise StoreError("this database is not a store", where=name)
        if version > present:
            raise StoreError(
                f"the store is of version {version}, newer than this program's {present}",
                where=name,
                hint="update whet, or set WHET_CACHE to another folder",
            )
        for script in MIGRATIONS[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {present}")
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a script (`executescript` would commit the transaction around it)."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def checksum(
    kind: str, key: str, form: str, value: bytes | None, blob: str | None, size: int
) -> bytes:
    """What a row has to hash to; lengths keep its parts apart."""
    digest = hashlib.sha256()
    for part in (kind, key, form, value, blob, size):
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()[:16]
