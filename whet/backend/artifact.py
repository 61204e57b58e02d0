"""A compiled region: one shared library, what may be fed to it, and how to call it.

    folder   := region.json  region-DIGEST.so  [constants.pt]
    region   := Operand* → Operand*, threads, kernels, calls, torch version, processor
    Operand  := dtype shape stride            stride None: oneDNN's own packed layout, opaque

The library is a Python extension whose one function takes tensor handles and gives tensor handles,
without the GIL. Calling it needs libtorch alone, so a region is loaded in milliseconds, without
the compiler that made it (`whet.backend.inductor`, whose import costs two seconds).

The generated code trusts its arguments. A `Runner` therefore checks them: all of them at each call,
or the leading ones only once the trailing ones (packed parameters) are bound.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from whet.errors import InputError, StoreError, UnsupportedError
from whet.machine import Machine

FORMAT = 1
MANIFEST, CONSTANTS = "region.json", "constants.pt"
ENTRY = "inductor_entry_cpp"  # the extension's name and its one function, as Inductor calls both

# The extension reads, while it is imported, where libtorch's "data pointer of a tensor object" is.
_POINTER = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"
_LOADING = threading.Lock()
_C: Any = torch._C


@dataclass(frozen=True, slots=True)
class Operand:
    """What one input or output of a region is: element type, extents, strides in elements."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None

    @classmethod
    def of(cls, tensor: Tensor) -> Operand:
        """The operand that `tensor` is an example of."""
        return cls(
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            None if tensor.is_mkldnn else tensor.stride(),
        )

    def admits(self, other: Operand) -> bool:
        """`other` may stand here: equal, but for strides along axes that have one position."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        if self.stride is None or other.stride is None:
            return self.stride == other.stride
        steps = zip(self.shape, self.stride, other.stride, strict=True)
        return all(size == 1 or a == b for size, a, b in steps)

    def __str__(self) -> str:
        layout = "packed by oneDNN" if self.stride is None else f"strides {list(self.stride)}"
        return f"{self.dtype}{list(self.shape)}, {layout}"


@dataclass(frozen=True, slots=True)
class Region:
    """A compiled graph. Immutable; `save` it, or call what `runner()` gives.

    Attributes:
        key: names graph, operands, threads, torch and processor; equal keys, equal programs.
        inputs, outputs: in the order of the graph's.
        constants: tensors that the graph holds itself.
        library: the shared library.
        threads: how many threads its kernels use.
        kernels: generated kernels, each one parallel region of fused loops between library calls.
        calls: library functions called, and how often in one run.
        torch_version, processor: what it was built for, and runs with.
        seconds: what building took.
    """

    key: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    constants: tuple[Tensor, ...]
    library: bytes
    threads: int
    kernels: int
    calls: Mapping[str, int]
    torch_version: str
    processor: str
    seconds: float

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the region into `folder`, the manifest last: a part is never taken for the whole.

        Raises:
            StoreError: the folder cannot be written.
        """
        place = Path(folder)
        manifest = {
            "format": FORMAT,
            "key": self.key,
            "inputs": [asdict(x) for x in self.inputs],
            "outputs": [asdict(x) for x in self.outputs],
            "constants": len(self.constants),
            "library": hashlib.sha256(self.library).hexdigest(),
            "threads": self.threads,
            "kernels": self.kernels,
            "calls": dict(self.calls),
            "torch": self.torch_version,
            "processor": self.processor,
            "seconds": self.seconds,
        }
        try:
            place.mkdir(parents=True, exist_ok=True)
            _replace(place / _library_name(str(manifest["library"])), self.library)
            if self.constants:
                with tempfile.NamedTemporaryFile(dir=place, delete=False) as file:
                    torch.save(list(self.constants), file)
                os.replace(file.name, place / CONSTANTS)
            _replace(place / MANIFEST, json.dumps(manifest, indent=1).encode())
        except OSError as error:
            raise StoreError(
                "the compiled region cannot be saved",
                got=error,
                where=place,
                hint="choose a folder that can be written",
            ) from error

    def runner(self) -> Runner:
        """What runs it, by way of a folder that is gone again when this returns."""
        with tempfile.TemporaryDirectory(prefix="whet-region-") as folder:
            self.save(folder)
            return load_region(folder)


