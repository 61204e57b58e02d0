"""What a verb says and writes: results on stdout, progress on a terminal's stderr, whole files.

Progress is one line that overwrites itself, and is nothing where nobody watches. A file
appears under its name when it is complete: it is written beside it and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
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
    try:
        tempfile.TemporaryFile(dir=folder).close()  # asking for permission says yes to root
    except OSError as fault:
        raise OutputError(
            f"{file} cannot be written",
            expected="a folder that can be written",
            got=fault.strerror,
            where=folder,
            hint="name another place",
        ) from fault


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
        raise OutputError(f"{file} cannot be written", got=fault) from fault
    finally:
        part.unlink(missing_ok=True)
