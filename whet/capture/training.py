"""A training step by its name, as blocks: what a search for a strategy begins with."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from whet.capture import models
from whet.capture.joint import capture_joint
from whet.errors import WhetError
from whet.parallel import blocks


def captured(name: str, batch: int, dtype: str) -> blocks.Model:
    """The step of a model as blocks.

    Raises:
        WhetError: no such model or dtype, or it does not trace.
    """
    kind_ = getattr(torch, dtype, None)
    if not isinstance(kind_, torch.dtype):
        raise WhetError("no such dtype", expected="bfloat16, float16 or float32", got=dtype)
    space, colon, rest = name.partition(":")
    if not colon:
        space, rest = "models", name
    if space == "models":
        job = models.load(rest, batch, dtype=kind_)
        given: tuple[Any, ...] = (job.module, job.inputs, job.targets, job.loss)
    else:
        try:
            function = getattr(importlib.import_module(space), rest)
        except (ImportError, AttributeError) as fault:
            raise WhetError(f"there is no {name}", got=fault) from fault
        given = function(batch)
    module, inputs, targets, loss = given
    joint = capture_joint(module, inputs, loss, targets)
    return blocks.model(joint.graph, joint.gradients, batch)
