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

__all__ = ["ATEN", "Call", "Handler", "NoMapping", "Refused", "Value", "handler_of", "kept"]
# Calls that stay opaque as they are: what torch decomposes them into is no better, and checks its
# operands by raising, which a graph cannot.
_WHOLE = frozenset(
    f"aten.{name}.default"
    for name in (
        "inverse linalg_inv linalg_pinv linalg_solve linalg_det linalg_slogdet linalg_cholesky "
        "linalg_eigh linalg_svd linalg_qr"
    ).split()
)


def kept(target: str) -> bool:
    """Whether a call is not to be decomposed."""
    return target in _WHOLE or handler_of(target) is not None


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
