"""The short way through an optimized module: one call of C that checks everything first.

    quick(tensor, …) -> the module's return value | None, where the long way must be taken

    check := len(dict) is n                    hooks that were added; parameters, submodules
           | dict[key] is object               a module's mode; registered parameters, submodules
           | data pointer of a tensor is p     p.data = …
           | version of a tensor is n          in-place operations
           | bytes at an address are …         writes that leave no version behind

These are the checks of `whet.run.structure` and `whet.run.parameters`, laid out as a table. Where
one fails nothing is said: the long way through `Optimized.forward` finds the reason, derives anew
what changed, and a new table is made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from torch import nn

from whet.run.calling import Bound, Memory, capsule_of, function
from whet.run.parameters import Mark, Parameters

SIZE, ITEM, DATA, VERSION, BYTES = range(5)
LIST, TUPLE, ONE = range(3)
Row = tuple[int, int, int, int, int]


class _Check(ctypes.Structure):
    _fields_ = (
        ("what", ctypes.c_int), ("of", ctypes.c_void_p), ("key", ctypes.c_void_p),
        ("is_", ctypes.c_uint64), ("count", ctypes.c_uint64),
    )  # fmt: skip


class _Quick(ctypes.Structure):
    _fields_ = (
        ("program", ctypes.c_void_p), ("checks", ctypes.c_int64), ("check", ctypes.c_void_p),
        ("result", ctypes.c_int), ("calls", ctypes.c_int64),
    )  # fmt: skip


class Quick:
    """A bound program behind its checks.

    Args:
        bound: the program over the constants that belong to `mark`.
        mark: the parameters as they were then.
        parameters: of the module that it was made for.
        module: what is called; hooks on it are for the long way.
        result: what the call returns: a LIST of results, a TUPLE of them, the only ONE.

    Attributes:
        bound: as given: the table is for it alone.
        call: takes the inputs, positional, and returns the results, or None.
    """

    def __init__(
        self, bound: Bound, mark: Mark, parameters: Parameters, module: nn.Module, result: int
    ) -> None:
        memory = Memory()
        memory.held += [bound.call, mark, parameters]
        rows = [*_structure(parameters, module, memory), *_values(mark, memory)]
        table = (_Check * max(1, len(rows)))(*(_Check(*row) for row in rows))
        self._quick = memory.put(_Quick(bound.program, len(rows), memory.put(table), result, 0))
        self.bound = bound
        capsule = capsule_of(self._quick, None)
        self.call = function(bound.library, "whet_quick", capsule, memory)

    @property
    def calls(self) -> int:
        """How often it was called and took the short way."""
        return int(_Quick.from_address(self._quick).calls)


def _structure(parameters: Parameters, module: nn.Module, memory: Memory) -> Iterator[Row]:
    """Modes, hooks, registered objects."""
    hooks: list[Any] = [
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
        module._backward_pre_hooks, *_GLOBAL,
    ]  # fmt: skip
    structure = parameters.structure
    if structure is not None:
        hooks += structure.hooks
        for state in structure.states:
            yield _item(state, "training", memory)
        for register in structure.registers:
            yield SIZE, id(register), 0, len(register), 0
            for key in register:
                yield _item(register, key, memory)
        memory.held += [structure.states, structure.registers]
    memory.held.append(hooks)
    for d in hooks:
        yield SIZE, id(d), 0, len(d), 0


_names = nn.modules.module
_GLOBAL = (
    _names._global_forward_hooks, _names._global_forward_pre_hooks,
    _names._global_backward_hooks, _names._global_backward_pre_hooks,
)  # fmt: skip


def _item(held: Any, key: str, memory: Memory) -> Row:
    memory.held += [key, held[key]]
    return ITEM, id(held), id(key), id(held[key]), 0


def _values(mark: Mark, memory: Memory) -> Iterator[Row]:
    """Where parameters lie, and what is in them."""
    for tensor, address in zip(mark.tensors.values(), mark.addresses, strict=True):
        yield DATA, id(tensor), 0, address, 0
    for tensor, version in zip(mark.versioned, mark.versions, strict=True):
        yield VERSION, id(tensor), 0, version, 0
    place = memory.put(ctypes.create_string_buffer(mark.bytes, max(1, len(mark.bytes))))
    for piece in mark.pieces:
        memory.held.append(piece)
        live = ctypes.addressof((ctypes.c_char * len(piece)).from_buffer(piece))
        yield BYTES, live, 0, place, len(piece)
        place += len(piece)
