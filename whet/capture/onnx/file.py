"""ONNX files into plain data and back; the only file that knows the onnx package.

    bytes --parse--> check --inline functions--> OnnxModel
    OnnxModel --serialized--> bytes

Operators that the caller does not know are replaced by their definition in the standard where they
have one (a function over simpler operators); a model's own functions are replaced always.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whet.capture.aten.call import dtype_of as _dtype_of
from whet.capture.onnx.model import (
    ELEMENTS,
    OnnxGraph,
    OnnxModel,
    OnnxNode,
    OnnxValue,
    Unreadable,
    element_name,
)
from whet.errors import CaptureError
from whet.ir.types import DType

_CHECKED_BYTES = 1 << 31  # the checker serializes what it checks, and no message is longer
_BFLOAT16 = 16


def read_model(source: str | Path | bytes) -> Any:
    """The parsed and checked ModelProto of a file or of bytes.

    Raises:
        CaptureError: the onnx package is missing; there is no such file; it is no ONNX model, is
            cut off or not valid; data that lies beside it is missing.
    """
    onnx = _onnx()
    where = "bytes" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _bytes_of(Path(source))
    model, whole = _parse(onnx, data, where), True
    external = onnx.external_data_helper
    if any(map(external.uses_external_data, external._get_all_tensors(model))):
        if isinstance(source, bytes):
            raise CaptureError(
                "the model keeps weights in files beside it", where=where,
                hint="give the path of the model instead of its bytes",
            )  # fmt: skip
        _load_external(onnx, model, Path(source))
        whole = False
    _check(onnx, model, data if whole else None, where)
    return model


def plain(model: Any, known: Collection[str], source: str) -> OnnxModel:
    """The model as plain data.

    Args:
        model: a ModelProto.
        known: operators to leave whole ("Relu", "com.microsoft.Gelu"); others are replaced by
            their definition in the standard, where it has one.
    """
    model = _inlined(model, known)
    opsets = {_domain(o.domain): int(o.version) for o in model.opset_import}
    return OnnxModel(_graph(model.graph), opsets, source)


def _onnx() -> Any:
    try:
        import onnx
        import onnx.external_data_helper
        import onnx.inliner
        import onnx.shape_inference
    except ImportError:
        raise CaptureError(
            "reading ONNX models needs the package onnx", hint="pip install 'whet[onnx]'"
        ) from None
    return onnx


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.onnx")) if path.parent.is_dir() else []
        hint = f"in that folder: {', '.join(near[:5])}" if near else "check the path"
        raise CaptureError("there is no such file", got=path, hint=hint) from None
    except OSError as fault:
        raise CaptureError(
            "the file cannot be read", got=f"{path}: {fault.strerror}", expected="an ONNX file"
        ) from None


def _parse(onnx: Any, data: bytes, where: str) -> Any:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        problem = None if len(model.graph.node) + len(model.graph.output) else "it holds no graph"
    except Exception as fault:  # protobuf's DecodeError, whichever implementation raises it
        problem = _short(fault)
    if problem:
        raise CaptureError(
            "this is no ONNX model, or only a part of one", expected="a serialized ModelProto",
            got=f"{len(data)} bytes: {problem}", where=where, hint="export or copy it again",
        )  # fmt: skip
    return model


def _check(onnx: Any, model: Any, data: bytes | None, where: str) -> None:
    """The standard's own check; but outputs may be without shapes, as runtimes take them too.

    Args:
        data: the model as it was read, which spares writing it again; None if it is no longer that.
    """
    outputs = [v.type.tensor_type for v in model.graph.output if v.type.HasField("tensor_type")]
    bare = [t for t in outputs if not t.HasField("shape")]
    for t in bare:
        t.shape.SetInParent()
    whole = data is not None and not bare
    if whole or model.ByteSize() < _CHECKED_BYTES:
        try:
            onnx.checker.check_model(data if whole else model)
        except Exception as fault:  # the checker raises what its parts raise
            raise CaptureError(
                "the ONNX model is not valid", got=_short(fault), where=where,
                hint="export it again, or look at it with onnx.checker.check_model",
            ) from None  # fmt: skip
    for t in bare:
        t.ClearField("shape")


def _load_external(onnx: Any, model: Any, path: Path) -> None:
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as fault:  # missing, cut off, or outside the model's folder
        raise CaptureError(
            "weights that the model keeps in another file cannot be read", got=_short(fault),
            where=path, hint="copy that file beside the model",
        ) from None  # fmt: skip


def _short(fault: Exception) -> str:
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(fault).__name__


# -- functions -----------------------------------------------------------------------------------
def _inlined(model: Any, known: Collection[str]) -> Any:
    """The model with its own functions, and unknown operators that have a definition, expanded."""
    onnx = _onnx()
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    while True:
        unknown = {(n.domain, n.op_type) for n in _nodes(model.graph)}
        unknown = {k for k in unknown if (f"{k[0]}.{k[1]}" if k[0] else k[1]) not in known}
        before = _count(model, unknown)
        for key in sorted(unknown):
            model = _expanded(onnx, model, key)
        if not unknown or _count(model, unknown) == before:
            return model


def _expanded(onnx: Any, model: Any, key: tuple[str, str]) -> Any:
    """The model with every node of an operator replaced by the operator's definition, if it can."""
    domain, op = key
    version = next((o.version for o in model.opset_import if o.domain == domain), 0)
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return model
    if not (schema.has_function or schema.has_context_dependent_function):
        return model
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for node in _nodes(wide.graph):
        if (node.domain, node.op_type) == key:
            _spell_out(schema, node)
    try:
        return onnx.inliner.inline_selected_functions(wide, [key], inline_schema_functions=True)
    except RuntimeError:  # it knows no type for an input that is left out
        try:
            return _by_hand(onnx, wide, schema, version)
        except (RuntimeError, onnx.shape_inference.InferenceError):
            return model


