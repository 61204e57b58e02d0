"""torch programs: a module with example inputs, or an exported program, becomes a graph.

    module --torch.export--> calls of the library --aten/--> nodes of the operator table

Composite calls that the table has whole (attention, norms, convolution) stay whole; a call without
a handler is decomposed by torch; what has no handler then either is carried as an opaque node, with
the user's line and the reason. Every node's shape and element type are held against what torch says
of the call: a difference is an error, never a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.export.graph_signature import TensorArgument as TensorSpec

from whet.capture import exported
from whet.capture.aten import kept
from whet.capture.captured import Captured, Live
from whet.capture.translate import Translation
from whet.errors import CaptureError
from whet.ir.graph import Graph, Node, leaf
from whet.run.signature import Argument, FixedArgument, Signature, TensorArgument

NOTHING: Mapping[str, object] = MappingProxyType({})


def capture(
    model: nn.Module | ExportedProgram,
    args: Sequence[object] | None = None,
    kwargs: Mapping[str, object] = NOTHING,
) -> Captured:
    """Bring in a model for inputs like these.

    Args:
        model: a module, or what torch.export made of one.
        args: example positional arguments: tensors, and nested lists and dicts of them; numbers,
            flags and None are fixed. An exported program's own examples by default.
        kwargs: example keyword arguments.

    Raises:
        CaptureError: it does not trace, or its shapes depend on data; the user's line is shown.
    """
    module = exported.module_of(model) if isinstance(model, ExportedProgram) else model
    program = exported.program_of(module)
    if args is None:
        own = exported.example_inputs(program) if program is not None else None
        if own is None:
            raise CaptureError("a model is captured with example inputs", got="none")
        args, kwargs = own
    if program is None or exported.symbolic(program):
        program = exported.export(module, tuple(args), kwargs)
    program = exported.functional(program, kept)
    captured = _Importer(program, module).captured()
    leaves = captured.signature.flatten(tuple(args), kwargs)
    misfit = "another structure" if leaves is None else captured.signature.misfit(leaves)
    if misfit is not None:
        raise CaptureError(
            "the exported program is for other inputs", expected=captured.signature, got=misfit
        )
    return captured


class _Importer:
    """One exported program on its way into a graph."""

    def __init__(self, program: ExportedProgram, module: nn.Module) -> None:
        self.program, self.module = program, module
        self.translation = Translation()
        self.inputs: list[Node] = []
        self.arguments: list[Argument] = []
        self.names: list[str] = []
        self.leaves: dict[str, Node] = {}
        self.devices: set[str] = set()

    def captured(self) -> Captured:
        placeholders = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        values = [
            self._leaf(spec, node)
            for spec, node in zip(
                self.program.graph_signature.input_specs, placeholders, strict=True
            )
        ]
        results = self.translation.run(self.program.graph_module, values)
        outputs: list[Node] = []
        slots: list[tuple[str, object]] = []
        updates: list[tuple[Node, Node]] = []
        for spec, value in zip(self.program.graph_signature.output_specs, results, strict=True):
            if spec.kind is OutputKind.USER_OUTPUT:
                slots.append(self._result(spec.arg, value, outputs))
            elif spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
                assert isinstance(value, Node)
                updates.append((self.leaves[str(spec.target)], value))
            else:
                raise CaptureError(f"an exported program with a result of kind {spec.kind.name}")
        call = self.program.call_spec
        assert call.in_spec is not None
        assert call.out_spec is not None
        signature = Signature(tuple(self.arguments), tuple(slots), call.in_spec, call.out_spec)
        t = self.translation
        graph = Graph(
            tuple(self.inputs), tuple(outputs), tuple(updates), dict(t.constants), dict(t.where)
        )
        return Captured(
            graph, Live(self.module, self.names), signature, dict(t.coverage),
            tuple(t.foreign), tuple(t.dropped), self.module,
        )  # fmt: skip

    def _leaf(self, spec: object, node: torch.fx.Node) -> object:
        """The value of a placeholder: a leaf, or a fixed number."""
        kind, arg, target = spec.kind, spec.arg, spec.target  # type: ignore[attr-defined]
        if isinstance(arg, ConstantArgument):
            self.arguments.append(FixedArgument(arg.name, arg.value))
            return arg.value
        if kind is InputKind.TOKEN:
            raise CaptureError(
                "the model has effects that a graph cannot carry",
                got="a call that prints, checks values by raising, or talks to the outside",
            )
        if not isinstance(arg, TensorSpec):
            raise CaptureError(
                f"an input of kind {type(arg).__name__}", expected="tensors, numbers, flags, None"
            )
        type_ = self.translation.type_of(node.meta["val"], node)
        if type_.rank:  # a lone number on the CPU goes with any device
            self.devices.add(str(node.meta["val"].device))
        if len(self.devices) > 1:
            raise CaptureError(
                "the model and its inputs lie on several devices",
                expected="one device", got=", ".join(sorted(self.devices)),
                where=target or node.name,
            )  # fmt: skip
        if kind is InputKind.USER_INPUT:
            made = leaf("input", node.name, type_)
            value = node.meta["val"]
            shape, device = tuple(map(int, value.shape)), value.device.type
            self.arguments.append(TensorArgument(node.name, shape, value.dtype, device))
            self.inputs.append(made)
            self.leaves[node.name] = made
            return made
        if kind in (InputKind.PARAMETER, InputKind.BUFFER):
            made = leaf("parameter", target, type_)
            self.names.append(target)
            self.leaves[target] = made
            return made
        if kind is InputKind.CONSTANT_TENSOR:
            data = self.program.constants[target]
            assert isinstance(data, Tensor)
            return self.translation.constant(data, node.name)
        raise CaptureError(f"an exported program with an input of kind {kind.name}", got=target)

    def _result(self, arg: object, value: object, outputs: list[Node]) -> tuple[str, object]:
        """Where a leaf of the answer comes from; an argument handed back is that very tensor."""
        if not isinstance(value, Node):
            return "value", arg.value if isinstance(arg, ConstantArgument) else value
        name = getattr(arg, "name", "")
        for k, argument in enumerate(self.arguments):
            if argument.name == name and isinstance(argument, TensorArgument):
                return "argument", k
        outputs.append(value)
        return "result", len(outputs) - 1
