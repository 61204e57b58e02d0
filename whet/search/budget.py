"""How long a search may go on, and why it ended.

A budget is a purse: limits on seconds, candidates, nodes (e-nodes, states of a table, whatever a
space builds) and memory, and what has been spent of each. `part` hands an inner search a smaller
purse; what it spends is spent from the outer one too, and cancelling either stops both.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from whet.errors import SearchError


class StopReason(StrEnum):
    """Why a search stopped."""

    SATURATED = "Saturated"  # there was nothing left to propose
    CONVERGED = "Converged"  # there was, but the strategy expects nothing better of it
    BUDGET = "Budget"  # seconds, candidates or memory ran out
    NODE_LIMIT = "NodeLimit"  # the space grew to its limit
    INTERRUPTED = "Interrupted"  # Ctrl-C, or somebody called `cancel`


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


class Budget:
    """What a search may spend, counted from the moment this is made.

    Args:
        seconds, candidates, nodes: limits; infinite unless given.
        memory: bytes that the process may come to hold more than when this was made.
        batch: how many candidates are priced together, between two looks at the clock.
        clock: seconds from any origin; tests pass their own.
        gauge: bytes that the process holds.

    >>> whole = Budget(candidates=10)
    >>> part = whole.part(candidates=4)
    >>> part.spend(candidates=4)
    >>> part.stop(), whole.stop(), whole.candidates_left
    (<StopReason.BUDGET: 'Budget'>, None, 6)
    """

    def __init__(
        self,
        *,
        seconds: float = math.inf,
        candidates: float = math.inf,
        nodes: float = math.inf,
        memory: float = math.inf,
        batch: int = 64,
        clock: Callable[[], float] = time.monotonic,
        gauge: Callable[[], float] = resident,
    ) -> None:
        limits = {"seconds": seconds, "candidates": candidates, "nodes": nodes, "memory": memory}
        for name, limit in limits.items():
            if not limit >= 0:
                raise SearchError("a budget cannot be this", expected=f"{name} >= 0", got=limit)
        if batch < 1:
            raise SearchError("a budget cannot be this", expected="batch >= 1", got=batch)
        self.batch = batch
        self.clock = clock
        self._deadline = clock() + seconds
        self._candidates = candidates
        self._nodes = nodes
        self.gauge = gauge
        self._most = memory + (gauge() if memory < math.inf else 0)
        self._cancelled = False
        self._outer: Budget | None = None

    def part(
        self,
        *,
        seconds: float = math.inf,
        candidates: float = math.inf,
        nodes: float = math.inf,
        memory: float = math.inf,
        batch: int | None = None,
    ) -> Budget:
        """A smaller purse inside this one."""
        inner = Budget(
            seconds=seconds,
            candidates=candidates,
            nodes=nodes,
            memory=memory,
            batch=batch or self.batch,
            clock=self.clock,
            gauge=self.gauge,
        )
        inner._outer = self
        return inner

    def spend(self, *, candidates: int = 0, nodes: int = 0) -> None:
        """Count what was used. Spending more than is left is no error; `stop` tells."""
        self._candidates -= candidates
        self._nodes -= nodes
        if self._outer is not None:
            self._outer.spend(candidates=candidates, nodes=nodes)

    def cancel(self) -> None:
        """Ask the search to end with what it has; safe from a signal handler or another thread."""
        self._cancelled = True
        if self._outer is not None:
            self._outer.cancel()

    @property
    def cancelled(self) -> bool:
        return self._cancelled or (self._outer is not None and self._outer.cancelled)

    @property
    def seconds_left(self) -> float:
        left = self._deadline - self.clock()
        return max(0.0, left if self._outer is None else min(left, self._outer.seconds_left))

    @property
    def candidates_left(self) -> float:
        left = self._candidates
        return max(0, left if self._outer is None else min(left, self._outer.candidates_left))

    @property
    def nodes_left(self) -> float:
        left = self._nodes
        return max(0, left if self._outer is None else min(left, self._outer.nodes_left))

    @property
    def memory_left(self) -> float:
        """Bytes; below 0 once there are too many."""
        left = self._most - self.gauge() if self._most < math.inf else math.inf
        return left if self._outer is None else min(left, self._outer.memory_left)

    def stop(self) -> StopReason | None:
        """Why the search has to end now, or None."""
        if self.cancelled:
            return StopReason.INTERRUPTED
        if self.nodes_left <= 0:
            return StopReason.NODE_LIMIT
        if self.candidates_left <= 0 or self.seconds_left <= 0 or self.memory_left < 0:
            return StopReason.BUDGET
        return None
