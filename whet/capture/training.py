"""A training step by its name, as blocks: what a search for a strategy, and its run, begin with.

models:NAME             of `whet.capture.models`, at full size on the meta device
models:NAME:small       the same architecture at a size that runs anywhere
package.module:function function(batch) gives (module, inputs, targets, loss)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whet.capture import models
from whet.capture.joint import Joint, capture_joint
from whet.errors import WhetError
from whet.parallel import blocks


@dataclass(frozen=True, slots=True)
class Training:
    """A captured step.

    Attributes:
        joint: forward and backward as one graph.
        model: the same as blocks.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    loss: Callable[..., Tensor]
    joint: Joint
    model: blocks.Model

    def feeds(self, inputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """A batch by the names of the graph's inputs."""
        names = [n.name for n in self.joint.graph.inputs]
        return dict(zip(names, (*inputs, *targets), strict=True))

    def wholes(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name."""
        return self.joint.parameters


def training(name: str, batch: int, dtype: str) -> Training:
    """The step of a model.

    Raises:
        WhetError: no such model or dtype, or it does not trace.
    """
    kind_ = getattr(torch, dtype, None)
    if not isinstance(kind_, torch.dtype) or not kind_.is_floating_point:
        raise WhetError(
            "no such dtype", expected="bfloat16, float16, float32 or float64", got=dtype
        )
    space, colon, rest = name.partition(":")
    if not colon:
        space, rest = "models", name
    small = rest.endswith(":small")
    if space == "models":
        scale = "small" if small else "full"
        job = models.load(rest.removesuffix(":small"), batch, scale=scale, dtype=kind_)
        given: tuple[Any, ...] = (job.module, job.inputs, job.targets, job.loss)
    else:
        try:
            function = getattr(importlib.import_module(space), rest)
        except (ImportError, AttributeError) as fault:
            raise WhetError(f"there is no {name}", got=fault) from fault
        module, inputs, targets, loss = function(batch)
        given = (module.to(kind_), tuple(map(_as(kind_), inputs)), tuple(map(_as(kind_), targets)),
                 loss)  # fmt: skip
    module, inputs, targets, loss = given
    joint = capture_joint(module, inputs, loss, targets)
    # The small scale is cut like the large one, however few its nodes are.
    least = 0 if small else blocks.SMALL
    model = blocks.model(joint.graph, joint.gradients, batch, small=least)
    return Training(module, tuple(inputs), tuple(targets), loss, joint, model)


def _as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(dtype) if t.is_floating_point() else t


def captured(name: str, batch: int, dtype: str) -> blocks.Model:
    """The step of a model as blocks; see `training`."""
    return training(name, batch, dtype).model
