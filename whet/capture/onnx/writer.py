"""Graphs become ONNX files: the importer's way back.

    graph --spelled.py, one row an operator; else its record, notation.py--> plain data
          --file.py--> file

    save_onnx(graph, data, "model.onnx")

What ONNX has a name for is written under that name; everything else is written out from the
operator's record, so that every operator of the table has a way out, and every part of one too.
Library calls without a record are written where ONNX has an operator for them (called.py), and else
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.backend.aten import torch_dtype
from whet.capture.onnx.model import ELEMENTS, OnnxGraph, OnnxModel, OnnxNode, OnnxValue
from whet.errors import UnsupportedError
from whet.ir.graph import Graph, Node
from whet.ir.types import DType

OPSET = 20
CODES: Mapping[DType, int] = {d: code for code, (_, d) in ELEMENTS.items() if d is not None}


class Unwritten(Exception):
    """A row cannot say a node in ONNX; its record is written out instead."""


def sizes(n: Node) -> tuple[int, ...]:
    """Sizes of a node whose sizes are plain numbers.

    Raises:
        UnsupportedError: one is open.
    """
    found = tuple(s for s in n.shape if isinstance(s, int))
    if len(found) != len(n.shape):
        raise UnsupportedError("a file is written for fixed sizes", got=n.type, where=n)
    return found


@dataclass(slots=True)
class Writer:
    """An ONNX graph while it is written; values are names."""

    inputs: list[OnnxValue] = field(default_factory=list)
    outputs: list[OnnxValue] = field(default_factory=list)
    nodes: list[OnnxNode] = field(default_factory=list)
    initializers: dict[str, Tensor] = field(default_factory=dict)
    _known: dict[tuple[torch.dtype, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _several: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _count: int = 0

    def fresh(self) -> str:
        """A name that nothing has."""
        self._count += 1
        while (name := f"v{self._count}") in self.initializers:
            self._count += 1
        return name

    def op(self, op: str, *inputs: str | None, **attributes: object) -> str:
        """A node with one result: its name. Inputs that are left out stand as None."""
        names = ["" if x is None else x for x in inputs]
        while names and not names[-1]:
            names.pop()
        made = self.fresh()
        self.nodes.append(OnnxNode(op, "", "", tuple(names), (made,), attributes))
        return made

    def several(self, op: str, count: int, *inputs: str, **attributes: object) -> tuple[str, ...]:
        """A node with several results: their names."""
        made = tuple(self.fresh() for _ in range(count))
        self.nodes.append(OnnxNode(op, "", "", inputs, made, attributes))
        self._several[made[0]] = made
        return made

    def constant(self, t: Tensor) -> str:
        """Data in the file; equal small data is there once."""
        t = t.detach().contiguous()
        key = None
        if t.numel() <= 4096:
            raw = t.reshape(-1).view(torch.uint8) if t.numel() else t.reshape(0).to(torch.uint8)
            key = (t.dtype, tuple(t.shape), bytes(raw.tolist()))
            if key in self._known:
                return self._known[key]
        name = self.fresh()
        self.initializers[name] = t
        if key is not None:
            self._known[key] = name
        return name

    def data(self, name: str, t: Tensor) -> str:
        """Data under a name of its own, as parameters have."""
        self.initializers.setdefault(name, t.detach().contiguous())
        return name

    def ints(self, *values: int) -> str:
        """A row of whole numbers, as shapes and axes are given."""
        return self.constant(torch.tensor(values, dtype=torch.int64))

    def number(self, value: float, dtype: DType) -> str:
        """One number without dims."""
        return self.constant(torch.tensor(value, dtype=torch_dtype(dtype)))

    def cast(self, x: str, have: DType, want: DType) -> str:
        """Another element type."""
        return x if have is want else self.op("Cast", x, to=CODES[want])

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Another shape; a size of 0 is one."""
        return self.op("Reshape", x, self.ints(*shape), allowzero=1)

    def takes(self, name: str, dtype: DType, shape: Sequence[int]) -> str:
        """Declare an input."""
        self.inputs.append(OnnxValue(name, CODES[dtype], tuple(shape)))
        return name

    def gives(self, name: str, x: str, dtype: DType, shape: Sequence[int]) -> None:
        """Declare an output."""
        self.nodes.append(OnnxNode("Identity", "", "", (x,), (name,), {}))
        self.outputs.append(OnnxValue(name, CODES[dtype], tuple(shape)))

    def node(self, n: Node, args: Sequence[str | None]) -> str:
        """A node of the table over values that are there.

        Raises:
            UnsupportedError: it is a library call without a record, or a size is open.
        """
        from whet.capture.onnx import called
        from whet.capture.onnx.notation import written
        from whet.capture.onnx.spelled import ROWS

        if n.op == "opaque" and (made := called.written(self, n, args)) is not None:
            return made[0]
        if n.op == "item" and (several := self._several.get(str(args[0]))) is not None:
            return several[int(str(n.attr("index")))]
        if n.op in ("opaque", "item"):
            target = n.attr("target") or n.operands[0].attr("target")
            raise UnsupportedError(
                f"{target} has no record to write it down from", where=n,
                hint="ONNX files hold what the operator table has",
            )  # fmt: skip
        row = ROWS.get(n.op)
        if row is not None:
            try:
                return row(self, n, *args, **dict(n.attrs))
            except Unwritten:
                pass
        instance = n.instance
        out = str(n.attr("out", instance.outs[0]))
        given = [(a, x) for a, x in zip(n.args, args, strict=True) if a is not None]
        operands = {
            name: (str(x), a.dtype) for name, (a, x) in zip(instance.operands, given, strict=True)
        }
        return written(self, instance, out, n.dtype, operands)

    def model(self) -> OnnxModel:
        """What has been written."""
        graph = OnnxGraph(
            "whet", tuple(self.inputs), tuple(self.outputs), dict(self.initializers),
            tuple(self.nodes),
        )  # fmt: skip
        return OnnxModel(graph, {"": OPSET}, "whet")


def write_graph(graph: Graph, data: Mapping[str, Tensor]) -> OnnxModel:
    """A graph as ONNX.

    Args:
        graph: of fixed sizes; its inputs keep their names, its outputs are y0, y1, ….
        data: a tensor for each parameter; the graph's own constants are added.

    Raises:
        UnsupportedError: a library call without a record, an open size, or data on the meta device.
    """
    out = Writer()
    names: dict[Node, str] = {}
    for n in graph.inputs:
        names[n] = out.takes(n.name, n.dtype, sizes(n))
    for n in graph.nodes:
        if n in names:
            continue
        if n.is_leaf:
            t = graph.constants.get(n.name) if n.op == "constant" else data.get(n.name)
            names[n] = out.data(n.name, held(n, t))
            continue
        names[n] = out.node(n, [None if a is None else names[a] for a in n.args])
    for k, n in enumerate(graph.outputs):
        out.gives(f"y{k}", names[n], n.dtype, sizes(n))
    return out.model()


def held(n: Node, t: object) -> Tensor:
    """A leaf's data.

    Raises:
        UnsupportedError: there is none.
    """
    if not isinstance(t, Tensor) or t.is_meta:
        raise UnsupportedError(
            f"{n.name} has no data to write", expected="weights in memory",
            got="the meta device" if isinstance(t, Tensor) else "nothing", where=n,
        )  # fmt: skip
    return t.detach().to(torch_dtype(n.dtype))


__all__ = ["CODES", "OPSET", "Unwritten", "Writer", "held", "sizes", "write_graph"]
