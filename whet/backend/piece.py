"""Pieces: the calls that a native program is made of, and the values that flow between them.

    Body    = inputs (Value, …), (Piece, …), results (Value, …), views {Value: (Value, offset)}
    Piece   = nodes, operands ((Value | Packed | None), …), results (Value, …), call
    Value   = node, strides                  a node's value as it lies in memory
    Packed  = node, how                      a constant, transformed ahead of time
    call    = Generated(symbol, text, scratch bytes)
            | Library(name, function, (Argument, …), gives)

A kernel is one C function over pointers, `void SYMBOL(void *const *args, void *scratch)`: operands
in order, then results. A library call is a C function of torch's shim or of MKL, its arguments
spelled out; where it `gives` its results, they come as new tensors, else they are written in place.
Equal values share memory. A view lies within another value: `views` says where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whet.backend.transform import How
from whet.ir.graph import Node

Strides = tuple[int, ...]


def dense(shape: tuple[int, ...]) -> Strides:
    """Row-major strides, in elements."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def channels_last(shape: tuple[int, ...]) -> Strides:
    """Strides of a batch of images whose channels lie next to each other."""
    strides = [0] * len(shape)
    step = 1
    for axis in (1, *reversed(range(2, len(shape))), 0):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


@dataclass(frozen=True, slots=True)
class Value:
    """A node's value in memory.

    Attributes:
        node: whose value.
        strides: in elements; row-major unless given.
        bytes: from its first byte to its last.
    """

    node: Node
    strides: Strides = ()

    def __post_init__(self) -> None:
        if not self.strides:
            object.__setattr__(self, "strides", dense(self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(str(n)) for n in self.node.shape)

    @property
    def is_dense(self) -> bool:
        return same_strides(self.shape, self.strides, dense(self.shape))

    @property
    def bytes(self) -> int:
        return extent(self.shape, self.strides) * (self.node.dtype.bits // 8)


def extent(shape: tuple[int, ...], strides: Strides) -> int:
    """Elements from the first to the last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def same_strides(shape: tuple[int, ...], a: Strides, b: Strides) -> bool:
    """Equal, but for strides along axes with one position."""
    return 0 in shape or all(n == 1 or x == y for n, x, y in zip(shape, a, b, strict=True))


def has_channels_last(shape: tuple[int, ...], strides: Strides) -> bool:
    """Whether an image's channels lie together, and images, rows and columns in this order around
    them: in memory of its own, or as a part of a larger image's channels."""
    order = (0, *range(2, len(shape)), 1)
    lie = [strides[k] for k in order if shape[k] > 1]
    return lie == sorted(lie, reverse=True) and (shape[1] == 1 or strides[1] == 1)


@dataclass(frozen=True, slots=True)
class Packed:
    """A constant operand, transformed ahead of time.

    Attributes:
        node: the graph's value, which depends on no input.
        how: the transformation; see `whet.backend.transform`.
    """

    node: Node
    how: How = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """A kernel in C.

    Attributes:
        symbol: the function that `text` defines; everything else in it is static.
        text: a whole compilation unit.
        scratch: bytes that a call needs, aligned to 64.
    """

    symbol: str
    text: str
    scratch: int = 0


@dataclass(frozen=True, slots=True)
class Handle:
    """A tensor argument: slot `index` of operands and results, as torch's library sees it.

    Attributes:
        optional: the function takes a pointer to the handle, null where the operand is absent.
        shape, strides: how the memory is seen, where that is not as the value's node has it.
        packed: the tensor itself goes along, whatever it is: its memory may not be ours to look at.
    """

    index: int
    optional: bool = False
    shape: tuple[int, ...] | None = None
    strides: Strides | None = None
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Pointer:
    """The address of slot `index` of operands and results."""

    index: int


Argument = Handle | Pointer | str  # a string is C as it stands


@dataclass(frozen=True, slots=True)
class Library:
    """A call of a library's C function.

    Attributes:
        name: library and variant, as reports call it.
        function: the C function; declared in `whet.backend.shim` unless `source` defines it.
        arguments: in order.
        gives: results come back as new tensors behind the arguments; how many there are, of which
            the first ones are the piece's. 0 where results are written in place.
        before: C statements that run first, with `p0`, `p1`, … for the slots' addresses.
        source: the function itself, where it is no library's; static.
    """

    name: str
    function: str
    arguments: tuple[Argument, ...]
    gives: int = 0
    before: str = ""
    source: str = ""


Call = Generated | Library


@dataclass(frozen=True, slots=True)
class Piece:
    """One call of the program.

    Attributes:
        nodes: what it computes, in order; for reports and profiles.
        operands: in the order of the call's slots; None where an optional one is absent.
        results: slots behind the operands'.
        call: what is called.
        inplace: (operand, result) pairs that may share memory where the operand dies here.
    """

    nodes: tuple[Node, ...]
    operands: tuple[Value | Packed | None, ...]
    results: tuple[Value, ...]
    call: Call
    inplace: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """A graph's body as calls; see the module's docstring.

    Attributes:
        inputs: of the graph, row-major.
        pieces: in order of execution.
        results: of the graph, row-major, updates among them; constants may be there as well.
        views: values that lie in another value, at an offset in bytes.
    """

    inputs: tuple[Value, ...]
    pieces: tuple[Piece, ...]
    results: tuple[Value | Packed, ...]
    views: Mapping[Value, tuple[Value, int]] = field(default_factory=dict)
