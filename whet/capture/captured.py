"""A model brought in: its graph, its live weights, how it is called, and what stayed foreign."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from whet.errors import CaptureError, InputError
from whet.ir.graph import Graph, Node
from whet.run.signature import Signature


@dataclass(frozen=True, slots=True)
class Foreign:
    """A library call that stayed opaque: which, where in the user's code, and why."""

    node: Node
    target: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.target}: {self.reason}\n  {self.where}"


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured model.

    Attributes:
        graph: the program; its parameter leaves are named as in the module.
        parameters: the module's own tensors by those names, looked up anew at every access: what
            is changed, reloaded or replaced afterwards is seen.
        signature: the calling convention.
        coverage: how often each library call occurred.
        foreign: the calls among them that the table has no record for.
        dropped: run-time checks of values that the program no longer makes, with their lines.
        module: what was captured.
    """

    graph: Graph
    parameters: Mapping[str, Tensor]
    signature: Signature
    coverage: Mapping[str, int]
    foreign: tuple[Foreign, ...]
    dropped: tuple[str, ...]
    module: nn.Module

    def feeds(
        self, args: tuple[object, ...], kwargs: Mapping[str, object] = MappingProxyType({})
    ) -> dict[str, Tensor]:
        """A tensor for every input and parameter leaf, by name: what evaluates the graph.

        Raises:
            InputError: the arguments are not what the model was captured with.
        """
        leaves = self.signature.flatten(args, kwargs)
        if leaves is None:
            raise InputError("arguments of another structure", expected=self.signature)
        if reason := self.signature.misfit(leaves):
            raise InputError("arguments of another kind", expected=self.signature, got=reason)
        tensors = self.signature.inputs(leaves)
        names = [n.name for n in self.graph.inputs]
        return dict(self.parameters) | dict(zip(names, tensors, strict=True))

    def answer(
        self,
        results: Sequence[Tensor],
        args: tuple[object, ...],
        kwargs: Mapping[str, object] = MappingProxyType({}),
    ) -> object:
        """What the model returns, from the values of the graph's outputs."""
        return self.signature.unflatten(results, self.signature.flatten(args, kwargs) or [])


class Live(Mapping[str, Tensor]):
    """Tensors of a module by dotted name, looked up at every access."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.module, self.names = module, tuple(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        path, _, last = name.rpartition(".")
        found = getattr(self.module.get_submodule(path), last)
        if not isinstance(found, Tensor):
            raise CaptureError(
                f"{name} is no tensor any more", expected="a parameter or buffer", got=type(found)
            )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
