"""`whet doctor`: is everything in order? Versions, machine, measured peaks, compiler, store.

Each finding is a row (what, fine or not, what there is). Exit code 1 says that something that whet
cannot do without is missing or broken; its row says so in capitals. Peaks are measured on the first
run, in about five seconds.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from whet.cli.console import Console
from whet.errors import WhetError
from whet.machine import Machine
from whet.report import table

NEEDED = ("torch", "numpy", "z3-solver", "highspy")
OPTIONAL = ("onnx", "onnxruntime", "openvino", "transformers")


@dataclass(frozen=True, slots=True)
class Finding:
    """A row: `state` is "ok", "absent" (optional, and not there), "slow", or in capitals."""

    what: str
    state: str
    detail: str


def arguments(parser: argparse.ArgumentParser) -> None:
    """Only whether to measure."""
    parser.add_argument("--quick", action="store_true", help="do not measure peaks")
    parser.add_argument("--again", action="store_true", help="measure peaks anew")


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the findings; 1 if something is missing or broken."""
    machine = Machine.detect()
    checks: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        lambda: _machine(machine),
        _compiler,
        _store,
    ]
    if not args.quick:
        checks.append(lambda: _peaks(machine, args.again))
    findings: list[Finding] = []
    for check in checks:
        console.progress("looking at the machine; peaks take about five seconds")
        findings += check()
    rows = [[f.what, f.state, f.detail] for f in findings]
    console.print(table.aligned(rows, left=(0, 1, 2)))
    wrong = [f"{f.what} {f.state.lower()}" for f in findings if f.state.isupper()]
    console.print()
    console.print(", ".join(wrong) if wrong else "all in order")
    console.finish({"findings": [asdict(f) for f in findings], "machine": machine.to_json()})
    return 1 if wrong else 0


def _versions() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for package in (*NEEDED, *OPTIONAL):
        try:
            yield Finding(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            extra = "onnx" if package == "onnx" else "bench"
            hint = (
                f"pip install 'whet[{extra}]' brings it" if package in OPTIONAL else "./run setup"
            )
            yield Finding(package, "absent" if package in OPTIONAL else "MISSING", hint)
    if os.environ.get("WHET") == "off":
        yield Finding("WHET", "slow", "WHET=off is set: optimized modules run the original")


def _machine(machine: Machine) -> Iterator[Finding]:
    yield Finding("processor", "ok", machine.processor)
    yield Finding("threads", "ok", f"{machine.threads} on {table.counted(machine.cores, 'core')}")
    yield Finding("vectors", "ok", f"{machine.vector_bits} bits: {' '.join(machine.isa)}")
    yield Finding("memory", "ok", table.size(machine.memory))
    caches = [f"L{c.level} {c.instances} x {table.size(c.bytes)}" for c in machine.caches]
    yield Finding("caches", "ok" if caches else "absent", ", ".join(caches) or "not stated")


def _compiler() -> Iterator[Finding]:
    found = shutil.which("g++")
    if found is None:
        yield Finding("g++", "MISSING", "apt install g++ (Debian), dnf install gcc-c++ (Fedora)")
    else:
        done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        yield Finding("g++", "ok", (done.stdout.splitlines() or [found])[0])
    header = Path(sysconfig.get_path("include"), "Python.h")
    # Without it only compiled regions are out of reach; library calls still compete.
    yield (
        Finding("Python.h", "ok", str(header))
        if header.exists()
        else Finding("Python.h", "absent", "apt install python3-dev: compiled regions need it")
    )


def _store() -> Iterator[Finding]:
    from whet.store import Store

    with Store.open() as store:
        stats = store.stats()
    if stats.path is not None:
        rows = table.counted(stats.rows, "row")
        yield Finding("store", "ok", f"{stats.path}: {rows}, {table.size(stats.bytes)}")
    for note in stats.notes:
        yield Finding("store", "BROKEN", f"{note}; set WHET_CACHE to another folder")


def _peaks(machine: Machine, again: bool) -> Iterator[Finding]:
    from whet.run.peaks import calibrated

    try:
        found = calibrated(machine, again=again)
    except WhetError as error:
        yield Finding("peaks", "MISSING", error.summary)
        return
    for rate in found.machine.rates:
        if rate.threads == found.machine.threads:
            unit = "GFLOP/s" if rate.what == "flops" else "GB/s"
            text = f"{rate.value / 1e9:.0f} {unit} with {table.counted(rate.threads, 'thread')}"
            yield Finding(f"{rate.what} {rate.of}", "ok", text)
    if not found.kept:
        yield Finding("peaks", "slow", "they cannot be kept: each process measures them again")
