"""What a tiled kernel asks of a device, and whether it has that.

    Demand = shared bytes, registers of a thread, programs, for each launch

Registers: every tile that lives at a statement is shared out among the threads of a program, and a
statement needs room for what it reads and makes besides. Shared memory: operands of products pass
through it, once for each stage under way, and so does what is folded or turned across threads.
Both are upper estimates, told before anything is compiled; tests hold them against machine code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.ir import expr as ex
from whet.ir.expr import Index
from whet.kernel.affine import bounds
from whet.kernel.block import Launch
from whet.kernel.blocks import products
from whet.kernel.legal import Illegal, around
from whet.kernel.loops import If, Kernel, Leaf, Loop, Stmt, Update, bound, leaves, touched
from whet.machine.gpu import WARP, Gpu

BASE = 24  # registers that a program takes for addresses and counters
WORD = 4  # bytes of a register


@dataclass(frozen=True, slots=True)
class Demand:
    """What one launch asks for.

    Attributes:
        shared: bytes of a program.
        registers: of a thread.
        programs: how many.
    """

    shared: int
    registers: int
    programs: int


def demands(k: Kernel, launch: Launch) -> list[Demand]:
    """What each launch of a scheduled kernel asks for."""
    found = []
    for group in launches(k.body):
        parts = [_demand(k, s, launch) for s in group]
        shared, registers = max(d.shared for d in parts), max(d.registers for d in parts)
        found.append(Demand(shared, registers, max(d.programs for d in parts)))
    return found


def launches(body: Iterable[Stmt]) -> list[tuple[Stmt, ...]]:
    """Statements by launches: a parallel loop has its own, what is between is one program."""
    found: list[tuple[Stmt, ...]] = []
    for s in body:
        if _parallel(s) or not found or _parallel(found[-1][-1]):
            found.append((s,))
        else:
            found[-1] += (s,)
    return found


def _parallel(s: Stmt) -> bool:
    return isinstance(s, Loop) and s.kind == "parallel"


def fits(k: Kernel, launch: Launch, gpu: Gpu) -> Illegal | None:
    """Why a kernel cannot be run on a device, with the number; None where it can."""
    for group, d in zip(launches(k.body), demands(k, launch), strict=True):
        loop = next((s.var for s in group if isinstance(s, Loop)), "")
        if d.shared > gpu.shared:
            return Illegal("resources", loop, "", (("shared", d.shared), ("most", gpu.shared)))
        if d.registers > gpu.registers_each:
            numbers = (("registers", d.registers), ("most", gpu.registers_each))
            return Illegal("resources", loop, "", numbers)
        threads = launch.warps * WARP
        if threads * d.registers > gpu.registers:
            numbers = (("registers", threads * d.registers), ("most", gpu.registers))
            return Illegal("resources", loop, "", numbers)
        if d.programs >= 1 << 31:
            return Illegal("resources", loop, "", (("programs", d.programs), ("most", 1 << 31)))
    return None


def resident(d: Demand, launch: Launch, gpu: Gpu) -> int:
    """Programs that a multiprocessor holds at once; at least one."""
    threads = launch.warps * WARP
    by_shared = gpu.shared_each // (d.shared + 1024) if d.shared else gpu.programs
    by_registers = gpu.registers // max(1, threads * d.registers)
    return max(1, min(by_shared, by_registers, gpu.threads // threads, gpu.programs))


def width(loops: Sequence[Loop], var: str) -> int:
    """What a block takes of registers: the power of two that holds its largest extent."""
    loop = next(s for s in loops if s.var == var)
    most = bounds(bound(loop.extent), around(tuple(loops)))[1]
    return 1 << max(0, int(most) - 1).bit_length()


def programs(s: Stmt) -> int:
    """Programs that a statement of a kernel's body is run by."""
    count = 1
    while isinstance(s, Loop) and s.kind == "parallel":
        count *= s.extent if isinstance(s.extent, int) else 1
        if len(s.body) != 1:
            break
        (s,) = s.body
    return count


def tiles(s: Stmt) -> Iterator[tuple[Leaf, list[Loop], dict[str, int]]]:
    """Every statement with the loops around it and the widths of its blocks."""
    for leaf, path, _ in leaves((s,)):
        loops = [x for x in path if isinstance(x, Loop)]
        yield leaf, loops, {x.var: width(loops, x.var) for x in loops if x.kind == "block"}


def _demand(k: Kernel, s: Stmt, launch: Launch) -> Demand:
    threads = launch.warps * WARP
    used = touched((s,))
    held = {b.name: _bytes(k, b.name) for b in k.scratch if b.name in used and _local(k, b.name)}
    dots = products(Kernel(k.buffers, k.body))
    most, shared = 0, 0
    for leaf, loops, blocks in tiles(s):
        live = sum(n for name, n in held.items() if _lives(k, name, leaf, loops))
        temporary, operands = _statement(k, leaf, blocks, leaf in dots)
        if leaf in dots and _is_dot(leaf, blocks):
            serial = any(x.kind == "serial" for x in loops)
            shared = max(shared, operands * (launch.stages if serial else 1))
            temporary = operands // 2
        elif isinstance(leaf, Update) and blocks:
            shared = max(shared, min(temporary, launch.warps * WORD * 2 * WARP))
        if not isinstance(leaf, Update):  # an element at a time: what is loaded ahead, no more
            temporary //= 4
        most = max(most, live + temporary)
    turned = max((held[n] for n in held if _turned(k, s, n)), default=0)
    return Demand(max(shared, turned), BASE + -(-most // (threads * WORD)), programs(s))


def _local(k: Kernel, name: str) -> bool:
    return sum(name in touched(group) for group in launches(k.body)) == 1


def _bytes(k: Kernel, name: str) -> int:
    b = k.buffer(name)
    return math.prod(1 << max(0, n - 1).bit_length() for n in b.sizes) * max(b.dtype.bits // 8, 1)


def _lives(k: Kernel, name: str, leaf: Leaf, loops: Sequence[Loop]) -> bool:
    """Is a tile alive where a statement is? It is wherever the loop around its life is."""
    scope = k.scopes.get(name, ())
    return not scope or scope[-1] in {x.var for x in loops}


def _is_dot(leaf: Leaf, blocks: Mapping[str, int]) -> bool:
    own = {v for i in leaf.index for v in ex.free(i) if v in blocks}
    return len(own) == 2 and len(blocks) == 3 and min(blocks.values()) >= 16


def _statement(k: Kernel, leaf: Leaf, blocks: Mapping[str, int], dot: bool) -> tuple[int, int]:
    """Bytes of the tile that a statement makes, and of the operands that it reads from memory."""
    whole = math.prod(blocks.values()) * WORD
    operands = 0
    for load in dict.fromkeys(ex.loads(leaf.value)):
        b = k.buffer(load.tensor)
        used = {v for i in load.index for v in ex.free(i) if v in blocks}
        operands += math.prod(blocks[v] for v in used) * (b.dtype.bits // 8 or 1)
    return whole if not dot else operands, operands


def _turned(k: Kernel, s: Stmt, name: str) -> bool:
    """Is a tile an operand of a product, or read in another order than it was made?"""
    for leaf, _, blocks in tiles(s):
        for load in ex.loads(leaf.value):
            if load.tensor == name and isinstance(leaf, Update) and _is_dot(leaf, blocks):
                return True
    return False


def axes(index: Sequence[ex.Expr]) -> list[str]:
    """The variables that an index runs along, in the order of its dims."""
    return [i.name for i in index if isinstance(i, Index)]


__all__ = ["Demand", "If", "axes", "demands", "fits", "programs", "resident", "tiles"]
