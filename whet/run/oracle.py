"""Right or wrong: every result against the original in float64.

A program is held against the source itself in float64, relative to the error that the source makes
in its own precision: rewriting reassociates sums, and may be a little worse or better than the
original, but not of another order.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from whet.run.untouched import untouched

# How much worse than the original a program may be, and what is nothing at a precision.
WORSE = 8.0
_ULPS, _LEAST = 64.0, 2.0**-6  # units in the last place, and what is something at any precision


class Oracle:
    """The original in float64 on the example inputs.

    Args:
        module: the original; it is copied, not touched.
        args, kwargs: the example inputs.
        exact: computes the float64 results where the module cannot be run in float64.

    Attributes:
        error: the original's own relative error.
    """

    def __init__(
        self,
        module: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        exact: Callable[[], Sequence[Tensor]] | None = None,
    ) -> None:
        with torch.no_grad():
            with untouched(module):
                own = _copied(_tensors(module(*_copied(args), **_copied(kwargs))))
            try:
                double = copy.deepcopy(module).double()
                found = double(*_double(_copied(args)), **_double(_copied(kwargs)))
                self.expected = _tensors(found)
                del double
            except (RuntimeError, TypeError, ValueError):
                if exact is None:
                    raise
                self.expected = list(exact())
        self.error = relative_error(own, self.expected)
        self.allowed = allowed(self.error, own)

    def judge(self, results: Any) -> tuple[float, bool]:
        """Relative error of a return value, and whether it may stand for the original's."""
        error = relative_error(_tensors(results), self.expected)
        return error, error <= self.allowed


def allowed(error: float, results: Sequence[Tensor]) -> float:
    """The error that may stand for the original's, given that and results in its precision."""
    floats = [t.dtype for t in results if t.dtype.is_floating_point]
    precise = min((torch.finfo(d).eps for d in floats), default=0.0)
    return max(WORSE * error, min(_ULPS * precise, _LEAST))


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The worst output's ‖y − r‖ / ‖r‖; for integers and truth values the share that differs.

    Infinite where shapes differ, or where one side is not a number and the other is.
    """
    if len(found) != len(expected):
        return math.inf
    worst = 0.0
    for y, r in zip(found, expected, strict=True):
        if y.shape != r.shape:
            return math.inf
        if not r.dtype.is_floating_point:
            differ = float((y != r).double().mean()) if r.numel() else 0.0
            worst = max(worst, differ)
            continue
        y, r = y.double(), r.double()
        same = (y == r) | (y.isnan() & r.isnan())  # equal infinities and shared NaNs are no error
        gap = torch.where(same, torch.zeros_like(r), y - r).norm()
        scale = torch.where(r.isfinite(), r, torch.zeros_like(r)).norm()
        error = float(gap / scale) if float(scale) else float(gap)
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def _tensors(results: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(results) if isinstance(t, Tensor)]


def _copied(values: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, values)


def _double(values: Any) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda t: t.double() if t.dtype.is_floating_point else t, values
    )
