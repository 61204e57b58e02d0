"""A step by its model's name, as blocks: what a search for a strategy, and its run, begin with.

    models:NAME[:small]     of `whet.capture.models`: at full size on the meta device, or at a size
                            that runs anywhere
    zoo:NAME[:small]        of `whet.capture.zoo`, trained by the loss below
    package.module:function called with the batch size if it asks for it. It gives
                                module, inputs, targets, loss     loss(answer, *targets): a number
                                module, inputs, loss              loss(answer)
                                module, inputs                    trained by the loss below
    FILE.onnx, FILE.pt2     inference alone

The first dim of every input holds the samples. Where a function does not ask for the batch size,
examples of another number of samples are repeated or cut to it. A model without a loss is trained
by the mean of the squares of its floating-point results.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from whet.capture import models, source, zoo
from whet.capture.joint import Joint, capture_joint
from whet.capture.torch import capture
from whet.errors import CaptureError, WhetError
from whet.ir.graph import Graph
from whet.parallel import blocks

Loss = Callable[..., Tensor]
# Module, inputs, targets, loss; and how many samples examples had that were repeated.
Given = tuple[nn.Module, tuple[Any, ...], tuple[Any, ...], Loss, int | None]


@dataclass(frozen=True, slots=True)
class Training:
    """A captured step.

    Attributes:
        joint: forward and backward as one graph; the forward pass alone where it is inference.
        model: the same as blocks.
        least: up to so many nodes, it is one block.
        rewrites: what its graph was rewritten by, as the lines of a certificate.
        given: the graph as it was captured, where it was rewritten.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    loss: Loss
    joint: Joint
    model: blocks.Model
    least: int = blocks.SMALL
    rewrites: tuple[str, ...] = ()
    given: Graph | None = None

    @property
    def reference(self) -> Graph:
        """What it has to be equal to: the graph as it was captured."""
        return self.given if self.given is not None else self.joint.graph

    def feeds(
        self, inputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], seed: int = 0
    ) -> dict[str, Tensor]:
        """A batch by the names of the graph's inputs.

        Args:
            seed: of what the step draws.
        """
        return self.joint.given((*inputs, *targets), seed)

    def wholes(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name."""
        return self.joint.parameters


def training(name: str, batch: int, dtype: str, *, inference: bool = False) -> Training:
    """The step of a model.

    Args:
        name: a form of the module's docstring.
        inference: the forward pass alone, in eval mode.

    Raises:
        WhetError: no such model or dtype, no sample, or it does not trace.
    """
    kind_ = getattr(torch, dtype, None)
    if not isinstance(kind_, torch.dtype) or not kind_.is_floating_point:
        raise WhetError(
            "no such dtype", expected="bfloat16, float16, float32 or float64", got=dtype
        )
    if batch < 1:
        raise WhetError(
            "a step has samples", expected="a batch of 1 or more", got=batch, hint="--batch 8, say"
        )
    if not name.partition(":")[1] and not name.endswith((".onnx", ".pt2")):
        name = f"models:{name}"
    if name.endswith((".onnx", ".pt2")) and not inference:
        raise WhetError(
            "a file holds a forward pass alone", where=name, hint="--inference, or name the module"
        )
    module, inputs, targets, loss, have = _given(name, batch, kind_)
    # The small scale is cut like the large one, however few its nodes are; so is a forward pass.
    least = 0 if inference or name.endswith(":small") else blocks.SMALL
    try:
        if inference:
            found = capture(module.eval(), inputs)
            joint = Joint(found.graph, (), found.parameters, found.coverage, found.foreign)
            targets = ()
        else:
            joint = capture_joint(module, inputs, loss, targets)
    except CaptureError as fault:
        if have in (None, batch):
            raise
        raise CaptureError(
            "the model does not trace for another number of samples than its examples have",
            expected=f"a batch of {have}", got=f"{batch}: {fault.got}", where=fault.where,
            hint=f"--batch {have}, or a function that takes the batch size",
        ) from fault  # fmt: skip
    _sampled(name, joint, batch)
    model = blocks.model(joint.graph, joint.gradients, batch, small=least)
    return Training(module, tuple(inputs), tuple(targets), loss, joint, model, least)


def _sampled(name: str, joint: Joint, batch: int) -> None:
    """Refuse a step in which nothing has the batch's number of samples."""
    shapes = [tuple(map(str, n.shape)) for n in joint.graph.inputs]
    if not any(s and s[0] == str(batch) for s in shapes):
        raise CaptureError(
            "no input has the samples of the batch in its first dim", expected=f"({batch}, ...)",
            got=", ".join(f"({', '.join(s)})" for s in shapes) or "no input", where=name,
            hint="a function that takes the batch size decides the inputs itself",
        )  # fmt: skip


def _given(name: str, batch: int, dtype: torch.dtype) -> Given:
    """The model that a name means, for a number of samples."""
    space, _, rest = name.partition(":")
    small = rest.endswith(":small")
    scale: zoo.Scale = "small" if small else "full"
    if space == "models":
        job = models.load(rest.removesuffix(":small"), batch, scale=scale, dtype=dtype)
        return job.module, job.inputs, job.targets, job.loss, None
    if space == "zoo":
        entry = zoo.load(rest.removesuffix(":small"), scale=scale, dtype=dtype)
        have = _samples(entry.inputs)
        return entry.module.train(), _repeated(entry.inputs, batch), (), squares, have
    if name.endswith((".onnx", ".pt2")):
        found = source.load(name)
        given = _positional(found)
        if dtype is torch.float64:  # what a proof asks for; otherwise a file says its own types
            return found.module.double(), tuple(map(_as(dtype), given)), (), squares, None
        return found.module, given, (), squares, None
    asked: list[bool] = []

    def call(make: Callable[..., object]) -> object:
        asked.append(_asks(make))
        return make(batch) if asked[0] else make()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # every rank builds the same model, however its weights are drawn
        result = source.result_of(name, call)
    match result:
        case (nn.Module() as module, tuple() | list() as inputs, loss) if callable(loss):
            targets: tuple[Any, ...] = ()
        case (nn.Module() as module, tuple() | list() as inputs, tuple() | list() as more, loss):
            targets = tuple(more)
        case _:
            made = source.of_result(name, result)
            module, inputs, targets, loss = made.module, _positional(made), (), squares
    if not callable(loss):
        raise CaptureError(f"{name} gives a loss that is no function", got=type(loss).__name__)
    module = module.to(dtype)
    inputs, targets = (tuple(map(_as(dtype), row)) for row in (inputs, targets))
    have = None
    if asked != [True]:
        have = _samples((*inputs, *targets))
        every = _repeated((*inputs, *targets), batch)
        inputs, targets = every[: len(inputs)], every[len(inputs) :]
    return module, tuple(inputs), tuple(targets), loss, have


def _asks(make: Callable[..., object]) -> bool:
    """Whether a function takes the batch size: an argument that it needs, or one of that name."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((p for p in signature.parameters.values() if p.kind in kinds), None)
    return first is not None and (
        first.default is inspect.Parameter.empty or first.name in ("batch", "batch_size")
    )


def _positional(found: source.Source) -> tuple[Any, ...]:
    """Example arguments in the order of the module's signature."""
    if not found.kwargs:
        return found.args
    bound = inspect.signature(found.module.forward).bind(*found.args, **found.kwargs)
    if bound.kwargs:
        raise CaptureError(
            "a step takes positional arguments", got=", ".join(bound.kwargs), where=found.name
        )
    return bound.args


def _samples(inputs: tuple[Any, ...]) -> int | None:
    """How many samples examples have; None if none of them has dims."""
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]
    return tensors[0].shape[0] if tensors else None


