"""What `whet.run.farm` is asked about a device's kernels: a group, and modules that may run it.

The runner (`whet.run.launcher`) makes a group's tensors and the library's results itself: no more
than its graph goes there. It stays from group to group, since a context takes seconds to make.
"""

from __future__ import annotations

import base64
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from whet.backend.triton_text import Module
from whet.ir.graph import Graph
from whet.run.cuda import Cuda
from whet.run.farm import Farm
from whet.run.launcher import GROUP

PATIENCE_S = 60.0  # for a kernel to be compiled, and called once
START_S = 120.0  # for a runner to begin, and library calls to be made


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A group on a device: what kernels are called with, and held to, follows from it."""

    graph: Graph
    cuda: Cuda

    def write(self, folder: Path) -> None:
        """Puts it where a runner finds it, with how the user has set float32 products."""
        told = {
            "matmul": torch.backends.cuda.matmul.fp32_precision,
            "conv": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        }  # fmt: skip
        (folder / GROUP).write_bytes(pickle.dumps((self.graph, self.cuda, told)))


@dataclass(frozen=True, slots=True)
class Launch:
    """What may run a group: a module, or the library's calls for None."""

    module: Module | None = None

    def told(self) -> dict[str, Any]:
        """For the runner."""
        if self.module is None:
            return {"module": None}
        return {"module": base64.b64encode(pickle.dumps(self.module)).decode()}


def launches(patience_s: float = PATIENCE_S) -> Farm:
    """A farm for a device's kernels."""
    return Farm(
        torch.get_num_threads(), patience_s, runner=("-P", "-m", "whet.run.launcher"),
        start_s=START_S, lasting=True,
    )  # fmt: skip
