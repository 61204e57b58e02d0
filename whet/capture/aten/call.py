"""One call of the library on its way into the table: what handlers are given and build with.

    handler(call, x, …schema arguments by name…) -> Node | None | a list of these

A tensor argument arrives as a node, everything else as a plain value; `self` and `input` are called
`x`. What only places memory (layout, device, memory format) is taken out before. A handler that has
no record for what is asked raises `NoMapping` with the reason: the call then stays whole, as an
opaque node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from whet.ir.graph import Node, apply, full
from whet.ir.types import DType, TensorType

Scalar = bool | int | float
Value = Node | None | Sequence["Node | None"]
Handler = Callable[..., Value]
F = TypeVar("F", bound=Handler)


class NoMapping(Exception):
    """The table has no record for this call; the reason is for the list of opaque calls."""


class Refused(Exception):
    """A call that means something only for memory as it lies, which a graph does not know."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler may know besides the arguments.

    Attributes:
        target: the library's name, "aten.add.Tensor".
        types: types of the results, None for results that are no tensors.
        used: numbers of the results that anybody reads.
        constant: makes a constant leaf of a tensor.
        data: the tensor behind a constant leaf, None for other nodes.
        dense: whether the first operand fills its memory in order.
        draw: makes a leaf of flags, each set with a probability; None where numbers that are drawn
            stay the call's own.
    """

    target: str
    types: tuple[TensorType | None, ...]
    used: frozenset[int]
    constant: Callable[[torch.Tensor], Node]
    data: Callable[[Node], torch.Tensor | None] = lambda _: None
    dense: bool = False
    draw: Callable[[tuple[int, ...], float], Node] | None = None

    @property
    def type(self) -> TensorType:
        """Type of the first result."""
        assert self.types[0] is not None
        return self.types[0]

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return ints(self.type.shape)

    def only(self, *numbers: int) -> None:
        """Raises `NoMapping` where a result other than these is read."""
        if others := self.used - set(numbers):
            raise NoMapping(f"no record gives result {min(others)}")


ATEN: dict[str, Handler] = {}


def aten(*names: str) -> Callable[[F], F]:
    """Register a handler for overloads ("add.Tensor") or whole families of overloads ("add")."""

    def register(handler: F) -> F:
        ATEN.update(dict.fromkeys(names, handler))
        return handler

    return register


def handler_of(target: str) -> Handler | None:
    """The handler of "aten.add.Tensor": its own, else its family's."""
    namespace, _, name = target.partition(".")
    if namespace != "aten":
        name = target
    return ATEN.get(name) or ATEN.get(name.rpartition(".")[0])


# -- numbers and types ---------------------------------------------------------------------------
def dtype_of(dtype: torch.dtype) -> DType | None:
    """whet's name of an element type, None where it has none."""
    name = str(dtype).removeprefix("torch.")
    return DType(name) if name in DType._value2member_map_ else None


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's name of an element type."""
    found = getattr(torch, dtype.value)
    assert isinstance(found, torch.dtype)
    return found


def ints(sizes: Sequence[object]) -> tuple[int, ...]:
    """Sizes of an imported tensor, which are always plain numbers."""
    assert all(isinstance(n, int) for n in sizes)
    return tuple(n for n in sizes if isinstance(n, int))


def tuple_of(value: object, rank: int) -> tuple[int, ...]:
    """The library's one-for-all abbreviation of per-dim values, written out."""
    values = [value] if isinstance(value, int) else value
    assert isinstance(values, (list, tuple))
    return tuple(values) * rank if len(values) == 1 else tuple(values)


def axis_of(dim: int, rank: int) -> int:
    """A dim counted from the front."""
    return dim % max(rank, 1)


def axes_of(dims: object, rank: int) -> tuple[int, ...]:
    """Dims counted from the front, in order; all of them for None or none."""
    if dims is None or dims == []:
        return tuple(range(rank))
    values = [dims] if isinstance(dims, int) else dims
    assert isinstance(values, (list, tuple))
    return tuple(sorted(axis_of(d, rank) for d in values)) if rank else ()


# -- nodes ---------------------------------------------------------------------------------------
def number(value: Scalar, dtype: DType) -> Node:
    """A literal of an element type, spelled one way only."""
    if dtype.is_float or dtype is DType.c64 or (isinstance(value, float) and math.isinf(value)):
        return full(float(value), dtype)
    return full(int(bool(value)) if dtype is DType.bool else int(value), dtype)


def cast(x: Node, dtype: DType) -> Node:
    """`x` in another element type; a truth value is what differs from zero."""
    if x.dtype is dtype:
        return x
    if dtype is DType.bool:
        return apply("ne", x, number(0, x.dtype))
    return apply("cast", x, dtype=dtype)


def meet(*values: Node | Scalar) -> DType:
    """The element type in which the library lets these meet."""
    dtype: torch.dtype | None = None
    stand_ins: list[torch.Tensor | Scalar] = [
        torch.empty((1,) * min(len(v.shape), 1), dtype=torch_dtype(v.dtype), device="meta")
        if isinstance(v, Node)
        else v
        for v in values
    ]
    first, *rest = stand_ins
    if not rest:
        rest = [first]
    for other in rest:
        dtype = torch.result_type(first, other)
        first = torch.empty((1,), dtype=dtype, device="meta")
    found = dtype_of(dtype) if dtype is not None else None
    if found is None:
        raise NoMapping(f"operands meet in {dtype}")
    return found


def operand(value: Node | Scalar, dtype: DType) -> Node:
    """A tensor or a number as an operand of the given element type."""
    return cast(value, dtype) if isinstance(value, Node) else number(value, dtype)


def reshape(x: Node, size: Sequence[int]) -> Node:
    """`x` with another shape of as many elements."""
    return x if x.shape == tuple(size) else apply("reshape", x, size=tuple(size))


def flat(x: Node) -> Node:
    """All elements in one row."""
    return reshape(x, (math.prod(ints(x.shape)),))


def permute(x: Node, dims: Sequence[int]) -> Node:
    """`x` with its dims in another order."""
    return x if list(dims) == sorted(dims) else apply("permute", x, dims=tuple(dims))


def expand(x: Node, size: Sequence[int]) -> Node:
    """`x` repeated along its dims of 1, and along new ones in front."""
    return x if x.shape == tuple(size) else apply("expand", x, size=tuple(size))


def cut(x: Node, axis: int, start: int, stop: int, step: int = 1) -> Node:
    """Every `step`-th of `start` up to `stop` along a dim; bounds already normal."""
    if (start, stop, step) == (0, x.shape[axis], 1):
        return x
    return apply("slice", x, axis=axis, start=start, stop=stop, step=step)


def keep(x: Node, dims: Sequence[int], keepdim: bool, shape: Sequence[int]) -> Node:
    """What a reduction over `dims` of something shaped `shape` left, its dims kept as 1 or not."""
    return reshape(x, [1 if d in dims else n for d, n in enumerate(shape)]) if keepdim else x
