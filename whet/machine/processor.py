"""The machine that programs are made for: what it is, and how fast it was measured to be.

    Machine := name processor isa vector_bits cores threads memory Cache* Rate*
    Cache   := level bytes instances                  one level: size of one instance, and how many
    Rate    := what of threads value                  one measured limit
    what    := "flops" | "read" | "copy"              operations or bytes a second
    of      := "float32" | … | "L1" | "L2" | "L3" | "DRAM"

`Machine.detect()` reads the first line of it from the operating system and takes milliseconds.
The rates are measured by `run.peaks`, kept by `fingerprint()`, and are empty until then. With
them a machine gives the physical floor under any program: `floor_s(flops, bytes)`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from whet.errors import WhetError

# fmt: off
# Instruction sets that change what the fastest code is, widest first: flag, bits of a vector.
ISA: tuple[tuple[str, int], ...] = (
    ("amx_tile",      512),
    ("avx512f",       512),
    ("avx512_bf16",   512),
    ("avx512_vnni",   512),
    ("avx2",          256),
    ("avx",           256),
    ("sve",           128),  # 128 is what every SVE machine has; wider ones are used no wider yet
    ("asimd",         128),
    ("sse2",          128),
    ("fma",             0),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Cache:
    """One level of data cache: `bytes` of one instance, `instances` of them in the machine."""

    level: int
    bytes: int
    instances: int


@dataclass(frozen=True, slots=True)
class Rate:
    """A measured limit: `value` operations or bytes a second, reached with `threads` threads.

    A copy counts the bytes read and the bytes written.
    """

    what: str
    of: str
    threads: int
    value: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor with its memory, as programs meet it.

    Attributes:
        name: a short name for people and for file names.
        processor: the model as the processor states it.
        isa: the instruction sets of `ISA` that it has, in that order.
        vector_bits: the width of its widest vector register.
        cores, threads: those this process may use.
        memory: bytes of main memory.
        caches: data caches, the smallest level first.
        rates: measured limits; empty until measured.
    """

    name: str
    processor: str
    isa: tuple[str, ...]
    vector_bits: int
    cores: int
    threads: int
    memory: int
    caches: tuple[Cache, ...] = ()
    rates: tuple[Rate, ...] = ()

    @classmethod
    def detect(cls, root: Path = Path("/")) -> Machine:
        """The machine this process runs on; `root` is the place of `proc` and `sys`."""
        info = _cpuinfo(root / "proc/cpuinfo")
        flags = set((info.get("flags") or info.get("Features") or "").split())
        isa = tuple(flag for flag, _ in ISA if flag in flags)
        processor = _processor(info)
        threads = _allowed_threads()
        cpu = root / "sys/devices/system/cpu"
        siblings = _count(_read(cpu / "cpu0/topology/thread_siblings_list")) or 1
        return cls(
            name=_slug(f"{processor} {threads}t"),
            processor=processor,
            isa=isa,
            vector_bits=max((bits for flag, bits in ISA if flag in isa), default=128),
            cores=max(1, threads // siblings),
            threads=threads,
            memory=_memory(root / "proc/meminfo"),
            caches=_caches(cpu / "cpu0/cache", threads),
        )

    def fingerprint(self) -> str:
        """A stable text, equal where times may be compared: processor, ISA, threads, caches.

        Caches belong to it because virtual machines of one processor differ in the share they get.
        """
        caches = ",".join(f"L{c.level}:{c.bytes}x{c.instances}" for c in self.caches)
        text = "|".join((self.processor, " ".join(self.isa), f"{self.threads} threads", caches))
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def rate(self, what: str, of: str, threads: int | None = None) -> float:
        """The best rate measured with at most `threads` threads, or with all of them.

        Raises:
            WhetError: no such rate was measured.
        """
        limit = self.threads if threads is None else threads
        fitting = [r for r in self.rates if (r.what, r.of) == (what, of) and r.threads <= limit]
        if not fitting:
            raise WhetError(
                f"the machine has no measured rate {what} of {of} with {limit} threads",
                expected=", ".join(f"{r.what} {r.of}" for r in self.rates) or "measured rates",
                got=f"{what} {of}",
                where=self.name,
                hint="measure it first: whet.run.peaks.calibrated(machine)",
            )
        return max(r.value for r in fitting)

    def cache_bytes(self, level: int) -> int:
        """Bytes of all instances of one level of cache together; 0 if there is none."""
        return sum(c.bytes * c.instances for c in self.caches if c.level == level)

    def floor_s(
        self, flops: float, bytes: float, *, dtype: str = "float32", threads: int | None = None
    ) -> float:
        """The least time in seconds that any program can take (the roofline model).

        `bytes` are the distinct bytes that must be touched. They come at the speed of the L3 cache
        where all of them fit there, as they do when one program runs again and again, otherwise at
        that of main memory. Some floors cannot be reached: they leave out transcendental functions,
        and weights that a recurrence reads again at each step.

        Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
        """
        resident = bytes <= self.cache_bytes(3)
        source = "L3" if resident else "DRAM"
        return max(
            flops / self.rate("flops", dtype, threads), bytes / self.rate("read", source, threads)
        )

    def with_rates(self, rates: Iterable[Rate]) -> Machine:
        """The same machine with these measured limits."""
        return replace(self, rates=tuple(rates))

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Machine.from_json` takes it back."""
        return {**asdict(self), "isa": list(self.isa), "fingerprint": self.fingerprint()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """The machine of `to_json`.

        Raises:
            WhetError: a field is missing or unknown.
        """
        fields = {key: value for key, value in data.items() if key != "fingerprint"}
        try:
            fields["isa"] = tuple(fields["isa"])
            fields["caches"] = tuple(Cache(**c) for c in fields["caches"])
            fields["rates"] = tuple(Rate(**r) for r in fields["rates"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise WhetError(
                "this is not the description of a machine",
                expected="the fields " + ", ".join(cls.__dataclass_fields__),
                got=", ".join(map(str, data)),
                hint="write it with Machine.to_json()",
            ) from error


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is no such file."""
    entries: dict[str, str] = {}
    for line in _read(path).splitlines():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        entries[key.strip()] = value.strip()
    return entries


def _processor(info: Mapping[str, str]) -> str:
    """Model name with family and model: a hypervisor may shorten the name to "AMD EPYC"."""
    name = info.get("model name") or platform.processor() or platform.machine() or "unknown"
    numbers = [info.get(key) for key in ("cpu family", "model", "CPU part")]
    known = "/".join(n for n in numbers if n)
    return f"{name} ({known})" if known else name


def _allowed_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory(path: Path) -> int:
    found = re.search(r"MemTotal:\s*(\d+) kB", _read(path))
    return int(found[1]) * 1024 if found else 0


def _caches(folder: Path, threads: int) -> tuple[Cache, ...]:
    caches = []
    for index in sorted(folder.glob("index*")) if folder.is_dir() else ():
        if _read(index / "type").strip() == "Instruction":
            continue
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size").strip())
        if size is None:
            continue
        each = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[2]]
        sharers = _count(_read(index / "shared_cpu_list")) or 1
        caches.append(Cache(int(_read(index / "level")), each, -(-threads // sharers)))
    return tuple(sorted(caches, key=lambda c: c.level))


def _count(cpus: str) -> int:
    """How many processors a kernel list such as "0-3,8" names."""
    total = 0
    for part in filter(None, cpus.strip().split(",")):
        low, _, high = part.partition("-")
        total += int(high or low) - int(low) + 1
    return total


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
