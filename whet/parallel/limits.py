"""What a strategy may use: one list, for the run that refuses and the search that leaves out.

    Limits := schedules offloads uneven microbatches
    SIMULATED      whatever the simulator prices
    EXECUTED       what ranks do

`compose` refuses what is beyond EXECUTED, and a search that is given it never proposes that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from whet.parallel.placed import OFFLOADS, SCHEDULES
from whet.parallel.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Excess:
    """One thing that a strategy uses and may not.

    Attributes:
        what: "this schedule", "offload", …
        expected: what would do.
        where: the stage; None for all.
    """

    what: str
    expected: str
    got: object
    where: int | None = None

    def __str__(self) -> str:
        return f"{self.what} ({self.got})"


@dataclass(frozen=True, slots=True)
class Limits:
    """What strategies may use.

    Attributes:
        schedules: of pipelines.
        offloads: what may be kept in the host's memory.
        uneven: whether replicas may have different numbers of samples.
        microbatches: at most; None: as many as samples.
    """

    schedules: tuple[str, ...] = SCHEDULES
    offloads: frozenset[str] = OFFLOADS
    uneven: bool = True
    microbatches: int | None = None

    def excess(self, s: Strategy) -> Iterator[Excess]:
        """What a strategy uses beyond the limits."""
        if s.schedule not in self.schedules and s.groups > 1:
            yield Excess("this schedule", ", ".join(self.schedules), s.schedule)
        for k, p in enumerate(s.parts):
            if over := p.offload - self.offloads:
                allowed = ", ".join(sorted(self.offloads)) or "none"
                yield Excess("offload", allowed, ", ".join(sorted(over)), k)
            if p.shares and not self.uneven:
                yield Excess("uneven replicas", "equal shares", p.shares, k)
        if self.microbatches is not None and s.microbatches > self.microbatches:
            yield Excess("a step in parts", f"{self.microbatches} microbatches", s.microbatches)

    def allow(self, s: Strategy) -> bool:
        """Whether a strategy stays within them."""
        return next(self.excess(s), None) is None

    def counts(self, values: list[int]) -> list[int]:
        """Of some numbers of microbatches, those that may be; the least of them at any rate."""
        most = self.microbatches
        return [v for v in values if most is None or v <= most] or values[:1]

    def left_out(self) -> list[str]:
        """What the simulator prices and these leave out, a line for each."""
        rows = []
        if gone := [s for s in SCHEDULES if s not in self.schedules]:
            rows.append(f"{', '.join(gone)} schedules: simulated only")
        if away := sorted(OFFLOADS - self.offloads):
            rows.append(f"offload of {' and '.join(away)}: simulated only")
        if not self.uneven:
            rows.append("uneven replicas: simulated only")
        if self.microbatches is not None:
            rows.append(
                f"more than {self.microbatches} microbatch: a value is combined over the whole"
                " batch before it is used"
            )
        return rows


SIMULATED = Limits()
EXECUTED = Limits(("gpipe", "1f1b", "interleaved"), frozenset(), uneven=False)