def _spell_out(schema: Any, node: Any) -> None:
    """Give a node the attributes it leaves to their defaults: a definition refers to them."""
    given = {a.name for a in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.append(attribute.default_value)


def _by_hand(onnx: Any, model: Any, schema: Any, version: int) -> Any:
    """The same through functions of the model's own, one for each node of the outermost graph."""
    if not schema.has_context_dependent_function:
        return model
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type for v in (*graph.input, *graph.output, *graph.value_info)}
    for t in graph.initializer:
        types[t.name] = onnx.helper.make_tensor_type_proto(t.data_type, t.dims)
    latest = max(v for v in schema.context_dependent_function_opset_versions if v <= version)
    for k, node in enumerate(model.graph.node):
        if (node.domain, node.op_type) != (schema.domain, schema.name):
            continue
        known = [types.get(n, onnx.TypeProto()).SerializeToString() for n in node.input]
        text = schema.get_context_dependent_function_with_opset_version(
            latest, node.SerializeToString(), known
        )
        function = model.functions.add()
        function.ParseFromString(text)
        node.domain = function.domain = "whet.definitions"
        node.op_type = function.name = f"{schema.name}_{k}"
    model.opset_import.append(onnx.helper.make_opsetid("whet.definitions", 1))
    return onnx.inliner.inline_local_functions(model)


def _count(model: Any, keys: Collection[tuple[str, str]]) -> int:
    return sum((n.domain, n.op_type) in keys for n in _nodes(model.graph))


def _nodes(graph: Any) -> list[Any]:
    """All nodes, those of nested graphs too."""
    found: list[Any] = []
    pending = [graph]
    while pending:
        for node in pending.pop().node:
            found.append(node)
            for a in node.attribute:
                pending += [a.g] if a.HasField("g") else list(a.graphs)
    return found


# -- plain data ----------------------------------------------------------------------------------
def _graph(graph: Any) -> OnnxGraph:
    initializers = {_name(t.name): _tensor(t) for t in graph.initializer}
    for sparse in graph.sparse_initializer:
        initializers[_name(sparse.values.name)] = Unreadable("a sparse tensor")
    return OnnxGraph(
        _name(graph.name),
        tuple(map(_value, graph.input)),
        tuple(map(_value, graph.output)),
        initializers,
        tuple(map(_node, graph.node)),
    )


def _value(info: Any) -> OnnxValue:
    name = _name(info.name)
    kind = info.type.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        return OnnxValue(name, kind=kind.removesuffix("_type"))
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return OnnxValue(name, tensor.elem_type)
    return OnnxValue(name, tensor.elem_type, tuple(map(_size, tensor.shape.dim)))


def _size(dim: Any) -> int | str | None:
    if dim.WhichOneof("value") == "dim_value":
        return int(dim.dim_value)
    return _name(dim.dim_param) or None


def _node(node: Any) -> OnnxNode:
    return OnnxNode(
        _name(node.op_type),
        _domain(_name(node.domain)),
        _name(node.name),
        tuple(map(_name, node.input)),
        tuple(map(_name, node.output)),
        {_name(a.name): _attribute(a) for a in node.attribute},
    )


