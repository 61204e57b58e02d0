"""The engine "native": the whole body as one shared object with one entry, called without Python.

    graph, kernels → pieces (whet.backend.cut) → memory plan → C text → Native → Runner → Bound

    folder := native.json  native-DIGEST.so
    Native := library, kinds of inputs and outputs, constants, arena bytes, torch, processor

A `Native` is all that loading needs: no compiler, no graph. `Runner.bind` takes the constants and
gives the call. Constants are held by the call itself, each through a handle of its own, so a call
that is under way outlives a change of parameters.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.artifact import this_processor
from whet.backend.cluster import Cluster
from whet.backend.cut import cut
from whet.backend.link import link
from whet.backend.lowered import Lowered, Step
from whet.backend.packed import Kernel
from whet.backend.piece import Body, Generated, Packed, Value
from whet.errors import InputError, StoreError, UnsupportedError
from whet.ir.graph import Graph, Node
from whet.run.entry import TYPES, Constant, entry
from whet.run.memory import plan

FORMAT = 1
MANIFEST = "native.json"
NAME = "whet_program"
CALL = Path(__file__).with_name("call.c")
_C: Any = torch._C


@dataclass(frozen=True, slots=True)
class Kind:
    """A dense tensor's type, as the call checks it."""

    type: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A constant as the program takes it: its address, or a handle of it in this shape."""

    handle: bool
    shape: tuple[int, ...] | None
    strides: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Native:
    """A compiled body. Immutable; save it, or call what `runner()` gives.

    Attributes:
        library: the shared object.
        inputs, outputs: kinds of tensors, in the graph's order.
        constants: how each derived value is taken, in the order of `Lowered.derived`.
        arena: bytes of working memory for one call.
        peak, bound: bytes that a call needs at most, what libraries hold among it, and what no
            memory plan could go below.
        calls: what each call of the body is, in order: name, operators.
        torch_version, processor: what it was built for, and runs with.
    """

    library: bytes
    inputs: tuple[Kind, ...]
    outputs: tuple[Kind, ...]
    constants: tuple[View, ...]
    arena: int
    peak: int
    bound: int
    calls: tuple[tuple[str, str], ...]
    torch_version: str
    processor: str

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes library and manifest.

        Raises:
            StoreError: the folder cannot be written.
        """
        place = Path(folder)
        digest = hashlib.sha256(self.library).hexdigest()
        manifest = {
            f: getattr(self, f) for f in ("arena", "peak", "bound", "calls")
        } | {
            "format": FORMAT,
            "inputs": [asdict(k) for k in self.inputs],
            "outputs": [asdict(k) for k in self.outputs],
            "constants": [asdict(c) for c in self.constants],
            "library": digest,
            "torch": self.torch_version,
            "processor": self.processor,
        }  # fmt: skip
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / f"native-{digest[:16]}.so").write_bytes(self.library)
            (place / MANIFEST).write_text(json.dumps(manifest, indent=1))
        except OSError as fault:
            raise StoreError("the program cannot be saved", where=place, got=fault) from fault

    def runner(self) -> Runner:
        """What runs it, by way of a folder that is gone again when this returns."""
        with tempfile.TemporaryDirectory(prefix="whet-native-") as folder:
            self.save(folder)
            return load_native(folder)


