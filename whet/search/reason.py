"""Why a kernel is not faster, in words that a search one level up can act on.

a Scored's `reason` := Reason | Reason ": " anything
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """What holds a kernel."""

    BANDWIDTH = "bandwidth-bound"  # it moves bytes as fast as the machine does
    COMPUTE = "compute-bound"  # it computes about as fast as the machine does
    OVERHEAD = "mostly overhead"  # it is so small that calling it costs as much
    PARALLELISM = "too little parallelism"  # threads have nothing to do
    SPILL = "register spill"  # more values are alive than there are registers
    SCRATCH = "scratch overflow"  # what it stages does not stay in cache
    ILLEGAL = "illegal move"  # a dependence forbids the schedule that would be fast
    UNSUPPORTED = "unsupported"  # no backend takes it

    @classmethod
    def of(cls, text: str) -> Reason | None:
        """The reason that a text begins with.

        >>> Reason.of("register spill: 40 of 32 vectors")
        <Reason.SPILL: 'register spill'>
        """
        return next((r for r in cls if text.startswith(r)), None)


GROWS = frozenset({Reason.SPILL, Reason.SCRATCH, Reason.ILLEGAL, Reason.UNSUPPORTED})
"""Reasons that hold for more operators as well: what contains a refused cluster is refused."""
