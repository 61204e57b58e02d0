"""Kernels compiled and called, for tests: arrays in, arrays out, wherever the target runs."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from whet.backend.build import Built, compile_kernels, compiler
from whet.backend.cpp import function, unit
from whet.kernel.loops import Buffer, Kernel
from whet.machine.target import Target

AVX512 = Target("avx512f", 64, 32, 2)
AVX2 = Target("avx2", 32, 16, 2)
NEON = Target("asimd", 16, 32, 2)
Array = np.ndarray


def native() -> list[Target]:
    """Targets whose code this machine runs."""
    if platform.machine() != "x86_64":
        return [NEON]
    words = set(Path("/proc/cpuinfo").read_text().split())
    return [t for t in (AVX512, AVX2) if t.isa in words]


def numpy_type(b: Buffer) -> np.dtype:
    """What holds a buffer's elements; bfloat16 as its upper 16 bits."""
    return np.dtype(np.uint16 if b.dtype.value == "bfloat16" else b.dtype.value)


def places(b: Buffer) -> Array:
    """Where each element lies, in row-major order of the indices."""
    index = np.indices(b.sizes)
    total = np.zeros(b.sizes, np.int64)
    for p in b.layout.parts:
        outermost = max(q.step for q in b.layout.parts if q.dim == p.dim)
        at = index[p.dim] // p.step
        total += (at if p.step == outermost else at % p.size) * p.stride
    return total.reshape(-1)


def aligned(count: int, dtype: np.dtype) -> Array:
    raw = np.zeros(count * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * dtype.itemsize].view(dtype)


def memory(b: Buffer, values: Array | None) -> Array:
    """A buffer's memory, holding `values`."""
    flat = aligned(max(b.layout.elements, 1), numpy_type(b))
    if values is not None and values.size:
        kept = np.asarray(values)
        if numpy_type(b) == np.uint16:
            kept = (kept.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        flat[places(b)] = kept.astype(numpy_type(b)).reshape(-1)
    return flat


def read(b: Buffer, flat: Array) -> Array:
    """The values of a buffer's memory."""
    found = flat[places(b)].reshape(b.sizes)
    if numpy_type(b) == np.uint16:
        found = (found.astype(np.uint32) << 16).view(np.float32)
    return found


def called(built: Built, symbol: str, k: Kernel, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a compiled kernel."""
    held = [memory(b, arrays.get(b.name)) for b in (*k.inputs, *k.outputs)]
    built.load().call(symbol, *(h.ctypes.data for h in held))
    return {b.name: read(b, h) for b, h in zip(k.outputs, held[len(k.inputs) :], strict=True)}


def run(k: Kernel, arrays: Mapping[str, Array], target: Target) -> dict[str, Array]:
    """Compiles a kernel and calls it."""
    return called(compile_kernels({"kernel": k}, target), "kernel", k, arrays)


# -- in a process of its own -----------------------------------------------------------------------
def missing(target: Target) -> str | None:
    """What is not installed of what running a target's code elsewhere needs."""
    family = {"asimd": "aarch64"}.get(target.isa)
    if family is None or platform.machine() == family:
        return None
    wanted = [f"{family}-linux-gnu-gcc", f"qemu-{family}"]
    return next((p for p in wanted if shutil.which(p) is None), None)


def run_alone(
    kernels: Mapping[str, tuple[Kernel, Mapping[str, Array]]], target: Target, *flags: str
) -> dict[str, dict[str, Array]]:
    """Kernels as one program that reads files and writes files; under qemu where it has to be."""
    made = {n: function(n, k, target) for n, (k, _) in kernels.items()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        main = ["#include <stdio.h>", "#include <stdlib.h>", "int main(void) {"]
        for n, (k, arrays) in kernels.items():
            main.append(f"  {{ void *a[{len(k.inputs) + len(k.outputs)}]; FILE *f;")
            for j, b in enumerate((*k.inputs, *k.outputs)):
                flat = memory(b, arrays.get(b.name))
                (place / f"{n}.{b.name}").write_bytes(flat.tobytes())
                main.append(f"    a[{j}] = aligned_alloc(64, {-(-flat.nbytes // 64) * 64});")
                main.append(f'    f = fopen("{place}/{n}.{b.name}", "rb");')
                main.append(
                    f"    if (fread(a[{j}], 1, {flat.nbytes}, f) != {flat.nbytes}) return 2;"
                )
                main.append("    fclose(f);")
            size = -(-max(made[n].scratch, 64) // 64) * 64
            main.append(f"    void *scratch = aligned_alloc(64, {size});")
            main.append(f"    {n}(a, scratch); free(scratch);")
            for j, b in enumerate(k.outputs, len(k.inputs)):
                size = memory(b, None).nbytes
                main.append(f'    f = fopen("{place}/{n}.{b.name}", "wb");')
                main.append(f"    fwrite(a[{j}], 1, {size}, f); fclose(f);")
            main.append(
                f"    for (int j = 0; j < {len(k.inputs) + len(k.outputs)}; j++) free(a[j]);"
            )
            main.append("  }")
        heads = "".join(f"void {n}(void *const *args, void *scratch);\n" for n in kernels)
        (place / "main.c").write_text(heads + "\n".join([*main, "  return 0;", "}", ""]))
        (place / "unit.c").write_text(unit(made.values(), target))
        cc = compiler(target)
        program = str(place / "program")
        emulated = target.isa == "asimd" and platform.machine() != "aarch64"
        static = ["-static"] if emulated else []
        _done([cc.path, *cc.flags, *flags, *static, str(place / "main.c"), str(place / "unit.c"),
               "-o", program, "-lm"])  # fmt: skip
        _done(["qemu-aarch64", program] if emulated else [program])
        found: dict[str, dict[str, Array]] = {}
        for n, (k, _) in kernels.items():
            found[n] = {}
            for b in k.outputs:
                flat = np.frombuffer((place / f"{n}.{b.name}").read_bytes(), numpy_type(b))
                found[n][b.name] = read(b, flat)
        return found


def _done(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (command[0], done.stderr[-4000:])
