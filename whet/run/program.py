"""A program: one call from flat inputs to flat results.

    program := lowered graph, parameters, engine
    engine  := "steps": library calls one after another | "inductor": the body compiled as a region

Derived values (folded, packed weights) are computed when the program is made and again when a
parameter changed. A call allocates what it returns: results never alias a later call's, nor the
parameters, and concurrent calls share nothing but the derived values, which no call writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from whet.backend.lowered import Lowered
from whet.run.parameters import Parameters

Body = Callable[..., Sequence[Tensor]]


class Program:
    """A lowered graph, ready to run.

    Args:
        lowered: prologue and body.
        parameters: where parameter and constant values come from.
        body: the compiled body; the plain straight-line one by default. Takes inputs, then derived
            values, as positional arguments.
        engine: what `body` is, for reports.
    """

    def __init__(
        self,
        lowered: Lowered,
        parameters: Parameters,
        body: Body | None = None,
        engine: str = "steps",
    ) -> None:
        self.lowered = lowered
        self.parameters = parameters
        self.engine = engine
        self.body: Body = body or lowered.function()
        self.repacks = 0
        self._lock = threading.Lock()
        self._derived: list[Tensor] = []
        self._escaping = _escaping(lowered)
        self.refresh()

    def refresh(self) -> None:
        """Compute everything that is derived from parameters anew."""
        with self._lock, torch.no_grad():
            self.parameters.mark()
            self._derived = self.lowered.derive(self.parameters.tensors())

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run once.

        Args:
            inputs: one tensor for each of the graph's inputs, of the types it was made for.

        Returns:
            The graph's results: outputs, then updated values.
        """
        if self.parameters.changed():
            self.repacks += 1
            self.refresh()
        with torch.no_grad():
            results = list(self.body(*inputs, *self._derived))
        for k in self._escaping:
            results[k] = results[k].clone()
        return results


def _escaping(lowered: Lowered) -> tuple[int, ...]:
    """Results that would hand out a derived value, or the same tensor twice.

    A result that is a view of a derived value counts as well: steps that may alias their operand
    are followed back to where the memory comes from.
    """
    from whet.backend.aten import VIEWS

    source = {s: s for s in (*lowered.inputs, *lowered.derived)}
    for step in lowered.body:
        first = step.operands[0] if step.operands else None
        aliases = step.node.op in VIEWS and first is not None
        source[step.target] = source[first] if aliases else step.target  # type: ignore[index]
    derived = frozenset(lowered.derived)
    seen: set[str] = set()
    found = []
    for k, slot in enumerate(lowered.results):
        if source[slot] in derived or (source[slot] in seen and slot in lowered.results[:k]):
            found.append(k)
        seen.add(source[slot])
    return tuple(found)
