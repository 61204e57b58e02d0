"""Ranks as processes of this machine, where no torchrun has started them.

    launch(command, ranks, timeout) → exit codes

The parent hosts the store, so that it outlives any rank. When a rank ends badly the others get the
time to say whom they blame; then they are ended, and their children with them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from whet.run.parallel.torchdist import hosted

GRACE_S = 12.0  # after the first failure


@dataclass(frozen=True, slots=True)
class Ended:
    """How one rank ended.

    Attributes:
        code: exit code; negative for a signal.
        text: what it printed, errors last.
    """

    rank: int
    code: int
    text: str


def launch(command: Sequence[str], ranks: int, *, limit: float, echo: bool = False) -> list[Ended]:
    """Run a command once for each rank, with torchrun's variables set.

    Args:
        command: what each process runs.
        limit: seconds for all.
        echo: rank 0 writes to this process's terminal.
    """
    store = hosted(30)
    made = []
    try:
        for r in range(ranks):
            env = os.environ | {
                "RANK": str(r), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(r),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }  # fmt: skip
            env.setdefault("OMP_NUM_THREADS", "1")
            out = None if echo and r == 0 else subprocess.PIPE
            made.append(
                subprocess.Popen(
                    list(command), env=env, stdout=out, stderr=subprocess.STDOUT if out else None,
                    text=True, start_new_session=True,
                )
            )  # fmt: skip
        _wait(made, limit)
    finally:
        for p in made:
            if p.poll() is None:
                _end(p)
    found = []
    for r, p in enumerate(made):
        text = p.communicate()[0] or ""
        found.append(Ended(r, p.returncode, text))
    del store
    return found


def _wait(made: Sequence[subprocess.Popen[str]], limit: float) -> None:
    """Until all have ended; not much longer than the first that ends badly."""
    end = time.monotonic() + limit
    failed = False
    while any(p.poll() is None for p in made) and time.monotonic() < end:
        if not failed and any(p.poll() not in (None, 0) for p in made):
            failed = True
            end = min(end, time.monotonic() + GRACE_S)
        time.sleep(0.05)


def _end(p: subprocess.Popen[str]) -> None:
    try:
        os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    p.wait()


def here(*arguments: str) -> list[str]:
    """The command that runs a verb of this whet in another process."""
    return [sys.executable, "-m", "whet.cli", *arguments]
