"""NVIDIA GPUs, as kernels and their prices see them: a table of presets, and the device at hand.

    Gpu = name, capability, multiprocessors, registers, shared, …, memory, bandwidth, peak

Sources: NVIDIA A100, H100 and H200 data sheets (memory, bandwidth, dense peaks of the SXM modules);
NVIDIA A100 and H100 architecture whitepapers (multiprocessors, L2); CUDA C++ Programming Guide,
"Technical Specifications per Compute Capability" (registers, shared memory, threads). The rate of
the L2 cache is no data sheet's figure: 2.5 times that of memory on all three is what
microbenchmarks of the A100 and H100 find, within a third.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from whet.errors import WhetError
from whet.machine.processor import Cache, Machine, Rate

WARP = 32  # threads that go in step
KIB, GB = 1 << 10, 10**9


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device.

    Attributes:
        name: a short name, for people and for file names.
        capability: compute capability, ten times the major plus the minor: 80, 90.
        multiprocessors: that run programs.
        shared: bytes of shared memory that one program may have.
        shared_each: bytes of shared memory of a multiprocessor, for all its programs.
        registers: of 32 bits, of a multiprocessor.
        registers_each: that one thread may have.
        threads: that a multiprocessor holds.
        programs: that a multiprocessor holds.
        l2, memory: bytes.
        bandwidth, l2_bandwidth: of memory and of the L2 cache, bytes a second.
        peak: operations a second by element type; tensor cores, and "vector" without them.
        launch: seconds that one launch takes inside of a graph of launches.
    """

    name: str
    capability: int
    multiprocessors: int
    shared: int
    shared_each: int
    l2: int
    memory: int
    bandwidth: float
    peak: Mapping[str, float] = field(hash=False)
    registers: int = 65536
    registers_each: int = 255
    threads: int = 2048
    programs: int = 32
    launch: float = 1.5e-6

    @property
    def l2_bandwidth(self) -> float:
        return 2.5 * self.bandwidth

    def rate(self, dtype: str) -> float:
        """Operations a second of products of that type; those of vectors where there is no such."""
        return self.peak.get(dtype, self.peak["vector"])

    def fingerprint(self) -> str:
        """Equal where times may be compared."""
        return f"{self.name}-{self.multiprocessors}sm-{self.memory // GB}gb"

    def machine(self) -> Machine:
        """The device as a processor whose cores are multiprocessors and whose vectors are warps.

        What reads features off kernels knows processors; capacities and rates are the device's.
        """
        rates = (
            Rate("flops", "float32", self.multiprocessors, self.peak["vector"]),
            Rate("read", "L1", self.multiprocessors, 4 * self.l2_bandwidth),
            Rate("read", "L2", self.multiprocessors, self.l2_bandwidth),
            Rate("read", "L3", self.multiprocessors, self.l2_bandwidth),
            Rate("read", "DRAM", self.multiprocessors, self.bandwidth),
        )
        caches = (
            Cache(1, self.shared_each, self.multiprocessors), Cache(2, self.l2, 1),
            Cache(3, self.l2, 1),
        )  # fmt: skip
        return Machine(
            name=self.name, processor=self.fingerprint(), isa=(), vector_bits=32 * WARP,
            cores=self.multiprocessors, threads=self.multiprocessors, memory=self.memory,
            caches=caches, rates=rates,
        )  # fmt: skip


T = 1e12
# fmt: off
_PEAK_80 = {"float16": 312 * T, "bfloat16": 312 * T, "tfloat32": 156 * T, "float32": 19.5 * T,
            "float64": 9.7 * T,  "vector": 19.5 * T}
_PEAK_90 = {"float16": 989 * T, "bfloat16": 989 * T, "tfloat32": 494 * T, "float32": 67 * T,
            "float64": 34 * T,   "vector": 67 * T}

#        name         cap  SMs   shared      of an SM    L2          memory    bytes/s  peak
PRESETS: Mapping[str, Gpu] = {g.name: g for g in (
    Gpu("a100",       80, 108, 163 * KIB, 164 * KIB, 40960 * KIB,  80 * GB, 2.039e12, _PEAK_80),
    Gpu("h100",       90, 132, 227 * KIB, 228 * KIB, 51200 * KIB,  80 * GB, 3.35e12,  _PEAK_90),
    Gpu("h200",       90, 132, 227 * KIB, 228 * KIB, 51200 * KIB, 141 * GB, 4.8e12,   _PEAK_90),
)}
# fmt: on


EACH_CLOCK: Mapping[int, Mapping[str, int]] = {
    80: {"float16": 2048, "bfloat16": 2048, "tfloat32": 1024, "float32": 128, "float64": 64,
         "vector": 128},
    90: {"float16": 4096, "bfloat16": 4096, "tfloat32": 2048, "float32": 256, "float64": 128,
         "vector": 256},
}  # fmt: skip
"""Operations of a multiprocessor in each clock, dense, by compute capability: the architecture
whitepapers' of the A100 and the H100."""


def preset(name: str) -> Gpu:
    """The device of that name.

    >>> preset("h200").multiprocessors
    132

    Raises:
        WhetError: there is none.
    """
    found = PRESETS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=1)
        raise WhetError(
            f"there is no device named {name!r}",
            expected=", ".join(PRESETS),
            got=name,
            hint=f"did you mean {near[0]}?" if near else "",
        )
    return found
