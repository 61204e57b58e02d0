"""Watching a model's parameters, so that no program ever runs on stale copies of them.

    mark := registered objects, addresses, versions, pieces

A program keeps weights folded and packed, and the mark of the tensors that they were made from. A
call compares the mark with the live tensors, all of it in C, some twenty nanoseconds a comparison:

    registered objects   module.weight = …, module.layer = …
    addresses            p.data = …, module.to(…)
    versions             every in-place operation, load_state_dict, running statistics
    pieces               64 bytes from the middle of each tensor, for what leaves no version
                         behind: p.data.mul_(), writes through numpy or shared memory

Only a write through `.data` or numpy that spares the middle of a large tensor slips past; call
`Optimized.refresh()` after one. A mark holds the tensors it is of: their memory is not given to
others meanwhile, and an address names one tensor only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn

from whet.errors import InputError
from whet.run.structure import Structure

_PIECE = 64  # bytes: a cache line
_version = attrgetter("_version")


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """The watched tensors as they were at one moment; see the module's docstring.

    Attributes:
        registers: copies of the module's dictionaries of parameters, buffers and submodules.
        tensors: by name.
        prints: address, version and piece of each by name; None where it is not looked at.
        addresses, versions, bytes: the same in rows, as they are compared.
        versioned, pieces: what versions and bytes are read from.
    """

    registers: list[dict[str, object]]
    tensors: dict[str, Tensor]
    prints: dict[str, tuple[int, int | None, bytes | None]]
    addresses: tuple[int, ...]
    versioned: tuple[Tensor, ...]
    versions: tuple[int, ...]
    pieces: tuple[memoryview, ...]
    bytes: bytes

    def changes(self, later: Mark) -> frozenset[str]:
        """Names of the tensors that are others, or hold something else, in a later mark."""
        return frozenset(
            name for name, tensor in self.tensors.items()
            if later.tensors[name] is not tensor or later.prints[name] != self.prints[name]
        )  # fmt: skip


class Parameters:
    """Live view of the named tensors that a program depends on.

    Args:
        values: name to tensor, for tensors that no module owns (constants).
        module: the module that owns the rest.
        names: which of the module's parameters and buffers are read, by qualified name.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        module: nn.Module | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.values, self.module = dict(values), module
        self.names = tuple(n for n in names if n not in values)
        self.structure = Structure(module) if module is not None else None
        self._owners: list[tuple[Mapping[str, object], str]] = []
        for name in self.names:
            assert module is not None
            path, _, last = name.rpartition(".")
            owner = module.get_submodule(path)
            held = owner._parameters if last in owner._parameters else owner._buffers
            self._owners.append((held, last))
        # A tensor of one element is truly compared by ==, which is not the question here.
        self._small = [
            (name, held, last)
            for name, (held, last) in zip(self.names, self._owners, strict=True)
            if isinstance(tensor := held[last], Tensor) and tensor.numel() == 1
        ]
        self._types = {n: _type(t) for n, t in self.tensors().items()}

    def of(self, module: nn.Module) -> Parameters:
        """The same names in another module."""
        return Parameters(self.values, module, self.names)

    def tensors(self) -> dict[str, Tensor]:
        """Every watched tensor by name, as it is now.

        Raises:
            InputError: one is gone.
        """
        found = dict(self.values)
        for name, (held, last) in zip(self.names, self._owners, strict=True):
            tensor = held.get(last)
            if not isinstance(tensor, Tensor):
                raise InputError(f"parameter {name} is no tensor any more", got=tensor)
            found[name] = tensor
        return found

    def misfit(self) -> str | None:
        """Why no program for these parameters can be for the module as it is now, or None."""
        if self.structure is not None and (reason := self.structure.replaced()):
            return reason
        for name, tensor in self.tensors().items():
            if _type(tensor) != self._types[name]:
                return f"parameter {name}: expected {self._types[name]}, got {_type(tensor)}"
        return None

    def mark(self, copied: Collection[str] | None = None) -> Mark:
        """The tensors as they are now.

        Args:
            copied: names whose values are copied, and may thus become stale; all by default. Of
                the others, which are read where they lie, only the place is watched.
        """
        registers = [] if self.structure is None else self.structure.registers
        known = [dict(d) for d in registers]
        tensors = self.tensors()
        watched = {n: t for n, t in tensors.items() if copied is None or n in copied}
        versioned = {n: t for n, t in watched.items() if not t.is_inference()}  # others count none
        pieces = {n: p for n, t in watched.items() if (p := _piece(t)) is not None}
        prints = {
            n: (
                t.data_ptr(),
                t._version if n in versioned else None,
                bytes(pieces[n]) if n in pieces else None,
            )
            for n, t in tensors.items()
        }
        return Mark(
            known, tensors, prints, tuple(a for a, _, _ in prints.values()),
            tuple(versioned.values()), tuple(v for _, v, _ in prints.values() if v is not None),
            tuple(pieces.values()), b"".join(p for _, _, p in prints.values() if p is not None),
        )  # fmt: skip

    def unchanged(self, mark: Mark) -> bool:
        """Whether everything still is as marked; microseconds, for it precedes every call."""
        try:
            if self.structure is not None and self.structure.registers != mark.registers:
                return False
        except RuntimeError:  # two tensors were compared: one has taken another's place
            return False
        return (
            tuple(map(Tensor.data_ptr, mark.tensors.values())) == mark.addresses
            and tuple(map(_version, mark.versioned)) == mark.versions
            and b"".join(mark.pieces) == mark.bytes
            and all(held[last] is mark.tensors[name] for name, held, last in self._small)
        )


def _type(tensor: Tensor) -> str:
    layout = "" if tensor.layout is torch.strided else f", {tensor.layout}"
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}{layout}{device}"


def _piece(tensor: Tensor) -> memoryview | None:
    """Bytes of the tensor's own memory, from its middle on; of a small one, all."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or not tensor.numel():
        return None
    storage = tensor.untyped_storage()
    size = tensor.element_size()
    first = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    start, stop = (first + sum(n // 2 * step for n, step in steps)) * size, storage.nbytes()
    if tensor.is_contiguous():
        stop = (first + tensor.numel()) * size
        start = max(first * size, min(start, stop - _PIECE))
    count = min(_PIECE, stop - start)
    raw = torch.empty(0, dtype=torch.uint8).set_(storage, start, (count,), (1,))
    return raw.numpy().data
