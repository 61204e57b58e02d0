"""A program: one call from flat inputs to flat results.

    program := lowered graph, parameters, engine

Derived values (folded, packed weights) are computed when the program is made and again when a
parameter changed. A call allocates what it returns: results never alias a later call's, nor the
parameters, and concurrent calls share nothing but the derived values, which no call writes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from whet.backend.aten import VIEWS
from whet.backend.lowered import Lowered
from whet.run.engine import Bind, Bound, steps
from whet.run.parameters import Parameters


class Program:
    """A lowered graph, ready to run.

    Args:
        lowered: prologue and body.
        parameters: where parameter and constant values come from.
        bind: the engine; library calls one after another by default.
        engine: what it is called in reports.
    """

    def __init__(
        self,
        lowered: Lowered,
        parameters: Parameters,
        bind: Bind | None = None,
        engine: str = "steps",
    ) -> None:
        self.lowered = lowered
        self.parameters = parameters
        self.engine = engine
        self.repacks = -1
        self._bind = bind or steps(lowered)
        self._escaping = _escaping(lowered) if engine == "steps" else ()
        self._lock = threading.Lock()
        self._bound: Bound
        self.refresh()

    def refresh(self) -> None:
        """Compute everything that is derived from parameters anew."""
        with self._lock, torch.no_grad():
            self.parameters.mark()
            self._bound = self._bind(self.lowered.derive(self.parameters.tensors()))
            self.repacks += 1

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run once.

        Args:
            inputs: one tensor for each of the graph's inputs, of the types it was made for.

        Returns:
            The graph's results: outputs, then updated values.
        """
        if self.parameters.changed():
            self.refresh()
        with torch.no_grad():
            results = self._bound([x if x.is_contiguous() else x.contiguous() for x in inputs])
            for k in self._escaping:
                results[k] = results[k].clone()
        return results


def _escaping(lowered: Lowered) -> tuple[int, ...]:
    """Results that would hand out a derived value, or the same memory twice.

    Steps that may alias their operand are followed back to where the memory comes from.
    """
    source: dict[str, str] = {s: s for s in (*lowered.inputs, *lowered.derived)}
    for step in lowered.body:
        first = step.operands[0] if step.operands else None
        aliases = step.node.op in VIEWS and first is not None
        source[step.target] = source[first] if aliases and first else step.target
    seen = {source[s] for s in lowered.derived}
    found = []
    for k, slot in enumerate(lowered.results):
        if source[slot] in seen:
            found.append(k)
        seen.add(source[slot])
    return tuple(found)
