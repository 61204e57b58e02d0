"""Calling a native program: the way from tensors into it, laid once and then taken without checks.

    Runner.bind : constants → Bound                Bound : inputs → new tensors

`call.c`, linked into every program, does the work: it holds each argument against what the program
is for, finds an arena, makes the outputs and calls the entry. All it is told stands in the
structures below. Constants are held by the call itself, each through a handle of its own, so a call
that is under way outlives a change of parameters.
"""

from __future__ import annotations

import ctypes
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from whet.backend.piece import dense
from whet.errors import InputError, UnsupportedError, WhetError
from whet.ir.types import DType
from whet.run.entry import TYPES
from whet.run.native import NAME, Kind, Native, View, load_native

_C: Any = torch._C


class _Kind(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int64), ("rank", ctypes.c_int64), ("large", ctypes.c_int64),
        ("sizes", ctypes.c_void_p), ("strides", ctypes.c_void_p),
    )  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_void_p), ("close", ctypes.c_void_p),
        ("inputs", ctypes.c_int64), ("outputs", ctypes.c_int64),
        ("in_", ctypes.c_void_p), ("out", ctypes.c_void_p),
        ("constants", ctypes.c_void_p), ("constant_handles", ctypes.c_int64),
        ("handles", ctypes.c_void_p), ("arena", ctypes.c_int64),
        ("tensor", ctypes.c_void_p), ("body", ctypes.c_int64), ("keys", ctypes.c_int64),
        ("plain", ctypes.c_uint64), ("inference", ctypes.c_uint64),
        ("storage", ctypes.c_int64), ("holders", ctypes.c_int64), ("kept", ctypes.c_void_p),
        ("waiting", ctypes.c_int64), ("arenas", ctypes.c_void_p * 64),
    )  # fmt: skip


class _Method(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p), ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    )  # fmt: skip


HUGE = 2 << 20  # bytes of a huge page
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # Linux's names; a system that has not got them refuses
LARGE = 1 << 20  # bytes of an output from which on its memory is used again
_FASTCALL = 0x80
_WHET = b"whet"  # the capsules' name; a capsule keeps the address alone


class Memory:
    """What C points to, held as long as needed.

    Structures are copied into byte arrays: the collector of cycles takes memory away from ctypes'
    own objects while others in the same cycle still have a use for it.
    """

    def __init__(self) -> None:
        self.held: list[object] = []

    def put(self, data: ctypes.Structure | ctypes.Array[Any]) -> int:
        """The address of a copy that stays."""
        copy = bytearray(data)
        self.held.append(copy)
        return ctypes.addressof((ctypes.c_char * len(copy)).from_buffer(copy))


@dataclass(frozen=True, slots=True)
class _Offsets:
    """Where this build of torch keeps what the call looks at; see `_offsets`."""

    body: int
    keys: int
    plain: int
    inference: int
    storage: int
    holders: int


@cache
def _offsets() -> _Offsets:
    """Found by looking for known values in tensors at hand.

    Raises:
        UnsupportedError: they are not where they could be expected.
    """
    with torch.inference_mode(False):
        plain = torch.empty(3)
        turned = torch._neg_view(plain)
    with torch.inference_mode():
        inference = torch.empty(3)

    def words(address: int, count: int) -> list[int]:
        return list((ctypes.c_uint64 * count).from_address(address))

    def keys(t: Tensor) -> int:
        return int(_C._dispatch_keys(t).raw_repr())

    tensors = (plain, turned, inference)
    bodies = [
        words(id(t), 4).index(t._cdata) if t._cdata in words(id(t), 4) else 0 for t in tensors
    ]
    found = [words(t._cdata, 24) for t in tensors]
    places = [
        k for k in range(24)
        if all(ws[k] == keys(t) for ws, t in zip(found, tensors, strict=True))
    ]  # fmt: skip
    if not bodies[0] or len(set(bodies)) != 1 or len(places) != 1:
        raise UnsupportedError(
            "this build of torch lays out its tensors in another way",
            expected="a tensor and its dispatch keys where torch 2.13 has them",
            got=f"torch {torch.__version__}",
            hint="programs run through Python instead",
        )
    return _Offsets(8 * bodies[0], 8 * places[0], keys(plain), keys(inference), *_storage())


