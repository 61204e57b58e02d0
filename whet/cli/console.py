"""What a verb says and writes: results on stdout, progress on a terminal's stderr, whole files.

Progress is one line that overwrites itself, and is nothing where nobody watches. A file or a folder
appears under its name when it is complete: it is made beside it under another name and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from whet.errors import WhetError


class OutputError(WhetError):
    """A file or folder that cannot be written."""


class Console:
    """Where a verb's words go.

    Args:
        out: results.
        err: progress, and messages that are no result.
        json: the file that `finish` writes, or None.
    """

    def __init__(self, out: TextIO, err: TextIO, json: Path | None = None) -> None:
        self.out, self.err = out, err
        self.json = json
        self.watched = err.isatty()
        self._shown = False

    def print(self, text: str = "") -> None:
        """A line, or lines, of the result."""
        self.clear()
        print(text, file=self.out, flush=True)

    def say(self, text: str) -> None:
        """Something to know that is no result."""
        self.clear()
        print(text, file=self.err, flush=True)

    def progress(self, text: str) -> None:
        """What is being done now; seen on a terminal only, until the next word."""
        if self.watched:
            width = shutil.get_terminal_size().columns - 1
            line = text.splitlines()[0] if text else ""
            self.err.write(f"\r\x1b[K{line[:width]}")
            self.err.flush()
            self._shown = True

    def clear(self) -> None:
        """Take the progress line away."""
        if self._shown:
            self._shown = False
            self.err.write("\r\x1b[K")
            self.err.flush()

    def check(self) -> None:
        """Find out now, and not after the work, whether `--json` can be written.

        Raises:
            OutputError: it cannot.
        """
        if self.json is not None:
            check_writable(self.json)

    def finish(self, data: Any) -> None:
        """Write the result as data, if `--json` asked for it."""
        if self.json is not None:
            write(self.json, json.dumps(data, indent=1, default=str) + "\n")


def check_writable(file: Path) -> None:
    """Whether a file, or folder, of that name can be made.

    Raises:
        OutputError: its folder is missing or cannot be written.
    """
    folder = file.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(
            f"{file} cannot be written",
            expected="a folder that can be written",
            got="no folder" if not folder.is_dir() else "one that cannot be written",
            where=folder,
            hint="name another place",
        )


def write(file: Path, text: str) -> None:
    """A file with this text, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as fault:
        raise _unwritable(file, fault) from fault
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def folder_at(place: Path, mark: str) -> Iterator[Path]:
    """An empty folder to fill, which becomes `place` when it is complete.

    Args:
        place: the folder; an older one is replaced if it holds a file named `mark`, as those of
            whet do, or nothing.
        mark: see above.

    Raises:
        OutputError: `place` holds something else, or cannot be written.
    """
    check_writable(place)
    if _holds_something(place) and not (place / mark).exists():
        raise OutputError(
            f"{place} is there already, and no program of whet",
            expected=f"a new or empty folder, or one with {mark} in it",
            hint="name another folder with --out",
        )
    part = old = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        part.chmod(0o755)
        yield part
        if place.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent)) / "old"
            place.rename(old)
        part.rename(place)
    except OSError as fault:
        raise _unwritable(place, fault) from fault
    finally:
        for rest in (part, old.parent if old else None):
            if rest is not None and rest.exists():
                shutil.rmtree(rest, ignore_errors=True)


def _holds_something(place: Path) -> bool:
    return place.exists() and (not place.is_dir() or any(place.iterdir()))


def _unwritable(place: Path, fault: OSError) -> OutputError:
    return OutputError(f"{place} cannot be written", got=fault, hint="name another place")