def load_native(folder: str | os.PathLike[str]) -> Runner:
    """Loads what `Native.save` wrote; needs no compiler.

    Raises:
        StoreError: the folder holds no program, or a damaged one.
        UnsupportedError: it was built for another torch or another processor.
    """
    place = Path(folder)
    try:
        m = json.loads((place / MANIFEST).read_text())
        if m["format"] != FORMAT:
            raise ValueError(f"format {m['format']}, not {FORMAT}")
        built, here = (m["torch"], m["processor"]), (torch.__version__, this_processor())
        if built != here:
            raise UnsupportedError(
                "a native program made for another torch or another processor",
                expected=", ".join(built), got=", ".join(here), where=place,
                hint="optimize again on this machine",
            )  # fmt: skip
        file = place / f"native-{m['library'][:16]}.so"
        library = file.read_bytes()
        if hashlib.sha256(library).hexdigest() != m["library"]:
            raise ValueError(f"{file.name} does not have the digest of its name")
        kinds = [
            tuple(Kind(k["type"], tuple(k["shape"])) for k in m[name])
            for name in ("inputs", "outputs")
        ]
        views = tuple(
            View(c["handle"], _sizes(c["shape"]), _sizes(c["strides"])) for c in m["constants"]
        )
        calls = tuple((a, b) for a, b in m["calls"])
        native = Native(
            library, kinds[0], kinds[1], views, m["arena"], m["peak"], m["bound"], calls, *built
        )
        return Runner(native, ctypes.CDLL(str(file)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise StoreError(
            "the native program cannot be loaded", where=place,
            expected=f"{MANIFEST} and the library it names", got=f"{type(fault).__name__}: {fault}",
            hint="optimize again: it is compiled anew",
        ) from fault  # fmt: skip


def _sizes(found: list[int] | None) -> tuple[int, ...] | None:
    return None if found is None else tuple(found)


# -- building --------------------------------------------------------------------------------------
def native(
    graph: Graph, choose: Callable[[Cluster, list[Kernel]], Kernel]
) -> tuple[Native, Lowered]:
    """A graph as a native program.

    Args:
        graph: over concrete shapes.
        choose: which library kernel runs a cluster.

    Returns:
        The program, and the prologue that derives its constants.

    Raises:
        UnsupportedError: a node has neither loops nor a library call from C, or nothing compiles.
    """
    names: dict[str, str] = {}

    def noted(cluster: Cluster, options: list[Kernel]) -> Kernel:
        kernel = choose(cluster, options)
        names[cluster.key] = kernel.name
        return kernel

    return build(graph, cut(graph, noted), names)


def build(graph: Graph, body: Body, chosen: Mapping[str, str]) -> tuple[Native, Lowered]:
    """Pieces as a native program: memory planned, entry written, all linked into one library."""
    planned = plan(body)
    written = entry(body, planned, NAME)
    units = {"entry": written.text, "call": CALL.read_text()}
    for p in body.pieces:
        if isinstance(p.call, Generated):
            units[p.call.symbol] = p.call.text
    program = Native(
        link(units),
        tuple(_kind(v) for v in body.inputs),
        tuple(_kind(v if isinstance(v, Value) else Value(v.node)) for v in body.results),
        tuple(View(c.handle, c.shape, c.strides) for c in written.constants),
        written.arena, written.arena - planned.arena + planned.peak, planned.bound,
        tuple(_said(p.call.name if not isinstance(p.call, Generated) else "generated", p.nodes)
              for p in body.pieces),
        torch.__version__, this_processor(),
    )  # fmt: skip
    return program, _prologue(graph, body, written.constants, chosen)


def _said(name: str, nodes: Sequence[Node]) -> tuple[str, str]:
    return name, "+".join(n.op for n in nodes) or "copy"


def _kind(v: Value) -> Kind:
    return Kind(TYPES[v.node.dtype.name], v.shape)


def _prologue(
    graph: Graph, body: Body, constants: Sequence[Constant], chosen: Mapping[str, str]
) -> Lowered:
    """Steps that compute the constants from parameters, in the order the program takes them."""
    steps: list[Step] = []
    leaves: dict[str, Node] = {}
    slots: dict[Node, str] = {}
    wanted = {c.packed.node for c in constants}
    below = _below(wanted)
    for k, node in enumerate(graph.nodes):
        if node not in below:
            continue
        slots[node] = f"p{k}"
        if node.is_leaf:
            leaves[slots[node]] = node
        else:
            operands = tuple(None if a is None else slots[a] for a in node.args)
            steps.append(Step(slots[node], aten.bound(node), operands, node, "aten"))
    made: dict[Packed, str] = {}
    derived: list[str] = []
    for c in constants:
        p = c.packed
        if p not in made:
            made[p] = slots[p.node]
            if p.name:
                made[p] = f"w{len(made)}"
                steps.append(Step(made[p], p.transform, (slots[p.node],), p.node, p.name))
        derived.append(made[p])
    counts: dict[str, int] = {}
    for piece in body.pieces:
        name = "generated" if isinstance(piece.call, Generated) else piece.call.name
        counts[name] = counts.get(name, 0) + 1
    inputs = tuple(f"x{k}" for k in range(len(graph.inputs)))
    return Lowered(graph, leaves, tuple(derived), tuple(steps), (), (), counts, chosen, inputs)


def _below(roots: set[Node]) -> set[Node]:
    found, stack = set(roots), list(roots)
    while stack:
        for a in stack.pop().operands:
            if a not in found:
                found.add(a)
                stack.append(a)
    return found


# -- running ---------------------------------------------------------------------------------------
class _Kind(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int64), ("rank", ctypes.c_int64),
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
        ("waiting", ctypes.c_int64), ("arenas", ctypes.c_void_p * 64),
    )  # fmt: skip


class _Method(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    )  # fmt: skip


_FASTCALL = 0x80


@dataclass(frozen=True, slots=True)
class _Offsets:
    """Where this build of torch keeps what the call looks at; see `_offsets`."""

    body: int
    keys: int
    plain: int
    inference: int


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
    return _Offsets(8 * bodies[0], 8 * places[0], keys(plain), keys(inference))


class Bound:
    """A native program over its constants: a call takes the inputs and gives new tensors."""

    __slots__ = ("call", "native")

    def __init__(self, native: Native, call: Callable[..., Any]) -> None:
        self.native, self.call = native, call

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


class Runner:
    """A loaded native program; `bind` gives it its constants."""

    def __init__(self, native: Native, library: ctypes.CDLL) -> None:
        self.native, self.library = native, library
        self._types = [*native.inputs, *native.outputs]
        for name in ("whet_call", "whet_program_delete", NAME, f"{NAME}_close"):
            getattr(library, name)  # AttributeError: not ours

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
        handles = _handles(held)
        table = (ctypes.c_void_p * max(1, len(held)))(
            *(h if c.handle else t.data_ptr()
              for h, t, c in zip(handles, held, n.constants, strict=True))
        )  # fmt: skip
        owned = (ctypes.c_void_p * max(1, len(held)))(*handles)
        offsets = _offsets()
        keep: list[object] = [library, table, owned]
        program = _Program(
            _address(library, NAME), _address(library, f"{NAME}_close"),
            len(n.inputs), len(n.outputs), _kinds(n.inputs, keep), _kinds(n.outputs, keep),
            ctypes.addressof(table), len(held), ctypes.addressof(owned), n.arena,
            id(Tensor), offsets.body, offsets.keys, offsets.plain, offsets.inference, 0,
        )  # fmt: skip
        keep.append(program)
        capsule = _capsule(program, _address(library, "whet_program_delete"))
        method = _Method(b"call", _address(library, "whet_call"), _FASTCALL, None)
        keep.append(method)
        make = ctypes.pythonapi.PyCFunction_NewEx
        make.restype = ctypes.py_object
        make.argtypes = (ctypes.c_void_p, ctypes.py_object, ctypes.py_object)
        # A function holds its module, and lets go of it last: here, of all that C points to.
        return Bound(n, make(ctypes.addressof(method), capsule, keep))


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


def _kinds(kinds: Sequence[Kind], keep: list[object]) -> int:
    rows = (_Kind * max(1, len(kinds)))()
    for row, k in zip(rows, kinds, strict=False):
        sizes = (ctypes.c_int64 * max(1, len(k.shape)))(*k.shape)
        strides = (ctypes.c_int64 * max(1, len(k.shape)))(*_dense(k.shape))
        keep += [sizes, strides]
        row.type, row.rank = k.type, len(k.shape)
        row.sizes, row.strides = ctypes.addressof(sizes), ctypes.addressof(strides)
    keep.append(rows)
    return ctypes.addressof(rows)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(torch.empty(shape, device="meta").stride())


def _address(library: ctypes.CDLL, name: str) -> int:
    found = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert found is not None
    return found


def _capsule(program: _Program, delete: int) -> object:
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return make(ctypes.addressof(program), b"whet", delete)
