"""The allocator of a rank on a host: memory that a step gives back is kept for the next step.

glibc maps large blocks anew and gives them back at once; every touch of such memory is then a fault
of the page table, which costs more than what most element-wise operators do with it.
"""

from __future__ import annotations

import contextlib
import ctypes

TRIM, MAPS = -1, -4  # glibc's mallopt: M_TRIM_THRESHOLD (-1: never), M_MMAP_MAX


def keep() -> None:
    """Keep freed memory in this process; nothing happens where the C library is another one."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM, -1)
        mallopt(MAPS, 0)
