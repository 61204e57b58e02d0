"""Where scratch lies: in the caller's region, on the stack, or in variables.

    region := what all threads share | thread 0's own | thread 1's own | …

What lives within a parallel loop is a thread's own. Buffers that do not live at the same time
share their bytes: those of loops that follow each other, and those of one loop whose statements do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from whet.kernel.loops import Buffer, If, Kernel, Loop, Stmt, scope, touched

ALIGN = 64
STACK = 1 << 17  # bytes of one buffer beyond which the stack is no place for it


@dataclass(frozen=True, slots=True)
class Places:
    """A kernel's scratch.

    Attributes:
        offsets: of buffers in the shared part or in a thread's own, in bytes.
        own: buffers that each thread has for itself.
        local: buffers that are declared in the loop they live in, by that loop ("" outermost).
        shared_bytes, own_bytes: of the two parts.
    """

    offsets: Mapping[str, int]
    own: frozenset[str]
    local: Mapping[str, tuple[Buffer, ...]]
    shared_bytes: int
    own_bytes: int

    def bytes(self, threads: int) -> int:
        """Of the whole region."""
        return self.shared_bytes + threads * self.own_bytes if self.own_bytes else self.shared_bytes


def placed(kernel: Kernel, threads: int) -> Places:
    """A place for every scratch buffer of a kernel."""
    homes = {b.name: scope(kernel, b.name) for b in kernel.scratch}
    parallel = (
        {v for v, s in kernel.loops.items() if s.kind == "parallel"} if threads > 1 else set()
    )
    own = {name for name, path in homes.items() if parallel & set(path)}
    regions = _regions(kernel.body) if threads > 1 else set()
    local: dict[str, list[Buffer]] = {}
    memory: dict[str, list[Buffer]] = {}
    for b in kernel.scratch:
        home = homes[b.name][-1] if homes[b.name] else ""
        shared = b.name not in own and (parallel and (home in regions or not home))
        if b.role != "memory" and not shared and b.bytes <= STACK:
            local.setdefault(home, []).append(b)
        else:
            memory.setdefault(home, []).append(b)
    offsets: dict[str, int] = {}
    ends = [0, 0]
    for mine in (False, True):
        chosen = {h: [b for b in bs if (b.name in own) == mine] for h, bs in memory.items()}
        ends[mine] = _place(kernel.body, "", 0, chosen, offsets)
    return Places(
        offsets, frozenset(own), {h: tuple(bs) for h, bs in local.items()}, ends[0], ends[1]
    )


def _regions(body: Iterable[Stmt]) -> set[str]:
    """Loops that have a parallel loop within them."""
    found: set[str] = set()
    for s in body:
        if isinstance(s, (Loop, If)):
            inner = _regions(s.body)
            found |= inner
            if isinstance(s, Loop) and (inner or _has_parallel(s.body)):
                found.add(s.var)
    return found


def _has_parallel(body: Iterable[Stmt]) -> bool:
    return any(
        (isinstance(s, Loop) and s.kind == "parallel")
        or (isinstance(s, (Loop, If)) and _has_parallel(s.body))
        for s in body
    )


def _place(
    body: tuple[Stmt, ...],
    home: str,
    base: int,
    buffers: Mapping[str, list[Buffer]],
    offsets: dict[str, int],
) -> int:
    """Offsets for what lives in `body` and within; returns the first byte behind all of it."""
    living = buffers.get(home, ())
    used = [touched((s,)) for s in body] if living else []
    spans: list[tuple[int, int, int, int]] = []  # first and last statement, first and last byte
    end = base
    for b in sorted(living, key=lambda b: -b.bytes):
        at = [k for k, names in enumerate(used) if b.name in names]
        place = base
        for _, _, low, high in sorted(
            (s for s in spans if s[0] <= at[-1] and at[0] <= s[1]), key=lambda s: s[2]
        ):
            if place + b.bytes <= low:
                break
            place = max(place, high)
        offsets[b.name] = place
        high = -(-(place + max(b.bytes, 1)) // ALIGN) * ALIGN
        spans.append((at[0], at[-1], place, high))
        end = max(end, high)
    for k, s in enumerate(body):
        if isinstance(s, (Loop, If)):
            free = max((high for first, last, _, high in spans if first <= k <= last), default=base)
            inner = s.var if isinstance(s, Loop) else f"if {id(s)}"
            end = max(end, _place(s.body, inner, free, buffers, offsets))
    return end
