"""Gradients by torch's own backward kernels, where they compute what the derived record says.

    gradient(node, siblings) → call of the node's operands, or None

A node `op~x` takes the operands of `op` and the gradient of its result. torch differentiates its
call of `op`; what it finds for the other operands is kept for the siblings `op~y`, which usually
follow. Only operators stand here whose derivative torch and the record state alike everywhere, at
kinks and ties too (a maximum over a window: the first one gets it all).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from whet.backend import aten
from whet.ir.graph import Node, apply

ALIKE = frozenset(
    "gelu gelu_tanh silu sigmoid tanh relu softmax log_softmax logsumexp layer_norm rms_norm "
    "group_norm attention max_pool1d max_pool2d max_pool3d".split()
)
CONVOLUTIONS = frozenset(f"conv{rank}d" for rank in (1, 2, 3))
LOOKUP = "embedding"

Operands = Sequence[Tensor | None]
Call = Callable[[Operands], Tensor]


@dataclass(slots=True)
class Siblings:
    """What the last call of each operator found for operands that nobody asked for yet."""

    _last: dict[str, tuple[list[Any], Any, list[Tensor | None]]] = field(default_factory=dict)

    def taken(self, name: str, attrs: object, xs: Operands, at: int) -> Tensor | None:
        """The gradient of one operand, if the same call has found it; it is given away once."""
        found = self._last.get(name)
        if found is None or found[1] != attrs:
            return None
        given, _, grads = found
        for old, x in zip(given, xs, strict=True):
            if x is not None and (old is None or old[0]() is not x or old[1] != x._version):
                return None
        answer, grads[at] = grads[at], None
        if all(g is None for g in grads):
            del self._last[name]
        return answer

    def keep(self, name: str, attrs: object, xs: Operands, grads: list[Tensor | None]) -> None:
        """Remember gradients for the operands as they are now."""
        given = [None if x is None else (weakref.ref(x), x._version) for x in xs]
        if any(g is not None for g in grads):
            self._last[name] = given, attrs, grads


def gradient(node: Node, siblings: Siblings) -> Call | None:
    """torch's call for a gradient; operands that it does not read may be None.

    Returns:
        None where torch has no such call.
    """
    base, tilde, wanted = node.op.partition("~")
    if not tilde or any(not a.dtype.is_float for a in node.operands[-1:]):
        return None
    names = iter(node.instance.operands)
    at = next((k for k, a in enumerate(node.args) if a is not None and next(names) == wanted), None)
    if at is None:
        return None
    attrs = dict(node.attrs)
    if base in CONVOLUTIONS and wanted in "xw":
        return lambda xs: _convolution(node, attrs, xs, at)
    if base == LOOKUP:
        rows = int(str(node.shape[0]))
        return lambda xs: torch.ops.aten.embedding_dense_backward(xs[-1], xs[1], rows, -1, False)
    if base in ALIKE and aten.has_call(apply(base, *node.args[:-1], **attrs)):
        row = aten.CALLS[base]
        return lambda xs: _differentiated(node, base, row, attrs, xs, at, siblings)
    return None


def _filled(node: Node, xs: Operands) -> list[Tensor | None]:
    """Operands with zeros in the place of those that are not read."""
    like = next(x for x in reversed(xs) if x is not None)
    return [
        like.new_zeros(()).expand([int(str(size)) for size in a.shape])
        if x is None and a is not None else x
        for a, x in zip(node.args, xs, strict=True)
    ]  # fmt: skip


def _convolution(node: Node, attrs: dict[str, Any], xs: Operands, at: int) -> Tensor:
    x, w, *_, g = _filled(node, xs)
    none = [0] * len(attrs["stride"])
    mask = [at == 0, at == 1, False]
    found = torch.ops.aten.convolution_backward(
        g, x, w, None, attrs["stride"], attrs["padding"], attrs["dilation"], False, none,
        attrs["groups"], mask,
    )  # fmt: skip
    made = found[at]
    assert isinstance(made, Tensor)
    return made


def _differentiated(
    node: Node, base: str, row: aten.Call, attrs: dict[str, Any], xs: Operands, at: int,
    siblings: Siblings,
) -> Tensor:  # fmt: skip
    kept = siblings.taken(base, attrs, xs, at)
    if kept is not None:
        return kept
    *operands, g = _filled(node, xs)
    with torch.enable_grad():
        leaves = [
            None if t is None else t.detach().requires_grad_(t.is_floating_point())
            for t in operands
        ]
        made = row(attrs, *leaves)
        free = [(k, t) for k, t in enumerate(leaves) if t is not None and t.requires_grad]
        found = torch.autograd.grad(made, [t for _, t in free], g, allow_unused=True)
    grads: list[Tensor | None] = [None] * len(leaves)
    for (k, _), t in zip(free, found, strict=True):
        grads[k] = t
    answer, grads[at] = grads[at], None
    siblings.keep(base, attrs, xs, [*grads, None])
    assert answer is not None
    return answer
