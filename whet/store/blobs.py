"""Large values: files named by the SHA-256 of what they hold, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Collection
from pathlib import Path

STALE = 3600  # seconds after which an unfinished file belongs to nobody


class Blobs:
    """The files of a folder. A file is first written beside its place, then moved there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    def prepare(self, digest: str, data: bytes) -> Path:
        """Write a file for `settle`, safe on disk; the caller removes it if that never comes."""
        place = self.path(digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f"{digest}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def settle(self, digest: str, temporary: Path) -> None:
        """Give a prepared file its name; done already is no error."""
        place = self.path(digest)
        if temporary.exists():
            os.replace(temporary, place)
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def read(self, digest: str) -> bytes | None:
        """The value, or None where the file holds another.

        Raises:
            FileNotFoundError: there is no such file.
        """
        data = self.path(digest).read_bytes()
        return data if name(data) == digest else None

    def sweep(self, named: Collection[str]) -> None:
        """Remove files that nobody names, and what was left unfinished."""
        for file in self.folder.glob("*/*"):
            if file.suffix == ".tmp":
                unwanted = time.time() - file.stat().st_mtime > STALE
            else:
                unwanted = file.name not in named
            if unwanted:
                file.unlink(missing_ok=True)


def name(data: bytes) -> str:
    """The name of a value's file."""
    return hashlib.sha256(data).hexdigest()
