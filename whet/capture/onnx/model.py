"""An ONNX model as plain data: what the importer works on, free of the onnx package.

    OnnxModel := graph, opsets                     opsets: version by domain
    OnnxGraph := inputs, outputs, initializers, nodes
    OnnxNode  := op, domain, inputs, outputs, attributes
    attribute := int | float | str | bytes | Tensor | OnnxGraph | tuple of these | Unreadable

Values are names; the empty name stands for an input or output that is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from whet.ir.types import DType

# TensorProto.DataType of the ONNX standard: its name, and whet's type where there is one.
ELEMENTS: Mapping[int, tuple[str, DType | None]] = {
    0: ("undefined", None),
    1: ("float", DType.f32),
    2: ("uint8", DType.u8),
    3: ("int8", DType.i8),
    4: ("uint16", None),
    5: ("int16", DType.i16),
    6: ("int32", DType.i32),
    7: ("int64", DType.i64),
    8: ("string", None),
    9: ("bool", DType.bool),
    10: ("float16", DType.f16),
    11: ("double", DType.f64),
    12: ("uint32", None),
    13: ("uint64", None),
    14: ("complex64", DType.c64),
    15: ("complex128", None),
    16: ("bfloat16", DType.bf16),
    17: ("float8e4m3fn", None),
    18: ("float8e4m3fnuz", None),
    19: ("float8e5m2", None),
    20: ("float8e5m2fnuz", None),
    21: ("uint4", None),
    22: ("int4", None),
    23: ("float4e2m1", None),
    24: ("float8e8m0", None),
    25: ("uint2", None),
    26: ("int2", None),
}


def element_name(code: int) -> str:
    """ONNX's name of an element type."""
    return ELEMENTS.get(code, (f"element type {code}", None))[0]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something in the file that whet has no data type for; an error where it is needed."""

    reason: str


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """A graph's input or output.

    Attributes:
        element: code of the element type in `ELEMENTS`; 0 where it is not stated.
        shape: sizes, names of sizes, None where a size is unknown; None for an unknown rank.
        kind: "tensor", else what it is instead ("sequence", "optional", "map").
    """

    name: str
    element: int = 0
    shape: tuple[int | str | None, ...] | None = None
    kind: str = "tensor"


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One call of an operator."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object]

    @property
    def key(self) -> str:
        """The operator with its domain, which for ONNX's own is left out."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    def __str__(self) -> str:
        return f"{self.name or self.outputs[0]}: {self.key}({', '.join(self.inputs)})"


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A graph, or the body of a control-flow operator."""

    name: str
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    initializers: Mapping[str, Tensor | Unreadable]
    nodes: tuple[OnnxNode, ...]


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A whole file."""

    graph: OnnxGraph
    opsets: Mapping[str, int]
    source: str
