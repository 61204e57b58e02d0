"""One ONNX node on its way into the table: what handlers are given and build with.

    handler(call, input, …, attribute=…, …) -> Node | None | a list of these, one an output

Inputs come by position, None for one left out; attributes by name, so that one that a handler does
not know is never overlooked. A handler sees the newest form of its operator: what older versions
had as attributes, `MOVED` turns into inputs. Where a handler has no way into the table it raises
`NoMapping` with the reason; the operator's definition in the standard is tried then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from whet.backend.library import Operand, write_call
from whet.capture.aten.call import NoMapping, cast, expand, number, permute, reshape
from whet.capture.onnx.model import ELEMENTS, OnnxGraph, OnnxNode, element_name
from whet.ir.graph import Node, apply, item, opaque
from whet.ir.types import DType, TensorType

Value = Node | None | list["Value"]
Handler = Callable[..., Value]

ROWS: dict[str, Handler] = {}

# Attributes that a later version made inputs: (attribute, place among the inputs).
MOVED: Mapping[str, tuple[tuple[str, int], ...]] = {
    "Clip": (("min", 1), ("max", 2)),
    "Dropout": (("ratio", 1),),
    "Pad": (("pads", 1), ("value", 2)),
    "Reshape": (("shape", 1),),
    "Slice": (("starts", 1), ("ends", 2), ("axes", 3)),
    "Split": (("split", 1),),
    "Squeeze": (("axes", 1),),
    "TopK": (("k", 1),),
    "Unsqueeze": (("axes", 1),),
    "Upsample": (("scales", 1),),
} | {f"Reduce{name}": (("axes", 1),) for name in
     "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()}  # fmt: skip
# Attributes that say nothing about the values.
IGNORED: Mapping[str, frozenset[str]] = {
    "BatchNormalization": frozenset({"momentum", "spatial"}),
    "Dropout": frozenset({"seed"}),
    "Cast": frozenset({"saturate", "round_mode"}),
    "CastLike": frozenset({"saturate", "round_mode"}),
    "LayerNormalization": frozenset({"stash_type"}),
    "GroupNormalization": frozenset({"stash_type"}),
    "MaxPool": frozenset({"storage_order"}),
    "Attention": frozenset({"softmax_precision"}),
}


F = TypeVar("F", bound=Handler)


def onnx(*names: str) -> Callable[[F], F]:
    """Register a handler for operators: "Relu", or "com.microsoft.Gelu" of another domain."""

    def register(handler: F) -> F:
        ROWS.update(dict.fromkeys(names, handler))
        return handler

    return register


class Walk(Protocol):
    """The importer, as far as handlers know it."""

    def constant(self, data: Tensor) -> Node: ...
    def known(self, node: Node) -> Tensor | None: ...
    def blame(self, node: Node) -> str: ...
    def body(self, graph: OnnxGraph, values: Sequence[Value]) -> list[Value]: ...


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler may know besides inputs and attributes.

    Attributes:
        node: the node as the file has it.
        opset: version of its domain.
        used: numbers of the outputs that have a name.
        walk: the importer.
    """

    node: OnnxNode
    opset: int
    used: frozenset[int]
    walk: Walk = field(repr=False)

    def only(self, *numbers: int) -> None:
        """Raises `NoMapping` where an output other than these is asked for."""
        if others := self.used - set(numbers):
            raise NoMapping(f"no record gives output {min(others)}")

    def constant(self, data: Tensor | Iterable[int]) -> Node:
        """A constant leaf; whole numbers become int64."""
        if not isinstance(data, Tensor):
            data = torch.tensor(list(data), dtype=torch.int64)
        return self.walk.constant(data)

    def known(self, node: Node | None) -> Tensor | None:
        """The value of a node that depends on nothing that can change, else None."""
        return None if node is None else self.walk.known(node)

    def static(self, node: Node, what: str) -> Tensor:
        """The value of a node that shapes depend on. Raises `NoMapping` if it is not known."""
        found = self.walk.known(node)
        if found is None:
            raise NoMapping(f"{what} depends on {self.walk.blame(node)}")
        return found

    def ints(self, node: Node, what: str) -> tuple[int, ...]:
        """The same as plain integers."""
        return tuple(int(v) for v in self.static(node, what).reshape(-1).tolist())

    def scalar(self, node: Node, what: str) -> float:
        """The same as one number."""
        data = self.static(node, what)
        if data.numel() != 1:
            raise NoMapping(f"{what} has {data.numel()} elements, not one")
        value = data.reshape(()).item()
        assert isinstance(value, bool | int | float)
        return value


# -- types ---------------------------------------------------------------------------------------
def dtype_of(code: int) -> DType:
    """whet's element type for ONNX's code. Raises `NoMapping` where there is none."""
    dtype = ELEMENTS.get(code, ("", None))[1]
    if dtype is None:
        raise NoMapping(f"whet has no tensors of {element_name(code)}")
    return dtype


def sizes(x: Node) -> tuple[int, ...]:
    """Sizes of a node, which in an imported model are plain numbers."""
    assert all(isinstance(n, int) for n in x.shape)
    return tuple(n for n in x.shape if isinstance(n, int))


def axis_in(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises `NoMapping` where it lies outside."""
    if not -rank <= axis < max(rank, 1):
        raise NoMapping(f"axis {axis} of a tensor of rank {rank}")
    return axis % max(rank, 1)


def axes_in(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, in the order they were given."""
    return tuple(axis_in(a, rank) for a in axes)


# -- nodes ---------------------------------------------------------------------------------------
def literal(value: float, like: Node) -> Node:
    """A number of the element type of `like`."""
    return number(value, like.dtype)


def filled(value: float, dtype: DType, size: Sequence[int]) -> Node:
    """A tensor of one number."""
    plain = float(value) if dtype.is_float else int(value)
    return apply("full", size=tuple(size), value=plain, dtype=dtype)


def aligned(z: Node, rank: int, axis: int) -> Node:
    """A tensor whose first dim stands at `axis` of a tensor of that rank, ready to broadcast."""
    shape = sizes(z)
    return reshape(z, (*shape, *(1,) * (rank - axis - len(shape))))


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape in which shapes meet. Raises `NoMapping` where they do not."""
    try:
        return tuple(torch.broadcast_shapes(*(tuple(s) for s in shapes)))
    except RuntimeError:
        raise NoMapping(f"shapes that do not meet: {', '.join(map(str, shapes))}") from None


def moved(x: Node, source: int, to: int) -> Node:
    """`x` with one dim brought to another place."""
    order = [d for d in range(len(x.shape)) if d != source]
    order.insert(to, source)
    return permute(x, order)


def library(
    target: str, args: Sequence[object], *types: TensorType, **kwargs: object
) -> tuple[Node, ...]:
    """A library call that has no record, and its results; nodes stand among its arguments."""
    operands: list[Node] = []

    def place(value: object) -> object:
        if isinstance(value, Node):
            if value not in operands:
                operands.append(value)
            return Operand(operands.index(value))
        return [place(v) for v in value] if isinstance(value, list | tuple) else value

    statics = write_call(target, [place(a) for a in args], kwargs)
    node = opaque(target, operands, statics, types)
    return (node,) if len(types) == 1 else tuple(item(node, k) for k in range(len(types)))


__all__ = [
    "IGNORED", "MOVED", "ROWS", "Call", "Handler", "NoMapping", "Value", "aligned", "axes_in",
    "axis_in", "broadcast", "cast", "dtype_of", "expand", "filled", "library", "literal", "moved",
    "number", "onnx", "permute", "reshape", "sizes",
]  # fmt: skip