def _repeated(inputs: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """Examples repeated or cut to a number of samples."""
    have = _samples(inputs)
    if have in (None, batch):
        return inputs
    rows = torch.arange(batch) % have

    def repeated(x: Tensor) -> Tensor:
        return x.index_select(0, rows.to(x.device)) if x.dim() and x.shape[0] == have else x

    return tuple(pytree.tree_map_only(Tensor, repeated, inputs))


def squares(answer: object) -> Tensor:
    """The mean of the squares of all floating-point results.

    Raises:
        CaptureError: there are none.
    """
    tensors = [t for t in pytree.tree_leaves(answer) if isinstance(t, Tensor)]
    floats = [t for t in tensors if t.is_floating_point()]
    if not floats:
        raise CaptureError("a model without floating-point results needs a loss of its own")
    count = sum(t.numel() for t in floats)
    total = torch.stack([(t * t).sum() for t in floats]).sum() if len(floats) > 1 else (
        (floats[0] * floats[0]).sum()
    )  # fmt: skip
    return total / count


def _as(dtype: torch.dtype) -> Callable[[Any], Any]:
    return lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t


def captured(name: str, batch: int, dtype: str, *, inference: bool = False) -> blocks.Model:
    """The step of a model as blocks; see `training`."""
    return training(name, batch, dtype, inference=inference).model
