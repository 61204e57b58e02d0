"""An imported model as a torch module: what is optimized, compared with, and fallen back to.

    module(*inputs)          the graph, node by node, through torch's own operators

Parameters carry the names they have in the file, dots making submodules, so that a model exported
from torch has its state dict back. Given float64 where the file says float32, as after
`module.double()`, the module computes in float64, numbers and casts in the graph included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from whet.backend import aten
from whet.errors import InputError
from whet.ir.graph import Graph, Node, apply, item, leaf, opaque
from whet.ir.ops import exists
from whet.ir.text import parse_graph, print_graph
from whet.ir.types import DType, TensorType

_PLAIN = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_Plan = tuple[Graph, dict[Node, list[Node]]]


class OnnxModule(nn.Module):
    """A graph with its weights. They ask for no gradients: a file does not say what was trained.

    Args:
        graph: over concrete shapes; constants are its own.
        parameters: tensor of each parameter leaf, by its name from `qualified`.
    """

    def __init__(self, graph: Graph, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.names = tuple(n.name for n in graph.parameters)
        self._plans: dict[bool, _Plan] = {}
        for name in self.names:
            path, _, last = name.rpartition(".")
            owner: nn.Module = self
            for part in path.split(".") if path else ():
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(last, nn.Parameter(parameters[name], requires_grad=False))

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        weights = {name: self.get_parameter(name).detach().clone() for name in self.names}
        twin = OnnxModule(self.graph, weights)
        memo[id(self)] = twin
        return twin.train(self.training)

    def __reduce__(self) -> tuple[Any, ...]:
        weights = {name: self.get_parameter(name).detach() for name in self.names}
        return _unpickled, (print_graph(self.graph), dict(self.graph.constants), weights)

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs: one tensor, or a tuple of several, in the order of the file.

        Raises:
            InputError: another number of inputs than the file has, or of other shapes.
        """
        given = self._given(inputs)
        graph, dead = self._plan(given)
        values: dict[Node, Any] = {}
        for n in graph.nodes:
            if n.op in ("input", "parameter"):
                values[n] = given[n.name]
            elif n.op == "constant":
                values[n] = graph.constants[n.name]
            else:
                values[n] = aten.call(n, [None if a is None else values[a] for a in n.args])
            for gone in dead.get(n, ()):
                del values[gone]
        found = tuple(values[n] for n in graph.outputs)
        return found[0] if len(found) == 1 else found

    def _given(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        leaves = self.graph.inputs
        if len(inputs) != len(leaves):
            named = ", ".join(f"{n.name} {n.type}" for n in leaves)
            raise InputError(
                "another number of inputs", expected=f"{len(leaves)}: {named}", got=len(inputs)
            )
        for n, t in zip(leaves, inputs, strict=True):
            if tuple(t.shape) != n.shape:
                raise InputError(
                    f"input {n.name} has another shape", expected=n.type, got=list(t.shape),
                    hint="import the file again for these sizes",
                )  # fmt: skip
        given = {n.name: t for n, t in zip(leaves, inputs, strict=True)}
        return given | {name: self.get_parameter(name) for name in self.names}

    def _plan(self, given: Mapping[str, Tensor]) -> _Plan:
        """The graph in the precision that is given, and which values die after each node."""
        leaves = (*self.graph.inputs, *self.graph.parameters)
        wide = any(
            n.dtype is DType.f32 and given[n.name].dtype == aten.torch_dtype(DType.f64)
            for n in leaves
        )
        if wide not in self._plans:
            graph = retyped(self.graph, {DType.f32: DType.f64}) if wide else self.graph
            self._plans[wide] = graph, _last_uses(graph)
        return self._plans[wide]

    def extra_repr(self) -> str:
        """Inputs and outputs."""
        inputs = ", ".join(f"{n.name}: {n.type!r}" for n in self.graph.inputs)
        return f"{inputs} -> {', '.join(repr(n.type) for n in self.graph.outputs)}"


def _unpickled(
    text: str, constants: Mapping[str, object], weights: Mapping[str, Tensor]
) -> OnnxModule:
    """The module over a graph that travelled as text: nodes are nested as deep as the model."""
    return OnnxModule(parse_graph(text, constants), weights)


def _last_uses(graph: Graph) -> dict[Node, list[Node]]:
    last = {a: n for n in graph.nodes for a in n.operands}
    dead: dict[Node, list[Node]] = {}
    for value, n in last.items():
        if value not in graph.outputs:
            dead.setdefault(n, []).append(value)
    return dead


def retyped(graph: Graph, types: Mapping[DType, DType]) -> Graph:
    """The graph with element types exchanged everywhere: leaves, constants' data, attributes."""

    def type_of(t: TensorType) -> TensorType:
        return TensorType(types.get(t.dtype, t.dtype), t.shape)

    def value_of(value: object) -> object:
        if isinstance(value, DType):
            return types.get(value, value)
        return tuple(map(value_of, value)) if isinstance(value, tuple) else value

    new: dict[Node, Node] = {}
    for n in graph.nodes:
        args = [None if a is None else new[a] for a in n.args]
        present = [a for a in args if a is not None]
        if exists(n.op):
            new[n] = apply(n.op, *args, **{k: value_of(v) for k, v in n.attrs})
        elif n.op == "item":
            new[n] = item(present[0], int(str(n.attr("index"))))
        elif n.op == "opaque":
            results = n.attr("types")
            assert isinstance(results, tuple)
            new[n] = opaque(
                str(n.attr("target")), present, str(n.attr("statics")), [*map(type_of, results)]
            )
        else:
            new[n] = leaf(n.op, n.name, type_of(n.type))
    constants: dict[str, object] = {}
    for n in graph.leaves("constant"):
        data = graph.constants[n.name]
        assert isinstance(data, Tensor)
        constants[n.name] = data.to(aten.torch_dtype(new[n].dtype))
    return Graph(
        tuple(new[n] for n in graph.inputs), tuple(new[n] for n in graph.outputs), (), constants
    )


def qualified(names: Iterable[str]) -> dict[str, str]:
    """A name for each initializer that a module can have a parameter by: its own where possible."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(names):
        mine = name if _PLAIN.fullmatch(name) else re.sub(r"\W", "_", name)
        mine = mine if _PLAIN.fullmatch(mine) else f"p_{mine}"
        mine = ".".join(f"{part}_" if hasattr(nn.Module(), part) or part in _OWN else part
                        for part in mine.split("."))  # fmt: skip
        # A name may not be another's, nor stand where another has a submodule.
        while mine in taken or any(
            t.startswith(f"{mine}.") or mine.startswith(f"{t}.") for t in taken
        ):
            mine = f"{mine.replace('.', '_')}_"
        taken.add(mine)
        found[name] = mine
    return found


_OWN = frozenset({"graph", "names", "training"})
