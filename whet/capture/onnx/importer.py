"""The walk over an ONNX graph: one node after the other becomes nodes of the operator table.

Initializers of a float type with more than one element are parameters, which may change after the
import. All others, and what Constant nodes hold, are constants: shapes and axes that are computed
from constants alone are evaluated where a handler asks for them, by the records themselves. Names
that an importer may not find (a model-local scope) are looked up in the enclosing graphs.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from whet.backend.library import run_opaque
from whet.capture.aten.call import dtype_of as torch_name
from whet.capture.onnx.call import IGNORED, MOVED, ROWS, Call, NoMapping, Value, dtype_of
from whet.capture.onnx.model import OnnxGraph, OnnxModel, OnnxNode, OnnxValue, Unreadable
from whet.errors import CaptureError, WhetError
from whet.ir.graph import Graph, Node, leaf, topological
from whet.ir.interp import NATIVE, run_instance
from whet.ir.types import TensorType

_FOLDED_ELEMENTS = 1 << 20  # a constant computed at import that is larger is left to the program
_KEPT_ELEMENTS = 1 << 16  # one that large is cheaper to compute than to store
# What a handler trips over when a file says what the standard does not allow.
_MISFITS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


class Refused(Exception):
    """A node without a way into the table; carries the node for a second try by its definition."""

    def __init__(self, node: OnnxNode, reason: str, error: CaptureError) -> None:
        self.node, self.reason, self.error = node, reason, error
        super().__init__(reason)


class Walk:
    """One import: what is known so far of constants, parameters, counts, lines.

    Args:
        model: plain data.
        sizes: values of symbolic sizes by name.
        fixed: inputs that are constants, by name.
        names: what to call parameter leaves, by initializer.
    """

    def __init__(
        self,
        model: OnnxModel,
        sizes: Mapping[str, int],
        fixed: Mapping[str, Tensor],
        names: Mapping[str, str],
    ) -> None:
        self.model, self.sizes, self.fixed, self.names = model, sizes, fixed, names
        self.constants: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        self.inputs: list[Node] = []
        self.where: dict[Node, str] = {}
        self.coverage: Counter[str] = Counter()
        self.values: dict[Node, Tensor | None] = {}
        self.env: dict[str, Value] = {}

    # -- graphs ----------------------------------------------------------------------------------
    def run(self) -> Graph:
        """The whole model as a graph."""
        g = self.model.graph
        self._initializers(g)
        for value in g.inputs:
            if value.name not in self.env:
                self.env[value.name] = self._input(value)
        self._nodes(g.nodes)
        outputs = []
        for value in g.outputs:
            found = self._result(value.name, g)
            if not isinstance(found, Node):
                raise CaptureError(
                    f"output {value.name} is no tensor", expected="tensors",
                    got="a sequence or nothing", where=self.model.source,
                )  # fmt: skip
            self._check(value, found)
            outputs.append(found)
        graph = self._folded(
            Graph(tuple(self.inputs), tuple(outputs), (), self.constants, self.where)
        )
        live = {n.name for n in graph.leaves("constant")}
        kept = {k: v for k, v in self.constants.items() if k in live}
        return Graph(graph.inputs, graph.outputs, (), kept, dict(graph.where))

    def body(self, graph: OnnxGraph, values: Sequence[Value]) -> list[Value]:
        """The results of a nested graph for the values of its inputs."""
        outer = dict(self.env)
        self._initializers(graph)
        self.env.update(zip((v.name for v in graph.inputs), values, strict=False))
        self._nodes(graph.nodes)
        results = [self._result(v.name, graph) for v in graph.outputs]
        self.env = outer
        return results

    def _result(self, name: str, graph: OnnxGraph) -> Value:
        if name not in self.env:
            raise CaptureError(
                f"output {name} of graph {graph.name} is computed nowhere", where=self.model.source
            )
        return self.env[name]

    def _initializers(self, graph: OnnxGraph) -> None:
        for name, data in graph.initializers.items():
            if isinstance(data, Unreadable):
                self.env.pop(name, None)
                continue
            dtype = torch_name(data.dtype)
            assert dtype is not None
            if dtype.is_float and data.numel() > 1 and name in self.names:
                self.parameters[self.names[name]] = data
                shape = tuple(data.shape)
                self.env[name] = leaf("parameter", self.names[name], TensorType(dtype, shape))
            else:
                self.env[name] = self.constant(data)

    def _input(self, value: OnnxValue) -> Value:
        if value.name in self.fixed:
            return self.constant(self.fixed[value.name])
        where = f"input {value.name} of {self.model.source}"
        if value.kind != "tensor":
            raise CaptureError("an input that is no tensor", got=value.kind, where=where)
        try:
            dtype = dtype_of(value.element)
        except NoMapping as why:
            raise CaptureError(str(why), where=where, hint="cast it outside the model") from None
        made = leaf("input", value.name, TensorType(dtype, self._shape(value, where)))
        self.inputs.append(made)
        return made

    def _shape(self, value: OnnxValue, where: str) -> tuple[int, ...]:
        if value.shape is None:
            raise CaptureError(
                "an input of unknown rank", where=where,
                hint="export the model with the shape of its inputs",
            )  # fmt: skip
        shape: list[int] = []
        missing: list[str] = []
        for axis, size in enumerate(value.shape):
            name = size if isinstance(size, str) else f"{value.name}:{axis}"
            if isinstance(size, int):
                shape.append(size)
            elif name in self.sizes:
                shape.append(self.sizes[name])
            else:
                missing.append(name)
        if missing:
            example = ", ".join(f"{name!r}: 1" for name in missing)
            options = " ".join(f"--size {name}=N" for name in missing)
            raise CaptureError(
                "an input has sizes that the file leaves open", expected="a number for each",
                got=", ".join(missing), where=where,
                hint=f"give them: {options}, or load_onnx(…, sizes={{{example}}}) in Python",
            )  # fmt: skip
        return tuple(shape)

    def _check(self, value: OnnxValue, found: Node) -> None:
        """What the file says of an output must be so."""
        said = value.shape
        try:
            fits = not value.element or dtype_of(value.element) is found.dtype
        except NoMapping:
            fits = False
        if said is not None:
            fits = fits and len(said) == len(found.shape)
            fits = fits and all(
                n == m for n, m in zip(said, found.shape, strict=True) if isinstance(n, int)
            )
        if value.kind != "tensor" or not fits:
            raise CaptureError(
                f"output {value.name} is not what the file says it is",
                expected=f"element type {value.element}, sizes {said}", got=found.type,
                where=self.model.source, hint="run shape inference over the model, or drop the "
                "sizes from its outputs; if they are right, please report it with the model",
            )  # fmt: skip

    # -- nodes -----------------------------------------------------------------------------------
    def _nodes(self, nodes: Sequence[OnnxNode]) -> None:
        for node in nodes:
            results = self._node(node)
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    self.env[name] = value
            for k, name in enumerate(node.outputs):
                if name and (k >= len(results) or results[k] is None):
                    raise self._refusal(node, f"no record gives output {k}")

    def _node(self, node: OnnxNode) -> list[Value]:
        self.coverage[node.key] += 1
        handler = ROWS.get(node.key)
        opset = self.model.opsets.get(node.domain, 0)
        if handler is None:
            raise self._refusal(node, "whet does not know this operator")
        used = frozenset(k for k, name in enumerate(node.outputs) if name)
        call = Call(node, opset, used, self)
        try:
            inputs, attributes = self._arguments(node)
            try:
                inspect.signature(handler).bind(call, *inputs, **attributes)
            except TypeError as fault:
                raise NoMapping(f"inputs or attributes of another form: {fault}") from None
            value = handler(call, *inputs, **attributes)
        except NoMapping as why:
            raise self._refusal(node, str(why)) from None
        except (CaptureError, Refused):
            raise
        except WhetError as fault:
            raise self._refusal(node, f"{fault.summary}: {fault.got}") from fault
        except _MISFITS as fault:
            reason = f"its inputs or attributes do not fit ({type(fault).__name__}: {fault})"
            raise self._refusal(node, reason) from fault
        results: list[Value] = list(value) if isinstance(value, list) else [value]
        for found in results:
            self._place(found, node)
        return results

    def _place(self, root: Value, node: OnnxNode) -> None:
        """Give new nodes the line of the file."""
        stack = [root]
        while stack:
            n = stack.pop()
            if isinstance(n, list):
                stack += n
            elif n is not None and not n.is_leaf and n not in self.where:
                self.where[n] = str(node)
                stack += n.operands

    def _arguments(self, node: OnnxNode) -> tuple[list[Value], dict[str, object]]:
        inputs = [self._read(name, node) for name in node.inputs]
        ignored = IGNORED.get(node.op, frozenset())
        attributes = {k: v for k, v in node.attributes.items() if k not in ignored}
        for k, v in attributes.items():
            if isinstance(v, Unreadable):
                raise NoMapping(f"attribute {k} is {v.reason}, which whet has no type for")
        for name, place in MOVED.get(node.op, ()):
            if name in attributes and (len(inputs) <= place or inputs[place] is None):
                inputs += [None] * (place + 1 - len(inputs))
                data = torch.tensor(attributes.pop(name))
                inputs[place] = self.constant(data)
        return inputs, attributes

    def _read(self, name: str, node: OnnxNode) -> Value:
        if not name:
            return None
        if name not in self.env:
            unreadable = self.model.graph.initializers.get(name)
            if isinstance(unreadable, Unreadable):
                raise NoMapping(f"{name} is {unreadable.reason}, which whet has no type for")
            raise NoMapping(f"its input {name} is computed nowhere before it")
        return self.env[name]

    def _refusal(self, node: OnnxNode, reason: str) -> Refused:
        opset = self.model.opsets.get(node.domain, 0)
        hint = "rewrite that part of the model with other operators"
        blamed = [n.name for n in self.inputs if f"input {n.name}" in reason]
        if blamed:
            hint = f"give its value if it never changes: load_onnx(…, fixed={{{blamed[0]!r}: …}})"
        error = CaptureError(
            f"operator {node.key} of opset {opset} cannot be imported", got=reason,
            where=f"node {node} of {self.model.source}", hint=hint,
        )  # fmt: skip
        return Refused(node, reason, error)

    # -- constants -------------------------------------------------------------------------------
    def constant(self, data: Tensor) -> Node:
        """A constant leaf; its name tells its content, so equal constants are one leaf."""
        data = data.detach().contiguous()
        dtype = torch_name(data.dtype)
        if dtype is None:
            raise NoMapping(f"whet has no tensors of {data.dtype}")
        content = data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b""
        key = f"{dtype.name}{list(data.shape)}".encode() + content
        name = f"constant_{hashlib.blake2b(key, digest_size=8).hexdigest()}"
        self.constants.setdefault(name, data)
        return leaf("constant", name, TensorType(dtype, tuple(data.shape)))

    def known(self, node: Node) -> Tensor | None:
        """The value of a node that is computed from constants alone, or is a parameter's."""
        if node.op == "parameter":
            return self.parameters[node.name]
        if node not in self.values:
            self._evaluate(node)
        return self.values[node]

    def _evaluate(self, root: Node) -> None:
        for n in topological([root]):
            if n in self.values:
                continue
            if n.is_leaf:
                self.values[n] = self.constants[n.name] if n.op == "constant" else None
                continue
            operands = [None if a is None else self.values[a] for a in n.args]
            missing = any(
                x is None and a is not None for x, a in zip(operands, n.args, strict=True)
            )
            if missing or _elements(n) > _FOLDED_ELEMENTS:
                self.values[n] = None
            elif n.op == "item":
                source = n.operands[0]
                tensors = [x for x in map(self.values.get, source.operands) if x is not None]
                self.values[n] = run_opaque(source, tensors)[int(str(n.attr("index")))]
            elif n.op == "opaque":
                self.values[n] = run_opaque(n, [x for x in operands if x is not None])[0]
            else:
                found = run_instance(n.instance, operands, NATIVE, _out(n))
                self.values[n] = NATIVE.store(found, n.dtype)

    def blame(self, node: Node) -> str:
        """What a node's value depends on: an input, else a parameter."""
        for n in topological([node]):
            if n.op == "input":
                return f"input {n.name}"
        for n in topological([node]):
            if n.op == "parameter":
                return f"parameter {n.name}"
        return "a value too large to compute at import"

    def _folded(self, graph: Graph) -> Graph:
        """The graph with constants for what constants alone compute."""

        def fold(n: Node, args: tuple[Node | None, ...]) -> Node | None:
            if n.is_leaf or not args or n.op in ("opaque", "item"):
                return None
            if any(a is not None and a.op not in ("constant", "full") for a in args):
                return None
            if all(a is None or a.op == "full" for a in args) or _elements(n) > _KEPT_ELEMENTS:
                return None
            data = self.known(n)
            return None if data is None else self.constant(data)

        return graph.rewrite(fold)


def _elements(n: Node) -> int:
    numel = n.type.numel
    return numel if isinstance(numel, int) else 0


def _out(n: Node) -> str | None:
    out = n.attr("out")
    return None if out is None else str(out)
