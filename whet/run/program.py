"""A program: one call from flat inputs to flat results.

    program := lowered graph, parameters, engine

Derived values (folded, packed weights) are computed when the program is made; those that depend on
a parameter are computed again when it changed. A call allocates what it returns: results alias
neither a later call's, nor the parameters, nor the inputs. Concurrent calls share nothing but the
derived values, which no call writes: a change makes new ones, and calls under way keep the old.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.backend.aten import VIEWS
from whet.backend.lowered import Lowered
from whet.errors import InputError
from whet.run.engine import Bind, Bound, steps
from whet.run.parameters import Mark, Parameters

_OTHERS = "the parameters are not those of the program"


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """Derived values, bound, and the mark of the parameters they were made from."""

    mark: Mark
    derived: tuple[Tensor, ...]
    bound: Bound


class Program:
    """A lowered graph, ready to run.

    Args:
        lowered: prologue and body.
        parameters: where parameter and constant values come from.
        bind: the engine; library calls one after another by default.
        engine: what it is called in reports.

    Attributes:
        repacks: how often parameters were found changed.
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
        self.repacks = 0
        self.bind = bind or steps(lowered)
        self._escaping = _escaping(lowered) if engine == "steps" else ()
        self._lock = threading.Lock()
        self._state = self._derived(None)

    def on(self, parameters: Parameters) -> Program:
        """The same program over other parameters of the same types."""
        return Program(self.lowered, parameters, self.bind, self.engine)

    def refresh(self) -> None:
        """Compute everything that is derived from parameters anew.

        Raises:
            InputError: the parameters are not what the program was made for any more.
        """
        with self._lock:
            self._state = self._derived(None)
            self.repacks += 1

    def current(self) -> Bound:
        """The body over derived values that are up to date.

        Raises:
            InputError: the parameters are not what the program was made for any more.
        """
        state = self._state
        if self.parameters.unchanged(state.mark):
            return state.bound
        with self._lock:
            state = self._state
            if not self.parameters.unchanged(state.mark):  # else another call has just done it
                state = self._state = self._derived(state)
                self.repacks += 1
        return state.bound

    def _derived(self, before: _State | None) -> _State:
        """The state of the parameters as they are; what did not change is taken from `before`.

        The mark comes first: what changes while values are derived is found by the next call.
        """
        if reason := self.parameters.misfit():
            raise InputError(_OTHERS, got=reason)
        lowered = self.lowered
        # Normal tensors, even where the first call comes under inference mode.
        with torch.inference_mode(False), torch.no_grad():
            mark = self.parameters.mark(lowered.copied)
            slots = lowered.derived
            if before is not None:
                slots = tuple(lowered.affected(before.mark.changes(mark)))
            try:
                new = dict(zip(slots, lowered.derive(mark.tensors, slots), strict=True))
                if before is not None:
                    new = dict(zip(lowered.derived, before.derived, strict=True)) | new
                derived = tuple(new[s] for s in lowered.derived)
                return _State(mark, derived, self.bind(derived))
            except RuntimeError as fault:  # a layout that no library packs
                reason = f"parameters cannot be packed: {str(fault).splitlines()[0]}"
                raise InputError(
                    "the parameters are not those of the program", got=reason
                ) from fault

    def marked(self) -> tuple[Bound, Mark]:
        """The body as it is bound now, and the parameters that it was bound to."""
        state = self._state
        return state.bound, state.mark

    def is_bound(self, bound: Bound) -> bool:
        """Whether this is how the body is bound now."""
        return self._state.bound is bound

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run once.

        Args:
            inputs: one tensor for each of the graph's inputs, of the types it was made for.

        Returns:
            The graph's results: outputs, then updated values.

        Raises:
            InputError: the parameters are not what the program was made for any more.
        """
        bound = self.current()
        inputs = [x if x.is_contiguous() and not x.is_neg() else _plain(x) for x in inputs]
        if not torch.is_grad_enabled():
            return self._run(bound, inputs)
        with torch.no_grad():
            return self._run(bound, inputs)

    def _run(self, bound: Bound, inputs: Sequence[Tensor]) -> list[Tensor]:
        results = bound(inputs)
        for k in self._escaping:
            results[k] = results[k].clone()
        return results


def _plain(x: Tensor) -> Tensor:
    """The same numbers, one after another in memory."""
    return x.resolve_neg().contiguous()


def _escaping(lowered: Lowered) -> tuple[int, ...]:
    """Results that would hand out an input, a derived value, or the same memory twice.

    Steps that may alias an operand are followed back to where the memory comes from; what foreign
    library calls do is not known, so theirs are copied.
    """
    held = {*lowered.inputs, *lowered.derived}
    source: dict[str, str | None] = {s: s for s in held}
    for step in lowered.body:
        op, first = step.node.op, step.operands[0] if step.operands else None
        if op in ("opaque", "item"):
            source[step.target] = None
        else:
            source[step.target] = source[first] if op in VIEWS and first else step.target
    seen: set[str | None] = {None, *held}
    found = []
    for k, slot in enumerate(lowered.results):
        if source[slot] in seen:
            found.append(k)
        seen.add(source[slot])
    return tuple(found)