class Runner:
    """A loaded region: inputs in the graph's order in, a list of new tensors out.

    Calls may overlap in time: the generated code holds no state. Inputs are read only.
    """

    __slots__ = ("_constants", "_entry", "_inputs", "key")

    def __init__(
        self,
        key: str,
        inputs: Sequence[Operand],
        constants: Sequence[Tensor],
        entry: Callable[[list[object]], list[object]],
    ) -> None:
        self.key = key
        self._inputs = tuple((x, _dtype(x.dtype), torch.Size(x.shape)) for x in inputs)
        self._constants = tuple(constants)
        self._entry = entry

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs the region.

        Raises:
            InputError: an input is not what the region was compiled for; it was not run.
        """
        if len(inputs) != len(self._inputs):
            raise self._wrong_number(len(inputs))
        self._check(inputs, 0)
        return self._run([*inputs, *self._constants])

    def bind(self, tail: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """The region as a function of its leading inputs, the trailing ones checked and held here.

        Raises:
            InputError: one of `tail` is not what the region was compiled for.
        """
        lead = len(self._inputs) - len(tail)
        if lead < 0:
            raise self._wrong_number(len(tail))
        self._check(tail, lead)
        held = (*tail, *self._constants)

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            if len(inputs) != lead:
                raise self._wrong_number(len(inputs) + len(tail))
            self._check(inputs, 0)
            return self._run([*inputs, *held])

        return run

    def _check(self, tensors: Sequence[Tensor], first: int) -> None:
        for k, tensor in enumerate(tensors, first):
            operand, dtype, shape = self._inputs[k]
            if tensor.dtype is dtype and tensor.shape == shape and tensor.device.type == "cpu":
                if operand.stride is None and tensor.is_mkldnn:
                    continue
                if not tensor.is_mkldnn and tensor.stride() == operand.stride:
                    continue
            if tensor.device.type != "cpu" or not operand.admits(Operand.of(tensor)):
                raise InputError(
                    f"input {k} of a compiled region is not what it was compiled for",
                    expected=f"{operand}, on cpu",
                    got=f"{Operand.of(tensor)}, on {tensor.device}",
                    hint="make it contiguous, or run the original for inputs of another kind",
                )

    def _run(self, tensors: list[Tensor]) -> list[Tensor]:
        if torch.is_grad_enabled():  # library calls with out= refuse to run while recording
            with torch.no_grad():
                return self._run(tensors)
        handles = _C._aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)
        outputs = self._entry(handles)  # owns the handles from here on, and lets the GIL go
        return cast(list[Tensor], _C._aoti.alloc_tensors_by_stealing_from_void_ptrs(outputs))

    def _wrong_number(self, got: int) -> InputError:
        return InputError(
            "a compiled region was given the wrong number of inputs",
            expected=len(self._inputs),
            got=got,
        )


def load_region(folder: str | os.PathLike[str]) -> Runner:
    """Loads what `Region.save` wrote.

    Raises:
        StoreError: the folder holds no region, or a damaged one.
        UnsupportedError: it was built for another torch or another processor.
    """
    place = Path(folder)
    try:
        manifest = json.loads((place / MANIFEST).read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise StoreError(
                "a compiled region of another format",
                expected=FORMAT,
                got=manifest["format"],
                where=place,
                hint="optimize again with this version of whet",
            )
        _check_target(manifest["torch"], manifest["processor"], place)
        library = place / _library_name(manifest["library"])
        if hashlib.sha256(library.read_bytes()).hexdigest() != manifest["library"]:
            raise ValueError(f"{library.name} does not have the digest of its name")
        inputs = [_operand(x) for x in manifest["inputs"]]
        constants: list[Tensor] = []
        if manifest["constants"]:
            constants = torch.load(place / CONSTANTS, weights_only=True)
        return Runner(manifest["key"], inputs, constants, _import(library, manifest["library"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise StoreError(
            "the compiled region cannot be loaded",
            expected=f"{MANIFEST} and the library it names",
            got=f"{type(error).__name__}: {error}",
            where=place,
            hint="optimize again: it is compiled anew",
        ) from error


def this_processor() -> str:
    """The processor that code compiled here runs on: machine code is made for this model alone."""
    machine = Machine.detect()
    return " ".join((machine.processor, *machine.isa))


def _check_target(version: str, processor: str, place: Path) -> None:
    expected, got = (version, processor), (torch.__version__, this_processor())
    if expected != got:
        raise UnsupportedError(
            "a compiled region made for another torch or another processor",
            expected=f"torch {expected[0]}, {expected[1]}",
            got=f"torch {got[0]}, {got[1]}",
            where=place,
            hint="optimize again on this machine",
        )


def _import(library: Path, digest: str) -> Callable[[list[object]], list[object]]:
    """The library's function. The name holds the digest: Python keeps extensions by their names."""
    name = f"whet_{digest[:16]}.{ENTRY}"
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_file_location(name, library, loader=loader)
    assert spec is not None  # None is for files without a loader
    with _LOADING:
        before = os.environ.get(_POINTER)
        pointer = _C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr
        os.environ[_POINTER] = str(pointer)
        try:
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
        finally:
            if before is None:
                del os.environ[_POINTER]
            else:
                os.environ[_POINTER] = before
    return cast(Callable[[list[object]], list[object]], getattr(module, ENTRY))


def _operand(x: Mapping[str, Any]) -> Operand:
    stride = None if x["stride"] is None else tuple(x["stride"])
    return Operand(x["dtype"], tuple(x["shape"]), stride)


def _dtype(name: str) -> torch.dtype:
    return cast(torch.dtype, getattr(torch, name))


def _library_name(digest: str) -> str:
    return f"region-{digest[:16]}.so"


def _replace(file: Path, data: bytes) -> None:
    """Writes `file` at once: a library that is mapped somewhere is never written into."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
        temporary.write(data)
    os.replace(temporary.name, file)
