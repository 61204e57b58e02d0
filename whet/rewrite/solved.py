"""What one region may spend, what things cost, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from whet.ir.graph import Graph
from whet.ir.types import TensorType
from whet.rewrite.columns import ROWS, Price
from whet.rewrite.match import Match
from whet.rewrite.region import Region, instances
from whet.search import Cost, StopReason


@dataclass(frozen=True, slots=True)
class Limits:
    """What one region may spend.

    Attributes:
        nodes: e-nodes that saturation may add.
        beside: the same by the rules that are beside.
        rounds: of saturation.
        solver: seconds of the solver, each time it is asked.
        candidates: of the best-first search.
        count: of answers that are kept, for whoever measures them.
    """

    nodes: int = 6000
    beside: int = 800
    rounds: int = 6
    solver: float = 1.5
    candidates: int = 400
    count: int = 2


@dataclass(frozen=True, slots=True)
class Pricing:
    """What things cost.

    Attributes:
        kernels: offers for a cluster.
        graph: a whole graph, as the best-first search prices it.
        border: layout in which values enter and leave a region.
        convert: from one layout to another.
    """

    kernels: Price
    graph: Callable[[Graph], Cost]
    border: Callable[[TensorType], str] = lambda _: ROWS
    convert: Callable[[TensorType, str, str], Cost] = lambda type, before, after: Cost.NONE


@dataclass(frozen=True, slots=True)
class Option:
    """A graph that a region may become.

    Attributes:
        graph: over the region's leaves.
        cost: as the cheapest kernels for it.
        gap: how far that may be from the best, as a share.
        equations: why it is equal, in the order they came.
    """

    graph: Graph
    cost: Cost
    gap: float
    equations: Sequence[Match]


@dataclass
class Solved:
    """What became of one region.

    Attributes:
        region: it.
        before, searched, after: seconds of the region itself, of what the best-first search made of
            it, and of the cheapest option; all as the cheapest kernels for them.
        first: of the cheapest option by then, when the rules that are beside were not asked yet.
        gap: how far `after` may be from the best, as a share.
        nodes: e-nodes at the end.
        stop: why saturation ended.
        options: what it may become, the cheapest first; none where it stays.
        taken: which of them it becomes; None where it stays.
        journal: of saturation, as JSON Lines; see `whet.rewrite.saturate`.
    """

    region: Region
    before: Cost = Cost.NONE
    searched: Cost = Cost.NONE
    after: Cost = Cost.NONE
    first: Cost = Cost.NONE
    gap: float = 0.0
    nodes: int = 0
    stop: StopReason | None = None
    options: Sequence[Option] = ()
    taken: int | None = None
    journal: Sequence[str] = ()

    @property
    def option(self) -> Option | None:
        """What the region becomes."""
        return None if self.taken is None else self.options[self.taken]

    @property
    def becomes(self) -> Graph | None:
        """The graph that takes the region's place; None where it stays."""
        return None if self.option is None else self.option.graph

    @property
    def equations(self) -> Sequence[Match]:
        """Why both are equal."""
        return () if self.option is None else self.option.equations

    @property
    def rules(self) -> Counter[str]:
        """Equations by rule."""
        return Counter(m.rule.name for m in self.equations)

    def rows(self, graph: Graph) -> Iterator[tuple[str, str, str]]:
        """Rule, the user's line, and proof of every equation, at every occurrence.

        Args:
            graph: the one that was searched.
        """
        if self.becomes is None:
            return
        for place in self.region.places:
            outer = instances(self.region.graph, place)
            lines = {n: graph.where[o] for n, o in outer.items() if o in graph.where}
            usual = next((lines[r] for r in self.region.graph.results if r in lines), "")
            for m in self.equations:
                where = next((lines[n] for n in m.left if n in lines), usual)
                yield m.rule.name, where, str(m.rule.proof)
