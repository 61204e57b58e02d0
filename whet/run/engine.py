"""Engines: what turns a lowered body into something to call.

bind : derived values -> (inputs -> results)

steps      the body as it is: library calls one after another, from Python
inductor   the body traced and compiled as one region; library calls stay calls inside it
native     the body as one C program: generated kernels, library calls, planned memory
           (`whet.run.native` builds it, `whet.run.calling` calls it)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from whet.backend.artifact import Region
from whet.backend.inductor import compile_region
from whet.backend.lowered import Lowered

Bound = Callable[[Sequence[Tensor]], list[Tensor]]
Bind = Callable[[Sequence[Tensor]], Bound]


def steps(lowered: Lowered) -> Bind:
    """The engine that needs no compiler."""
    body = lowered.function()

    def bind(derived: Sequence[Tensor]) -> Bound:
        held = tuple(derived)
        return lambda inputs: list(body(*inputs, *held))

    return bind


def region(lowered: Lowered, inputs: Sequence[Tensor], derived: Sequence[Tensor]) -> Region:
    """The body compiled for inputs and derived values like these; `region.runner().bind` binds it.

    Raises:
        UnsupportedError: Inductor cannot compile it; the steps still run.
    """
    examples = [*(x.contiguous() for x in inputs), *derived]
    return compile_region(lowered.function(), examples)
