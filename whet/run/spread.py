"""Threads on processors of their own before something is timed; see `spread.c`.

settled()    other threads of the process sleep, and those that compute have a processor each
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from whet.backend.build import compile_text
from whet.backend.link import joined
from whet.errors import WhetError
from whet.machine import Machine
from whet.machine.target import Target
from whet.run.measure import quiet

SOURCE = Path(__file__).with_name("spread.c")


def text(threads: int) -> str:
    """The C text for teams of so many threads."""
    return f"#define THREADS {threads}\n{SOURCE.read_text()}"


def spread() -> int:
    """Parts threads that share a processor while another one is free; how many were moved.

    Nothing where there is no compiler, or no system that tells.
    """
    found = _compiled(torch.get_num_threads())
    return found() if found else 0


def settled() -> None:
    """Waits until the process's other threads sleep, then parts those that compute."""
    quiet()
    spread()


@cache
def _compiled(threads: int) -> Callable[[], int] | None:
    if threads < 2:
        return None
    target = Target.of(Machine.detect(), threads)
    try:
        with tempfile.TemporaryDirectory(prefix="whet-spread-") as folder:
            library = Path(folder) / "spread.so"
            library.write_bytes(joined([compile_text(text(threads), target)], target))
            loaded = ctypes.CDLL(str(library))
    except (WhetError, OSError):
        return None
    found: Callable[[], int] = loaded.whet_spread
    return found
