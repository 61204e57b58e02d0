"""The nouns of every search: what a state is worth, and how one state leads to another.

    space     := start, propose, check, cost           a world of immutable states
    candidate := before --how--> after                 a move, not yet believed
    verdict   := Refutation(reason, data) | Scored(state, cost, reason, resources)
    cost      := seconds, bytes, spread, source        source: measured | predicted | simulated

The four searches of whet (rewriting, fusing, scheduling, placing) differ in their states alone; the
loop, the strategies, the budget and the journal are written once, against these nouns.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from whet.errors import SearchError

if TYPE_CHECKING:
    from whet.search.budget import Budget

S = TypeVar("S", bound=Hashable)

START = "start"
"""The `how` of the candidate by which a space is asked to price its own start state."""


class Source(StrEnum):
    """Where a number of seconds comes from, the most believable first.

    A device that ran it, a model of one kernel, a simulation assembled from such numbers.
    """

    MEASURED = "measured"
    PREDICTED = "predicted"
    SIMULATED = "simulated"

    @property
    def doubt(self) -> int:
        """0 for the source most to be believed."""
        return list(Source).index(self)


@dataclass(frozen=True, slots=True)
class Cost:
    """What running something costs, and how that is known.

    Args:
        seconds: wall-clock seconds; infinity for what cannot run at all.
        bytes: bytes moved to and from memory.
        source: how the seconds are known; the sum of two costs has the weaker source.
        spread: seconds by which the true value may well differ, up or down. The spreads of a sum
            add up, because the errors of one machine or of one model are not independent.

    Raises:
        SearchError: a number is negative or not a number.

    >>> print(Cost(0.002) + Cost(0.001, source=Source.PREDICTED, spread=0.0005))
    3 ms ± 0.5 ms (predicted)
    """

    seconds: float
    bytes: float = 0.0
    source: Source = Source.MEASURED
    spread: float = 0.0

    NONE: ClassVar[Cost]
    IMPOSSIBLE: ClassVar[Cost]

    def __post_init__(self) -> None:
        for name in ("seconds", "bytes", "spread"):
            value = getattr(self, name)
            if not value >= 0:
                raise SearchError("a cost cannot be this", expected=f"{name} >= 0", got=value)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.bytes + other.bytes,
            max(self.source, other.source, key=lambda source: source.doubt),
            self.spread + other.spread,
        )

    def __mul__(self, times: float) -> Cost:
        """The cost of doing it `times` times."""
        return replace(
            self,
            seconds=self.seconds * times,
            bytes=self.bytes * times,
            spread=self.spread * times,
        )

    def beats(self, other: Cost) -> bool:
        """Whether this is cheaper, and known at least as well.

        A search reports the last state whose cost beat the one before, so that its answer grows
        neither slower nor less certain: a prediction never takes the place of a measurement.
        """
        return self.seconds < other.seconds and self.source.doubt <= other.source.doubt

    def __str__(self) -> str:
        if math.isinf(self.seconds):
            return f"impossible ({self.source})"
        spread = f" ± {self.spread * 1e3:.4g} ms" if self.spread else ""
        return f"{self.seconds * 1e3:.4g} ms{spread} ({self.source})"


Cost.NONE = Cost(0.0)
Cost.IMPOSSIBLE = Cost(math.inf)


@dataclass(frozen=True, slots=True)
class Candidate(Generic[S]):
    """A move from a kept state. `str(how)` names it within what is proposed from `before`."""

    before: S
    after: S
    how: Hashable


@dataclass(frozen=True, slots=True)
class Refutation:
    """Why a candidate is not allowed; `data` (a counterexample, a cycle) is for whoever asks."""

    reason: str
    data: Any = None


@dataclass(frozen=True, slots=True)
class Scored(Generic[S]):
    """A state with its price, and with what the next level up may act on.

    Args:
        state: the state.
        cost: its cost.
        reason: why it is not cheaper ("scratch overflow", "too little parallelism"), or empty.
        resources: what it takes, by name: bytes of scratch, registers, peak memory.
    """

    state: S
    cost: Cost
    reason: str = ""
    resources: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def seconds(self) -> float:
        return self.cost.seconds


class Space(Protocol[S]):
    """A world to search. States are immutable and hashable: equal states are priced once.

    The loop pulls one candidate, checks it, and only then pulls the next, so a generator of
    proposals may learn from the refutation of its last one (this is how a solver gets its cuts).
    For a journal to be replayed, what is proposed may depend on nothing but the calls so far.
    """

    def start(self) -> S:
        """The state to begin with; it need not be checked."""
        ...

    def propose(self, kept: Sequence[Scored[S]], budget: Budget) -> Iterable[Candidate[S]]:
        """Moves from any of the kept states: local ones, or the answer of a solver.

        Whoever works long before its first candidate asks `budget.stop()` now and then, and
        reports what it builds with `budget.spend(nodes=...)`.
        """
        ...

    def check(self, c: Candidate[S]) -> Refutation | None:
        """None if the candidate is allowed."""
        ...

    def cost(self, cs: Sequence[Candidate[S]]) -> list[Scored[S]]:
        """Price each `after`, in order. `before` and `how` allow a delta; the start state comes as
        `Candidate(start, start, START)`. What cannot run costs `Cost.IMPOSSIBLE`, with a reason."""
        ...
