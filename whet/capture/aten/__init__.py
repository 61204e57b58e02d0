"""The library's calls in terms of the operator table: one handler a call, by its ATen name.

A call without a handler is decomposed by torch into calls that have one, or stays opaque.
"""

from __future__ import annotations

from whet.capture.aten import (
    backward,
    contraction,
    creation,
    indexing,
    movement,
    normalization,
    pointwise,
    pooling,
    recurrent,
    reduction,
)
from whet.capture.aten.call import ATEN, Call, Handler, NoMapping, Refused, Value, handler_of

__all__ = ["ATEN", "Call", "Handler", "NoMapping", "Refused", "Value", "handler_of"]
_FAMILIES = (
    backward,
    contraction,
    creation,
    indexing,
    movement,
    normalization,
    pointwise,
    pooling,
    recurrent,
    reduction,
)
