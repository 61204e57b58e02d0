"""Generated Triton, run or compiled: the one file that imports triton.

    Module → load → Loaded, called with tensors        on a device, or in the interpreter
           → compiled → Usage of each program          cubins for a device that need not be there

With TRITON_INTERPRET=1 in the environment before triton is first imported, programs run in numpy on
CPU tensors (float16, float32 and whole numbers: its bfloat16 is wrong). Compiling needs no device.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import linecache
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from whet.backend.aten import torch_dtype
from whet.backend.triton_text import Module, Program, signature
from whet.errors import UnsupportedError
from whet.kernel.loops import Buffer

WARP = 32


def available() -> bool:
    """Is triton installed?"""
    return importlib.util.find_spec("triton") is not None


def interprets() -> bool:
    """Does triton run programs in numpy here?"""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _triton() -> Any:
    try:
        import triton
    except ImportError:
        raise UnsupportedError(
            "kernels for NVIDIA GPUs need triton",
            expected="triton 3.6 or newer",
            got="no such package",
            hint="pip install triton",
        ) from None
    return triton


@functools.cache
def _folder() -> Path:
    """Where this process keeps generated modules: Triton reads its functions' source again."""
    return Path(tempfile.mkdtemp(prefix="whet-triton-"))


@functools.cache
def _imported(text: str) -> ModuleType:
    """A generated module, once for each text."""
    _triton()
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    path = _folder() / f"whet_{digest}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = made
    linecache.checkcache(str(path))
    spec.loader.exec_module(made)
    return made


class Loaded:
    """A module's programs, callable with tensors; keeps one workspace. Not for two streams at once.

    Args:
        m: the module.
        device: where its workspace is.
    """

    def __init__(self, m: Module, device: torch.device | str = "cpu") -> None:
        self.module = m
        made = _imported(m.text)
        self.workspace = {b.name: empty(b, device) for b in m.workspace}
        self.outer = [b.name for b in m.buffers if not b.is_scratch]
        options: dict[str, int] = {"num_warps": m.launch.warps, "num_stages": m.launch.stages}
        self.programs = [(getattr(made, p.name), (p.grid,), p.buffers) for p in m.programs]
        self.options = {} if interprets() else options

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        """Inputs in order, then outputs: first elements of memory that is laid out as said."""
        at = {**self.workspace, **dict(zip(self.outer, tensors, strict=True))}
        for function, grid, buffers in self.programs:
            function[grid](*(at[name] for name in buffers), **self.options)


def empty(b: Buffer, device: torch.device | str) -> Tensor:
    """Memory for a buffer."""
    return torch.empty(max(b.layout.elements, 1), dtype=torch_dtype(b.dtype), device=device)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a compiled program takes.

    Attributes:
        shared: bytes of shared memory.
        registers: of a thread.
        spilled: bytes of a thread's local memory that registers are spilled to.
        cubin: the machine code.
    """

    shared: int
    registers: int
    spilled: int
    cubin: bytes


def compiled(m: Module, capability: int) -> dict[str, Usage]:
    """Machine code for a device of that compute capability (80, 90), which need not be there.

    Raises:
        UnsupportedError: no triton, or it interprets here, or a program does not fit.
    """
    triton = _triton()
    if interprets():
        raise UnsupportedError("the interpreter compiles nothing", hint="unset TRITON_INTERPRET")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = GPUTarget("cuda", capability, WARP)
    made, found = _imported(m.text), {}
    options = {"num_warps": m.launch.warps, "num_stages": m.launch.stages}
    for p in m.programs:
        kinds = signature(m, p)
        aligned = {(n,): [["tt.divisibility", 16]] for n in range(len(kinds))}
        source = ASTSource(getattr(made, p.name), kinds, {}, aligned)
        try:
            binary = triton.compile(source, target=target, options=options)
        except Exception as fault:
            raise UnsupportedError(
                "a program does not compile", got=str(fault).strip().splitlines()[-1], where=p.name
            ) from fault
        code = binary.asm["cubin"]
        registers, local = _read_back(code, p)
        found[p.name] = Usage(int(binary.metadata.shared), registers, local, code)
    return found


@functools.cache
def _cuobjdump() -> str:
    """The program that reads machine code; triton brings it along."""
    root = Path(_triton().__file__).parent
    path = root / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else "cuobjdump"


def _read_back(code: bytes, p: Program) -> tuple[int, int]:
    """Registers of a thread and bytes of its local memory, from the machine code itself."""
    with tempfile.TemporaryDirectory(prefix="whet-cubin-") as folder:
        path = Path(folder) / "program.cubin"
        path.write_bytes(code)
        done = subprocess.run(
            [_cuobjdump(), "-res-usage", str(path)], check=False, capture_output=True, text=True
        )
    said = dict(re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", done.stdout))
    if "REG" not in said:
        raise UnsupportedError("machine code says nothing of itself", got=done.stderr, where=p.name)
    return int(said["REG"]), int(said.get("STACK", 0)) + int(said.get("LOCAL", 0))


def run(m: Module, arrays: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Outputs of a kernel on inputs by name, each laid out as its buffer says."""
    made = {b.name: empty(b, device) for b in m.buffers if b.role == "out"}
    Loaded(m, device)([*(arrays[b.name] for b in m.buffers if b.role == "in"), *made.values()])
    return made
