"""Search: one loop, propose → check → cost → keep, over any space of immutable states.

>>> class Halve:                                   # a space: make the number small
...     def start(self): return 40
...     def propose(self, kept, budget):
...         yield from (Candidate(k.state, k.state // d, f"/{d}") for k in kept for d in (2, 3))
...     def check(self, c): return Refutation("odd") if c.after % 2 else None
...     def cost(self, cs): return [Scored(c.after, Cost(c.after)) for c in cs]
>>> outcome = search(Halve(), Greedy(), Budget(seconds=10))
>>> outcome.best.state, outcome.stop.value
(0, 'Converged')
"""

from __future__ import annotations

from whet.search.budget import Budget, StopReason
from whet.search.evolution import Evolution, Sampling
from whet.search.integer import Constraint, Solution, Status, minimize
from whet.search.journal import Journal, Log, fingerprint, read, replay
from whet.search.led import Advisor, Led
from whet.search.loop import Outcome, search
from whet.search.selection import Selection
from whet.search.space import START, Candidate, Cost, Refutation, Scored, Source, Space
from whet.search.strategy import Annealing, Beam, BestFirst, Greedy, Strategy, Turn

__all__ = [
    "START",
    "Advisor",
    "Annealing",
    "Beam",
    "BestFirst",
    "Budget",
    "Candidate",
    "Constraint",
    "Cost",
    "Evolution",
    "Greedy",
    "Journal",
    "Led",
    "Log",
    "Outcome",
    "Refutation",
    "Sampling",
    "Scored",
    "Selection",
    "Solution",
    "Source",
    "Space",
    "Status",
    "StopReason",
    "Strategy",
    "Turn",
    "fingerprint",
    "minimize",
    "read",
    "replay",
    "search",
]
