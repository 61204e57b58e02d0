"""Running a user's module without leaving a trace: what it writes to is put back.

Modules write to buffers (running statistics, caches, counters) and at times to their inputs. To
optimize a module it is called hundreds of times, and must be after it what it was before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn


@contextmanager
def untouched(module: nn.Module, *values: Any) -> Iterator[None]:
    """Buffers of `module` and tensors in `values` are afterwards what they were before."""
    watched = [*module.buffers(), *(v for v in pytree.tree_leaves(values) if isinstance(v, Tensor))]
    before = [(t, _version(t), t.detach().clone()) for t in watched]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, version, value in before:
                if version is None or _version(tensor) != version:
                    tensor.copy_(value)


def _version(tensor: Tensor) -> int | None:
    """How often it was written to; None where torch does not count, as in inference mode."""
    return None if tensor.is_inference() else tensor._version