def _storage() -> tuple[int, int]:
    """Where a tensor has its storage's address, and where that counts those that hold it; 0 where
    that cannot be told."""
    t, other = torch.empty(3), torch.empty(3)
    views = [t.view(-1) for _ in range(4)]
    place = other.untyped_storage()._cdata
    found = list((ctypes.c_uint64 * 24).from_address(other._cdata))
    if place not in found:
        return 0, 0
    storage = 8 * found.index(place)

    def halves() -> list[int]:
        address = ctypes.c_uint64.from_address(t._cdata + storage).value
        return list((ctypes.c_uint32 * 8).from_address(address))

    many = halves()
    del views
    few = halves()
    counts = [k for k in range(8) if (few[k], many[k]) == (1, 5)]
    return (storage, 4 * counts[0]) if len(counts) == 1 else (0, 0)


class Bound:
    """A native program over its constants: a call takes the inputs and gives new tensors."""

    __slots__ = ("call", "library", "native", "program")

    def __init__(
        self, native: Native, call: Callable[..., Any], library: ctypes.CDLL, program: int
    ) -> None:
        self.native, self.call, self.library, self.program = native, call, library, program

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Raises InputError where an input is not what the program was made for."""
        found = self.call(*inputs)
        if found is not None:
            return cast(list[Tensor], found)
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self(inputs)
        plain = [x.as_subclass(Tensor) for x in inputs]  # parameters among them
        found = self.call(*plain)
        if found is None:
            wanted = ", ".join(f"{k.shape}" for k in self.native.inputs)
            raise InputError(
                "an input of a native program is not what it was made for",
                expected=f"dense tensors on the CPU of shapes {wanted}",
                got=", ".join(f"{x.dtype}{tuple(x.shape)}" for x in inputs),
                hint="make it contiguous, or run the original for inputs of another kind",
            )
        return cast(list[Tensor], found)

    @contextmanager
    def arena(self) -> Iterator[Callable[[Sequence[Tensor], Sequence[Tensor], int | None], float]]:
        """A function that runs the program once, as C would, and says how many seconds it took.

        It takes inputs and outputs, which are not checked, and where the times of single calls go
        (the address of an array of doubles, after its first), or None.
        """
        p = _Program.from_address(self.program)
        library = self.library
        library.whet_arena_new.restype = ctypes.c_void_p
        arena = ctypes.c_void_p(library.whet_arena_new(ctypes.c_int64(p.arena)))
        constants = ctypes.c_void_p(p.constants)
        plain, timed = getattr(library, NAME), getattr(library, f"{NAME}_timed")

        def run(inputs: Sequence[Tensor], outputs: Sequence[Tensor], clock: int | None) -> float:
            given, made = (
                (ctypes.c_void_p * max(1, len(ts)))(*(t.data_ptr() for t in ts))
                for ts in (inputs, outputs)
            )
            start = time.perf_counter()
            if clock is None:
                failed = plain(given, made, constants, arena)
            else:
                failed = timed(given, made, constants, arena, ctypes.c_void_p(clock))
            took = time.perf_counter() - start
            if failed:
                raise WhetError("a native program failed", where=f"its library: {library._name}")
            return took

        try:
            yield run
        finally:
            getattr(library, f"{NAME}_close")(arena)
            library.whet_arena_delete(arena, ctypes.c_int64(p.arena))


class Runner:
    """A loaded native program; `bind` gives it its constants.

    Args:
        native: what it is.
        library: its shared object, loaded.
    """

    def __init__(self, native: Native, library: ctypes.CDLL) -> None:
        self.native, self.library = native, library
        for name in ("whet_call", "whet_program_delete", NAME, f"{NAME}_close"):
            getattr(library, name)  # AttributeError: not ours

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Runner:
        """What `Native.save` wrote; raises what `load_native` does."""
        return cls(*load_native(folder))

    @classmethod
    def of(cls, native: Native) -> Runner:
        """A program that was just built, by way of a folder that is gone again."""
        with tempfile.TemporaryDirectory(prefix="whet-native-") as folder:
            native.save(folder)
            return cls.load(folder)

    def bind(self, derived: Sequence[Tensor]) -> Bound:
        """The program over its constants.

        Raises:
            InputError: a constant is not what the program was made for.
        """
        n, library = self.native, self.library
        if len(derived) != len(n.constants):
            raise InputError(
                "a native program was given the wrong number of constants",
                expected=len(n.constants), got=len(derived),
            )  # fmt: skip
        held = [_seen(t, c) for t, c in zip(derived, n.constants, strict=True)]
        _gathered(held)
        handles = _handles(held)
        table = (ctypes.c_void_p * max(1, len(held)))(
            *(h if c.handle else t.data_ptr()
              for h, t, c in zip(handles, held, n.constants, strict=True))
        )  # fmt: skip
        owned = (ctypes.c_void_p * max(1, len(held)))(*handles)
        offsets = _offsets()
        memory = Memory()
        program = memory.put(_Program(
            _address(library, NAME), _address(library, f"{NAME}_close"),
            len(n.inputs), len(n.outputs), _kinds(n.inputs, memory), _kinds(n.outputs, memory),
            memory.put(table), len(held), memory.put(owned), n.arena,
            id(Tensor), offsets.body, offsets.keys, offsets.plain, offsets.inference,
            offsets.storage, offsets.holders,
            memory.put((ctypes.c_void_p * max(1, len(n.outputs)))()), 0,
        ))  # fmt: skip
        capsule = capsule_of(program, _address(library, "whet_program_delete"))
        call = function(library, "whet_call", capsule, memory)
        return Bound(n, call, library, program)


def function(
    library: ctypes.CDLL, name: str, capsule: object, memory: Memory
) -> Callable[..., Any]:
    """A Python function in C: `name(capsule, arguments)`.

    Args:
        memory: all that C points to. It goes along as the function's module, which a function lets
            go of last, and as a tuple, which the collector of cycles does not empty before.
    """
    name_ = ctypes.create_string_buffer(b"call")
    method = memory.put(_Method(memory.put(name_), _address(library, name), _FASTCALL, None))
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = (ctypes.c_void_p, ctypes.py_object, ctypes.py_object)
    found: Callable[..., Any] = make(method, capsule, (library, *memory.held))
    return found


def _seen(tensor: Tensor, view: View) -> Tensor:
    if tensor.is_mkldnn:
        return tensor
    if not view.handle and not tensor.is_contiguous():
        raise InputError(
            "a parameter lies otherwise in memory", expected="contiguous", got=tensor.stride()
        )
    if view.shape is not None:
        steps = view.strides
        return tensor.reshape(view.shape) if steps is None else tensor.as_strided(view.shape, steps)
    return tensor


def _handles(tensors: Sequence[Tensor]) -> list[int]:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return [get(c, None) for c in _C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))]


def _kinds(kinds: Sequence[Kind], memory: Memory) -> int:
    rows = (_Kind * max(1, len(kinds)))()
    for row, k in zip(rows, kinds, strict=False):
        sizes = (ctypes.c_int64 * max(1, len(k.shape)))(*k.shape)
        strides = (ctypes.c_int64 * max(1, len(k.shape)))(*dense(k.shape))
        row.type, row.rank, row.large = k.type, len(k.shape), _large(k)
        row.sizes, row.strides = memory.put(sizes), memory.put(strides)
    return memory.put(rows)


def _large(k: Kind) -> int:
    """Bytes of a tensor whose memory is worth keeping, and can be told to be free, else 0."""
    (dtype,) = (name for name, number in TYPES.items() if number == k.type)
    size = math.prod(k.shape) * DType[dtype].bits // 8
    return size if size >= LARGE and _offsets().holders else 0


def _gathered(constants: Sequence[Tensor]) -> None:
    """The constants move to huge pages, where the system can do that: a program reads all of them
    at every call, and finding 4 KiB pages takes up to a fifth of the time.

    A huge page holds several small ones, and what else lies between them. Those that a file backs
    stay where they are.
    """
    pages: set[int] = set()
    for t in constants:
        if not t.is_mkldnn and t.nbytes >= LARGE // 4:
            first, last = t.data_ptr() // HUGE, (t.data_ptr() + t.nbytes - 1) // HUGE
            pages.update(range(first, last + 1))
    if not pages:
        return
    advise = ctypes.CDLL(None).madvise
    for start, end in _anonymous():
        inside = [p for p in pages if start <= p * HUGE and (p + 1) * HUGE <= end]
        for page in sorted(inside):
            advise(ctypes.c_void_p(page * HUGE), ctypes.c_size_t(HUGE), _MADV_COLLAPSE)


def _anonymous() -> list[tuple[int, int]]:
    """Where memory lies that no file backs and that may be written: (start, end) of each mapping.

    None where the system has no `/proc`.
    """
    found = []
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                span, mode, _, _, inode, *_ = line.split()
                if mode == "rw-p" and inode == "0":
                    start, _, end = span.partition("-")
                    found.append((int(start, 16), int(end, 16)))
    except OSError:
        pass
    return found


def _address(library: ctypes.CDLL, name: str) -> int:
    found = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert found is not None
    return found


def capsule_of(structure: int, delete: int | None) -> object:
    """A capsule around an address."""
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    found: object = make(structure, _WHET, delete)
    return found
