"""What kernels are made for: the few numbers of a processor that decide how loops are cut."""

from __future__ import annotations

from dataclasses import dataclass

from whet.machine.processor import Machine

# Instruction set: registers of vectors.
REGISTERS = {"avx512f": 32, "sve": 32, "asimd": 32, "avx2": 16, "avx": 16, "sse2": 16}


@dataclass(frozen=True, slots=True)
class Target:
    """One processor, as a code generator sees it.

    Attributes:
        isa: its widest vector instruction set, a name of `processor.ISA`.
        vector_bytes: of a register.
        registers: how many vector registers there are.
        threads: that a kernel may use.
        l1, l2, l3: bytes of data cache: of a core's own, of a core's own, shared.
    """

    isa: str
    vector_bytes: int
    registers: int
    threads: int
    l1: int = 32 << 10
    l2: int = 1 << 20
    l3: int = 32 << 20

    @property
    def lanes(self) -> int:
        """float32 numbers in a register."""
        return self.vector_bytes // 4

    @classmethod
    def of(cls, machine: Machine, threads: int | None = None) -> Target:
        """The target that a machine is."""
        isa = next((flag for flag in machine.isa if flag in REGISTERS), "sse2")
        caches = {c.level: c.bytes for c in machine.caches}
        default = cls(isa, 16, 16, 1)
        return cls(
            isa,
            machine.vector_bits // 8,
            REGISTERS[isa],
            threads or machine.threads,
            caches.get(1, default.l1),
            caches.get(2, default.l2),
            caches.get(3, default.l3),
        )
