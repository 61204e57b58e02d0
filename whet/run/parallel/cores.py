"""The processors of a rank, where several ranks share a host.

Gloo's event loop tries for a lock that a waiting call may hold, again and again. Woken on the
processor where that call runs, it takes its place (a thread that wakes goes first) and tries until
the clock's next tick: an all_reduce of 0.1 ms took 4 ms every third time. Two things mend it:
threads that do not push others aside when they wake (SCHED_BATCH), and a part of the processors for
each rank, so that no rank's threads stand in another's way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence


def share(allowed: Sequence[int], place: int, count: int) -> list[int]:
    """The processors of one of several ranks; all of them where there are fewer than ranks.

    >>> share([0, 1, 2, 3, 4], 1, 2), share([0, 1], 2, 4)
    ([2, 3], [0, 1])
    """
    each = len(allowed) // max(1, count)
    return list(allowed[place * each : (place + 1) * each]) if each else list(allowed)


def settle(place: int, count: int) -> None:
    """Keep this process to its part of the processors; threads that it starts follow it.

    Args:
        place: of this rank among those of the host.
        count: ranks of the host.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    own = share(sorted(os.sched_getaffinity(0)), place, count)
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(OSError):  # it has ended, or the host does not allow it
            os.sched_setaffinity(thread, own)
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def settle_launched() -> None:
    """The same by the variables that a launcher sets; nothing where there are none."""
    place, count = os.environ.get("LOCAL_RANK"), os.environ.get("LOCAL_WORLD_SIZE")
    if place is not None and count is not None:
        settle(int(place), int(count))
