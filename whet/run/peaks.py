"""The machine's limits, measured: the denominators of every "how far from the floor".

A small C program (`peaks.c`) is built for the vector width at hand and run once for each line of
`wanted(machine)`: multiply-adds for each data type, reads from each level of memory, copies. The
result is kept in the cache folder under the machine's fingerprint, so a machine is measured once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whet.errors import WhetError
from whet.machine import Machine, Rate

SOURCE = Path(__file__).with_name("peaks.c")
SECONDS = 4.0  # of measuring in all; building, starting and touching pages add to it
DTYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class Want:
    """A rate to measure, and what the C program must be told: a data type, or a number of bytes."""

    what: str
    of: str
    argument: str
    threads: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """A machine with its rates, and where they come from.

    Attributes:
        machine: the machine with measured rates.
        cached: they were read from the cache folder, not measured now.
        kept: they are in the cache folder, so the next process need not measure.
    """

    machine: Machine
    cached: bool
    kept: bool


def calibrated(
    machine: Machine | None = None,
    *,
    again: bool = False,
    folder: Path | None = None,
    measure: Callable[[Machine], tuple[Rate, ...]] | None = None,
) -> Calibration:
    """`machine` (this one, if none is given) with measured rates, from the cache where possible.

    With `again`, it is measured anew even so, and the better of both values is kept for each rate:
    a limit is what the machine has reached, and other programs can only hide it.

    A cache folder that cannot be read or written costs a new measurement in each process, never
    the result: `Calibration.kept` says which it was.

    Raises:
        WhetError: there is no C compiler, or the measuring program failed.
    """
    machine = machine or Machine.detect()
    file = (folder or cache_folder()) / "machines" / f"{machine.fingerprint()}.json"
    known = _load(file, machine.fingerprint())
    if known is not None and not again:
        return Calibration(known, cached=True, kept=True)
    rates = (measure or measured)(machine)
    machine = machine.with_rates(_better(known.rates if known else (), rates))
    return Calibration(machine, cached=False, kept=_keep(file, machine))


def measured(machine: Machine) -> tuple[Rate, ...]:
    """Measures every rate of `wanted(machine)`, in about five seconds.

    Raises:
        WhetError: there is no C compiler, or the measuring program failed.
    """
    wants = wanted(machine)
    with tempfile.TemporaryDirectory(prefix="whet-peaks-") as place:
        program = _build(machine, Path(place) / "peaks")
        triples = [word for w in wants for word in (w.what, w.argument, str(w.threads))]
        done = subprocess.run(
            [program, str(SECONDS / len(wants)), *triples],
            check=False,
            capture_output=True,
            text=True,
        )
    values = done.stdout.split()
    if done.returncode or len(values) != len(wants):
        raise WhetError(
            "measuring the machine's limits failed",
            expected=f"{len(wants)} numbers",
            got=f"{len(values)} numbers, exit code {done.returncode}",
            where=f"{SOURCE.name}, {machine.name}",
            hint=f"free some memory: the largest buffers take {2 * _dram_bytes(machine) >> 20} MiB",
        )
    return tuple(
        Rate(w.what, w.of, w.threads, float(v)) for w, v in zip(wants, values, strict=True)
    )


def wanted(machine: Machine) -> tuple[Want, ...]:
    """Every rate worth knowing: each data type and level of memory, at 1, 2, 4, … all threads.

    A private cache is read through half of its size by each thread, a shared one through half of
    its whole size by all together; main memory through several times the last level.
    """
    counts = _thread_counts(machine.threads)
    dtypes = (*DTYPES, *(("bfloat16",) if "avx512_bf16" in machine.isa else ()))
    wants = [Want("flops", dtype, dtype, t) for dtype in dtypes for t in counts]
    for cache in machine.caches:
        for t in counts:
            used = min(t, cache.instances)
            size = str(cache.bytes // 2 * used)
            wants.append(Want("read", f"L{cache.level}", size, t))
    size = str(_dram_bytes(machine))
    return (*wants, *(Want(what, "DRAM", size, t) for what in ("read", "copy") for t in counts))


def cache_folder() -> Path:
    """Where whet keeps what it has learned: $WHET_CACHE, else ~/.cache/whet."""
    named = os.environ.get("WHET_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "whet"


def _thread_counts(threads: int) -> list[int]:
    powers = [1 << k for k in range(threads.bit_length()) if 1 << k < threads]
    return [*powers, threads]


def _dram_bytes(machine: Machine) -> int:
    last = max((machine.cache_bytes(c.level) for c in machine.caches), default=0)
    return max(256 << 20, min(8 * last, machine.memory // 8))


def _build(machine: Machine, program: Path) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise WhetError(
            "there is no C compiler, so the machine cannot be measured",
            expected="gcc on the path",
            got="neither gcc nor cc",
            hint="install it: apt-get install gcc (Debian, Ubuntu), dnf install gcc (Fedora)",
        )
    # Sixteen vector registers must also hold the two factors; other instruction sets have 32.
    few = machine.vector_bits < 512 and not {"sve", "asimd"} & set(machine.isa)
    flags = ("-O3", "-march=native", "-fopenmp", "-std=gnu11", "-fno-tree-loop-distribute-patterns")
    defines = (f"-DVECTOR={machine.vector_bits // 8}", f"-DREGISTERS={12 if few else 16}")
    command: Sequence[str] = (compiler, *flags, *defines, str(SOURCE), "-o", str(program))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise WhetError(
            "the measuring program does not compile",
            expected="a C compiler with OpenMP and vector extensions",
            got=done.stderr.strip().splitlines()[0] if done.stderr.strip() else done.returncode,
            where=" ".join(command),
            hint="install gcc 10 or later",
        )
    return program


def _better(old: Iterable[Rate], new: Iterable[Rate]) -> tuple[Rate, ...]:
    best: dict[tuple[str, str, int], Rate] = {}
    for rate in (*new, *old):
        key = (rate.what, rate.of, rate.threads)
        if key not in best or best[key].value < rate.value:
            best[key] = rate
    return tuple(best.values())


def _load(file: Path, fingerprint: str) -> Machine | None:
    """The kept machine; None where there is none, or the file is not one any more."""
    try:
        machine = Machine.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, WhetError):
        return None
    return machine if machine.rates and machine.fingerprint() == fingerprint else None


def _keep(file: Path, machine: Machine) -> bool:
    """Writes whole or not at all, for other processes read the same file."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(machine.to_json(), indent=1))
        part.replace(file)
    except OSError:
        return False
    return True
