"""C texts compiled by gcc, in parallel, each text once.

    units {name: C text} → objects {name: bytes}           compile_units
    objects → one shared object                            link_objects
    kernels {symbol: Kernel} → Built                       compile_kernels

An object is kept in a store under its content: the text, the compiler's version, its options. What
another process compiles at the same time is compiled twice and kept once; what is killed halfway
leaves a temporary folder behind and nothing in the store.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from whet.backend.cpp import function, unit
from whet.errors import UnsupportedError, WhetError
from whet.kernel.loops import Kernel
from whet.machine.target import Target
from whet.store import Store

KIND = "object"  # of rows in the store
TOGETHER = 8  # kernels in one compilation unit
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast", "-fno-semantic-interposition", "-w",
         # Unrolled loops make gcc look at pairs of accesses for half of its time; what it finds
         # beyond the first few is nothing (the same assembly for ten drafts of eleven).
         "--param=sccvn-max-alias-queries-per-access=30",
         "--param=dse-max-alias-queries-per-store=16")  # fmt: skip
# fmt: off
# Instruction set: processor family, options that turn it on.
SETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "avx512f": ("x86_64",  ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma",
                            "-mf16c", "-mbmi2", "-mtune=skylake-avx512",
                            "-mprefer-vector-width=512")),
    "avx2":    ("x86_64",  ("-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mtune=haswell")),
    "avx":     ("x86_64",  ("-mavx",)),
    "sse2":    ("x86_64",  ("-msse2",)),
    "asimd":   ("aarch64", ("-march=armv8.2-a+fp16",)),
    "sve":     ("aarch64", ("-march=armv8.2-a+fp16",)),
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler for a target.

    Attributes:
        path: of the program.
        version: what it says of itself.
        flags: options for every text.
    """

    path: str
    version: str
    flags: tuple[str, ...]

    def key(self, text: str, extra: Sequence[str] = ()) -> str:
        """Equal for texts that compile to the same object."""
        parts = (self.version, *self.flags, *extra, text)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def compiler(target: Target) -> Compiler:
    """The compiler for a target: $CC or gcc, a cross compiler for another family of processors.

    Raises:
        UnsupportedError: there is none, or nobody knows the target's instructions.
    """
    if target.isa not in SETS:
        raise UnsupportedError(
            "no options turn this instruction set on", expected=", ".join(SETS), got=target.isa
        )
    family, flags = SETS[target.isa]
    if platform.machine() in (family, {"aarch64": "arm64"}.get(family)):
        program = os.environ.get("CC", "gcc")
    else:
        program = f"{family}-linux-gnu-gcc"
    path = shutil.which(program)
    if path is None:
        raise UnsupportedError(
            "generated kernels need a C compiler",
            expected=program,
            got="no such program",
            hint="install it (apt-get install gcc, or gcc-aarch64-linux-gnu), or set CC",
        )
    return Compiler(path, _version(path), (*FLAGS, *flags))


@functools.cache
def _version(path: str) -> str:
    """First line of `--version`; asked once of each program."""
    done = subprocess.run([path, "--version"], check=False, capture_output=True, text=True)
    return done.stdout.partition("\n")[0]


def compile_units(
    units: Mapping[str, str],
    target: Target,
    store: Store | None = None,
    *,
    flags: Sequence[str] = (),
    jobs: int | None = None,
) -> dict[str, bytes]:
    """An object for each text.

    Args:
        units: C texts by name.
        target: what they are compiled for.
        store: where objects are kept; compiled anew where it is None.
        flags: further options.
        jobs: compilers at once; the target's threads unless given.

    Raises:
        UnsupportedError: there is no compiler.
        WhetError: a text does not compile; shows the compiler's first words.
    """
    texts = list(dict.fromkeys(units.values()))
    with ThreadPoolExecutor(jobs or max(target.threads, 1)) as pool:
        made = pool.map(lambda text: compile_text(text, target, store, flags=flags), texts)
        objects = dict(zip(texts, made, strict=True))
    return {name: objects[text] for name, text in units.items()}


def compile_text(
    text: str, target: Target, store: Store | None = None, *, flags: Sequence[str] = ()
) -> bytes:
    """The object of one text; see `compile_units`."""
    cc = compiler(target)
    key = cc.key(text, flags)
    found = None if store is None else store.get(KIND, key)
    if isinstance(found, bytes):
        return found
    with tempfile.TemporaryDirectory(prefix="whet-cc-") as folder:
        source = Path(folder, "unit.c")
        source.write_text(text, encoding="utf-8")
        out = source.with_suffix(".o")
        _run([cc.path, *cc.flags, *flags, "-c", str(source), "-o", str(out)])
        data = out.read_bytes()
    if store is not None:
        store.put(KIND, key, data)
    return data


def link_objects(
    objects: Sequence[bytes], target: Target, *, flags: Sequence[str] = ("-lm",)
) -> bytes:
    """One shared object.

    Raises:
        WhetError: two objects define one function, or a library is missing.
    """
    cc = compiler(target)
    with tempfile.TemporaryDirectory(prefix="whet-ld-") as folder:
        files = []
        for k, data in enumerate(objects):
            files.append(Path(folder, f"{k}.o"))
            files[-1].write_bytes(data)
        out = Path(folder, "kernels.so")
        _run([cc.path, "-shared", "-fopenmp", "-o", str(out), *map(str, files), *flags])
        return out.read_bytes()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise WhetError(
            "a generated kernel does not compile",
            expected="a C compiler that takes gcc's extensions",
            got="\n".join(lines[:6]) or f"exit status {done.returncode}",
            where=command[0],
        )


# -- kernels ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Built:
    """Compiled kernels.

    Attributes:
        library: a shared object, as bytes.
        scratch: bytes of scratch that each kernel needs, by symbol.
    """

    library: bytes
    scratch: Mapping[str, int]

    def load(self) -> Loaded:
        """The kernels in this process."""
        handle, name = tempfile.mkstemp(prefix="whet-", suffix=".so")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.library)
            return Loaded(ctypes.CDLL(name), dict(self.scratch))
        finally:
            os.unlink(name)


class Loaded:
    """Kernels that can be called with addresses.

    Keeps the shared object and one scratch region; not for two threads at once.
    """

    def __init__(self, library: ctypes.CDLL, scratch: Mapping[str, int]) -> None:
        self.library, self.scratch = library, scratch
        self._region = ctypes.create_string_buffer(max(scratch.values(), default=0) + 128)

    def call(self, symbol: str, *addresses: int) -> None:
        """Runs a kernel: operands in order, then results; each address 64-byte aligned."""
        function = self.library[symbol]
        function.restype = None
        arguments = (ctypes.c_void_p * len(addresses))(*addresses)
        base = -(-ctypes.addressof(self._region) // 64) * 64
        function(arguments, ctypes.c_void_p(base))


def compile_kernels(
    kernels: Mapping[str, Kernel],
    target: Target,
    store: Store | None = None,
    *,
    flags: Sequence[str] = (),
    jobs: int | None = None,
) -> Built:
    """Kernels as one shared object, several to a compilation unit; see `compile_units`."""
    made = {symbol: function(symbol, k, target) for symbol, k in kernels.items()}
    names = list(made)
    groups = [names[k : k + TOGETHER] for k in range(0, len(names), TOGETHER)]
    texts = {g[0]: unit([made[n] for n in g], target) for g in groups}
    objects = compile_units(texts, target, store, flags=flags, jobs=jobs)
    library = link_objects(list(objects.values()), target, flags=("-lm", *flags))
    return Built(library, {n: made[n].scratch for n in names})
