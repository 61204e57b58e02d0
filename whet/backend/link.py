"""Compilation units linked into one shared object, against the libraries that torch has loaded.

    units {name: C text} → objects, in parallel → one library

What a unit calls of torch (its C shim, MKL, OpenMP) is found by the libraries' names at load time:
they are in the process already, wherever torch is installed there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from whet.errors import UnsupportedError, WhetError

FLAGS = ("-std=gnu11", "-O2", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-w")
LIBRARIES = ("libtorch_python.so", "libtorch_cpu.so", "libc10.so")


def link(units: Mapping[str, str], *, flags: Sequence[str] = FLAGS) -> bytes:
    """One shared object of C texts.

    Raises:
        UnsupportedError: there is no C compiler.
        WhetError: a text does not compile, or a function is nowhere to be found.
    """
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise UnsupportedError(
            "a native program needs a C compiler", expected="gcc", got="no such program",
            hint="install it (apt-get install gcc), or set CC to another one",
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="whet-link-") as folder:
        place = Path(folder)

        def compiled(name: str) -> str:
            source = place / f"{name}.c"
            source.write_text(units[name])
            _run([compiler, *flags, "-c", str(source), "-o", str(source.with_suffix(".o"))])
            return str(source.with_suffix(".o"))

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            objects = list(pool.map(compiled, units))
        library = place / "program.so"
        _run([
            compiler, "-shared", "-fopenmp", "-Wl,-Bsymbolic", "-o", str(library), *objects,
            f"-L{Path(torch.__file__).parent / 'lib'}", *(f"-l:{n}" for n in LIBRARIES), "-lm",
            "-Wl,--unresolved-symbols=ignore-all",
        ])  # fmt: skip
        return library.read_bytes()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise WhetError(
            "a generated program does not compile",
            expected="a C compiler that takes gcc's options",
            got="\n".join(lines[:4]),
            where=" ".join(command[:2]),
        )
