"""Pretended devices of which tests know what is fast; runners find them by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.run.cuda import Body, Pretended, Recording


class Last(Pretended):
    """A device on which what was tried last is the fastest."""

    def raced(self, calls: Sequence[Callable[[], object]], rounds: int = 3) -> list[list[float]]:
        for call in calls:
            call()
        return [[1.0 / (1 + n)] * 3 for n, _ in enumerate(calls)]


class LastSearched(Last):
    """The same, with time for searches."""

    tuning = 0.5


class Searching(Pretended):
    """A device by the clock, with time for searches."""

    tuning = 0.25


class Unable(Pretended):
    """A device that answers no runner."""

    def wait(self) -> None:
        raise RuntimeError("no context")

    def recorded(self, body: Body) -> Recording:
        raise RuntimeError("no context")
