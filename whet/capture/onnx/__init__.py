"""ONNX files become graphs: our own importer, without any ONNX runtime.

    file --file.py--> plain data --importer.py, one row an operator--> nodes of the operator table

    load_onnx("model.onnx", sizes={"batch": 1})        a Captured, as from torch

Versions 6 to 28 of the operator set are read. What is static (shapes, axes, splits) must be known
at import: constants are followed through any computation, and an input that never changes may be
`fixed`. An operator without a row is replaced by its definition in the standard, if it has one;
what then remains is refused by name, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from whet.backend.aten import torch_dtype
from whet.capture.captured import Captured, Foreign, Live
from whet.capture.onnx import (  # noqa: F401  (each fills the table of operators)
    contraction,
    control,
    creation,
    indexing,
    movement,
    normalization,
    pointwise,
    pooling,
    recurrent,
    reduction,
    resize,
)
from whet.capture.onnx.call import ROWS
from whet.capture.onnx.file import plain, read_model
from whet.capture.onnx.importer import Refused, Walk
from whet.capture.onnx.model import OnnxModel
from whet.capture.onnx.module import OnnxModule, qualified
from whet.errors import CaptureError
from whet.ir.graph import Graph, Node
from whet.run.signature import Signature, TensorArgument

__all__ = ["OPSETS", "OnnxModule", "load_onnx"]
OPSETS = range(6, 29)
NOTHING: Mapping[str, Any] = MappingProxyType({})


def load_onnx(
    source: str | Path | bytes,
    sizes: Mapping[str, int] = NOTHING,
    fixed: Mapping[str, Tensor] = NOTHING,
) -> Captured:
    """Bring in an ONNX model.

    Args:
        source: path of a file, or its bytes.
        sizes: numbers for sizes that the file leaves open: by name ("batch"), or, where they have
            none, by input and dim ("x:0").
        fixed: values of inputs that never change, by name; they are inputs no more.

    Returns:
        The graph with initializers as parameters, and a module that computes it.

    Raises:
        CaptureError: the file is missing, damaged or not valid; a size is not given; a node has no
            way into the operator table: it is named, with its operator, version and the reason.
    """
    model = read_model(source)
    where = "bytes" if isinstance(source, bytes) else str(source)
    known = set(ROWS)
    while True:
        data = plain(model, known, where)
        _check(data, sizes, fixed)
        try:
            walk = Walk(data, sizes, fixed, qualified(data.graph.initializers))
            return _captured(walk.run(), walk)
        except Refused as refused:
            # Its definition in the standard, if it has one, may fit where the row does not.
            key = refused.node.key
            if key not in known:
                raise refused.error from refused.__cause__
            known.discard(key)
            again = plain(model, known, where)
            if _count(again, key) >= _count(data, key):
                raise refused.error from refused.__cause__


def _count(model: OnnxModel, key: str) -> int:
    return sum(n.key == key for n in model.graph.nodes)


def _check(model: OnnxModel, sizes: Mapping[str, int], fixed: Mapping[str, Tensor]) -> None:
    version = model.opsets.get("", OPSETS.stop - 1)
    if version not in OPSETS:
        raise CaptureError(
            "an operator set of another version", expected=f"{OPSETS.start} to {OPSETS.stop - 1}",
            got=version, where=model.source, hint="convert it with onnx.version_converter",
        )  # fmt: skip
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    names = {v.name for v in model.graph.inputs}
    if unknown := [n for n in fixed if n not in names]:
        raise CaptureError(
            "fixed values for inputs that are not there", expected=", ".join(sorted(names)),
            got=", ".join(unknown), where=model.source,
        )  # fmt: skip
    open_sizes = {
        s if isinstance(s, str) else f"{v.name}:{k}"
        for v in inputs
        for k, s in enumerate(v.shape or ())
        if not isinstance(s, int)
    }
    if wrong := {n: s for n, s in sizes.items() if n not in open_sizes or s < 0}:
        raise CaptureError(
            "sizes that the file does not leave open",
            expected=", ".join(sorted(open_sizes)) or "none: every size is stated",
            got=wrong, where=model.source,
        )  # fmt: skip


def _captured(graph: Graph, walk: Walk) -> Captured:
    module = OnnxModule(graph, walk.parameters)
    arguments = [
        TensorArgument(n.name, tuple(int(str(s)) for s in n.shape), torch_dtype(n.dtype))
        for n in graph.inputs
    ]
    places = {n: k for k, n in enumerate(graph.inputs)}
    slots: list[tuple[str, Any]] = []
    outputs: list[Node] = []
    for n in graph.outputs:
        if n in places:
            slots.append(("argument", places[n]))
        else:
            slots.append(("result", len(outputs)))
            outputs.append(n)
    _, in_spec = pytree.tree_flatten(((0,) * len(arguments), {}))
    _, out_spec = pytree.tree_flatten(0 if len(slots) == 1 else (0,) * len(slots))
    signature = Signature(tuple(arguments), tuple(slots), in_spec, out_spec)
    foreign = tuple(
        Foreign(n, str(n.attr("target")), graph.where.get(n, ""), "no record computes it")
        for n in graph.nodes
        if n.op == "opaque"
    )
    graph = Graph(graph.inputs, tuple(outputs), (), graph.constants, graph.where)
    return Captured(
        graph, Live(module, module.names), signature, dict(walk.coverage), foreign, (), module
    )
