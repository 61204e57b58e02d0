"""Training steps: a module and its loss, forward and backward, as one graph.

    module, loss --AOTAutograd--> joint calls --aten/--> forward nodes and derived gradients

Backward calls become the gradients that the table derives from the forward records; what the
backward pass saves is read off the forward nodes instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from whet.capture import exported
from whet.capture.aten import kept
from whet.capture.captured import Foreign, Live
from whet.capture.translate import Translation
from whet.errors import CaptureError
from whet.ir.graph import Graph, Node, leaf


@dataclass(frozen=True, slots=True)
class Joint:
    """A captured training step.

    Attributes:
        graph: its outputs are the loss and one gradient for each of `gradients`; statistics that
            the forward pass moves along are updates.
        gradients: the parameters that the gradients are of, by name.
        parameters: the module's own tensors by name, looked up anew at every access.
        coverage: how often each library call occurred.
        foreign: the calls among them that the table has no record for.
        drawn: inputs of flags, behind the others (dropout), and how probably each flag is set.
    """

    graph: Graph
    gradients: tuple[str, ...]
    parameters: Mapping[str, Tensor]
    coverage: Mapping[str, int]
    foreign: tuple[Foreign, ...]
    drawn: Mapping[str, float] = field(default_factory=dict)

    def feeds(self, inputs: tuple[object, ...], seed: int = 0) -> dict[str, Tensor]:
        """A tensor for every input and parameter leaf, by name.

        Args:
            seed: of what is drawn.
        """
        return dict(self.parameters) | self.given(inputs, seed)

    def given(self, inputs: tuple[object, ...], seed: int = 0) -> dict[str, Tensor]:
        """A tensor for every input, by name; see `feeds`."""
        tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
        generator = torch.Generator().manual_seed(seed)
        for n in self.graph.inputs:
            if n.name in self.drawn:
                shape = tuple(int(str(size)) for size in n.shape)
                tensors.append(torch.rand(shape, generator=generator) < self.drawn[n.name])
        names = [n.name for n in self.graph.inputs]
        return dict(zip(names, tensors, strict=True))


def capture_joint(
    module: nn.Module,
    inputs: tuple[object, ...],
    loss: Callable[..., Tensor],
    targets: tuple[object, ...] = (),
) -> Joint:
    """Bring in the forward and backward pass of a module.

    Args:
        module: in the mode in which it is to be trained; on the meta device nothing is allocated.
        inputs: example positional arguments.
        loss: makes one number of the module's answer, and of the targets if there are any.
        targets: what else the loss takes, such as labels; inputs of the graph like the others.

    Raises:
        CaptureError: it does not trace, its shapes depend on data, the loss is no number, or
            depends on nothing that is trained.
    """
    step = exported.joint(module, inputs, loss, kept, targets)
    translation = Translation(drawn=True)
    leaves: dict[str, Node] = {}
    values: list[object] = []
    given: list[Node] = []
    for n in step.module.graph.nodes:
        if n.op != "placeholder":
            continue
        value = n.meta.get("val")
        if not isinstance(value, Tensor):
            raise CaptureError("a training step takes tensors only", got=n.name)
        name = step.owned.get(n.name)
        kind = "input" if name is None else "parameter"
        made = leaf(kind, name or n.name, translation.type_of(value, n))
        leaves[n.name if name is None else name] = made
        values.append(made)
        if name is None:
            given.append(made)
    results = translation.run(step.module, values)
    pairs = zip(step.results, results, strict=True)
    found = {name: value for name, value in pairs if isinstance(value, Node)}
    order = sorted(step.gradients, key=lambda r: list(step.owned.values()).index(step.gradients[r]))
    drawn = translation.drawn or {}
    graph = Graph(
        (*given, *drawn),
        (found[step.loss], *(found[r] for r in order)),
        tuple((leaves[name], found[r]) for r, name in step.updates.items()),
        dict(translation.constants),
        dict(translation.where),
    )
    return Joint(
        graph,
        tuple(step.gradients[r] for r in order),
        Live(module, list(step.owned.values())),
        dict(translation.coverage),
        tuple(translation.foreign),
        {n.name: probability for n, probability in drawn.items()},
    )