def _name(text: object) -> str:
    """A name; protobuf hands out bytes where they are no text."""
    if not isinstance(text, str):
        raise CaptureError(
            "the ONNX model is damaged", expected="names in UTF-8", got=text,
            hint="export or copy it again",
        )  # fmt: skip
    return text


def _domain(name: str) -> str:
    """The standard's own domain has two names."""
    return "" if name == "ai.onnx" else name


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


# AttributeProto.AttributeType: how its value is read.
_ATTRIBUTES: dict[int, Callable[[Any], object]] = {
    1: lambda a: float(a.f),
    2: lambda a: int(a.i),
    3: lambda a: _text(a.s),
    4: lambda a: _tensor(a.t),
    5: lambda a: _graph(a.g),
    6: lambda a: tuple(map(float, a.floats)),
    7: lambda a: tuple(map(int, a.ints)),
    8: lambda a: tuple(map(_text, a.strings)),
    9: lambda a: tuple(map(_tensor, a.tensors)),
    10: lambda a: tuple(map(_graph, a.graphs)),
}


def _attribute(attribute: Any) -> object:
    read = _ATTRIBUTES.get(attribute.type)
    if read is None:
        return Unreadable(f"an attribute of kind {attribute.type}")
    return read(attribute)


def _tensor(tensor: Any) -> Tensor | Unreadable:
    import onnx.numpy_helper

    name, dtype = ELEMENTS.get(tensor.data_type, ("", None))
    if dtype is None:
        return Unreadable(f"a tensor of {name or element_name(tensor.data_type)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            array = onnx.numpy_helper.to_array(tensor)
    except (TypeError, ValueError) as fault:  # the checker counts no bytes
        raise CaptureError(
            "a tensor has other data than its size says",
            expected=f"{name}{list(tensor.dims)}", got=_short(fault),
            where=f"tensor {tensor.name}", hint="export or copy the model again",
        ) from None  # fmt: skip
    if tensor.data_type == _BFLOAT16:
        bits = torch.from_numpy(array.view("int16").copy())
        return bits.view(torch.bfloat16)
    return torch.from_numpy(array.copy())


# -- the way back --------------------------------------------------------------------------------
_CODES: dict[DType | None, int] = {
    dtype: code for code, (_, dtype) in ELEMENTS.items() if dtype is not None
}


def write_model(model: OnnxModel, path: Path) -> None:
    """Write a model that `whet.capture.onnx.writer` made; checked as the standard has it.

    Weights that no message can hold go into a file beside it, `NAME.data`.

    Raises:
        CaptureError: the onnx package is missing, or the standard does not allow the model.
    """
    onnx = _onnx()
    made = _proto(onnx, model)
    size = sum(
        t.numel() * t.element_size() for t in model.graph.initializers.values()
        if isinstance(t, Tensor)
    )  # fmt: skip
    beside = size > _CHECKED_BYTES // 2
    try:
        if beside:
            onnx.save_model(
                made, str(path), save_as_external_data=True, location=f"{path.name}.data"
            )
        else:
            path.write_bytes(made.SerializeToString())
        onnx.checker.check_model(str(path), full_check=not beside)
    except OSError as fault:
        raise CaptureError(f"{path} cannot be written", got=fault.strerror) from fault
    except Exception as fault:  # the checker raises what its parts raise
        raise CaptureError(
            "the ONNX model that was written is not valid", got=_short(fault), where=path
        ) from fault


def _proto(onnx: Any, model: OnnxModel) -> Any:
    """Plain data as a ModelProto."""
    helper, graph = onnx.helper, model.graph

    def value(v: OnnxValue) -> Any:
        return helper.make_tensor_value_info(v.name, v.element, v.shape)

    nodes = [
        helper.make_node(n.op, n.inputs, n.outputs, domain=n.domain, **n.attributes)
        for n in graph.nodes
    ]
    weights = [_to_proto(onnx, k, t) for k, t in graph.initializers.items()]
    made = helper.make_graph(
        nodes, graph.name, list(map(value, graph.inputs)), list(map(value, graph.outputs)), weights
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in model.opsets.items()]
    return helper.make_model(made, opset_imports=opsets, ir_version=9, producer_name="whet")


def _to_proto(onnx: Any, name: str, t: object) -> Any:
    assert isinstance(t, Tensor)
    raw = t.detach().cpu().contiguous()
    made = onnx.TensorProto(name=name, data_type=_CODES[_dtype_of(raw.dtype)], dims=list(raw.shape))
    made.raw_data = raw.reshape(-1).view(torch.uint8).numpy().tobytes() if raw.numel() else b""
    return made
