"""What a system is judged by: the answer in float64, the operations, and the bytes touched.

Both counts come from running the plain module once under PyTorch's dispatcher, apart from anything
that whet knows, so that whet does not grade itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Arrays = list[np.ndarray[Any, Any]]


def float64(module: nn.Module, inputs: Sequence[Any]) -> Arrays:
    """The outputs of the module with weights and inputs in float64."""
    wide = copy.deepcopy(module).double()
    args = pytree.tree_map_only(
        Tensor, lambda x: x.double() if x.is_floating_point() else x, tuple(inputs)
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for tensors that the forward pass makes itself
    try:
        with torch.no_grad():
            return leaves(wide(*args))
    finally:
        torch.set_default_dtype(default)


def leaves(output: object) -> Arrays:
    """The tensors of an output, however nested, as arrays of their own."""
    found: Arrays = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            leaf = leaf.detach().to("cpu").numpy()
        if isinstance(leaf, np.ndarray):
            found.append(leaf.copy())
    return found


def error(got: Arrays, right: Arrays) -> float:
    """The largest ‖y − r‖ / ‖r‖ over the outputs.

    Raises:
        ValueError: the outputs differ in number or shape, or an output is not finite.
    """
    shapes = [g.shape for g in got], [r.shape for r in right]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs of shapes {shapes[0]}, expected {shapes[1]}")
    worst = 0.0
    for g, r in zip(got, right, strict=True):
        distance = float(np.linalg.norm((g.astype(np.float64) - r).ravel()))
        size = float(np.linalg.norm(r.astype(np.float64).ravel()))
        worst = max(worst, distance / size if size else distance)
        if not math.isfinite(distance):
            raise ValueError("an output is not finite")
    return worst


def work(module: nn.Module, inputs: Sequence[Any]) -> tuple[int, int]:
    """FLOPs of the matrix products and convolutions, and distinct bytes touched, of one call."""
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            module(*inputs)
        given = [x for x in pytree.tree_leaves(tuple(inputs)) if isinstance(x, Tensor)]
        traffic = Traffic([*module.parameters(), *module.buffers(), *given])
        with traffic:
            output = module(*inputs)
    written = sum(x.nbytes for x in pytree.tree_leaves(output) if isinstance(x, Tensor))
    return counter.get_total_flops(), traffic.total() + written


class Traffic(TorchDispatchMode):
    """Bytes of given tensors that operators read, each byte counted once.

    A view reads nothing. An indexed load reads what it returns, so that an embedding is not charged
    with its whole table. Whatever is read, a tensor counts for no more than all its bytes.
    """

    LOADS = ("embedding", "index", "index_select", "gather", "embedding_bag")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = {_storage(x): x.untyped_storage().nbytes() for x in tensors}
        self.read = dict.fromkeys(self.size, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            operands = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            loads = func._schema.name.partition("::")[2] in self.LOADS
            for place, x in enumerate(operands):
                if (key := _storage(x)) in self.read:
                    results = pytree.tree_leaves(output) if loads and place == 0 else (x,)
                    self.read[key] += sum(y.nbytes for y in results if isinstance(y, Tensor))
        return output

    def total(self) -> int:
        return sum(min(self.read[key], self.size[key]) for key in self.size)


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
