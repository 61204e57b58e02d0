"""Compilation units linked into one shared object, against the libraries that torch has loaded.

    units {name: C text} → objects, in parallel, each text once → one library

What a unit calls of torch (its C shim, MKL, OpenMP) is found by the libraries' names at load time:
they are in the process already, wherever torch is installed there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from whet.backend.build import compile_units, link_objects
from whet.machine import Machine
from whet.machine.target import Target
from whet.store import Store

LIBRARIES = ("libtorch_python.so", "libtorch_cpu.so", "libc10.so")


def link(units: Mapping[str, str], store: Store | None = None) -> bytes:
    """One shared object of C texts.

    Args:
        units: texts by name.
        store: where objects are kept; compiled anew where it is None.

    Raises:
        UnsupportedError: there is no C compiler.
        WhetError: a text does not compile.
    """
    target = Target.of(Machine.detect(), torch.get_num_threads())
    objects = compile_units(units, target, store)
    return joined(list(dict.fromkeys(objects.values())), target)


def joined(objects: Sequence[bytes], target: Target) -> bytes:
    """One shared object of compiled texts. Raises `WhetError` where two define one function."""
    libraries = Path(torch.__file__).parent / "lib"
    flags = (
        "-Wl,-Bsymbolic", f"-L{libraries}", *(f"-l:{name}" for name in LIBRARIES), "-lm",
        "-Wl,--unresolved-symbols=ignore-all",
    )  # fmt: skip
    return link_objects(objects, target, flags=flags)
