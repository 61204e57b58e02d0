"""What a tiled kernel asks of a device, and whether it has that.

    Demand = shared bytes, registers of a thread, programs, for each launch

Registers: every tile that lives at a statement is shared out among the threads of a program, and a
statement needs room for what it reads and makes besides, and for addresses. Shared memory: operands
of products pass through it, once for each stage under way, and so does what is folded or turned
across threads. Both are upper estimates, told before anything is compiled; tests hold them against
machine code for compute capability 8.0 and 9.0, from which the factors of `registers` are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

from whet.errors import UnsupportedError
from whet.ir import expr as ex
from whet.kernel.affine import form
from whet.kernel.block import Launch
from whet.kernel.legal import Illegal, around, touch
from whet.kernel.loops import Buffer, Kernel, Leaf, Loop, Stmt, Update, leaves, touched
from whet.kernel.lower import NARROW
from whet.kernel.pad import Widths, crossed, widths
from whet.machine.gpu import WARP, Gpu

WORD = 4  # bytes of a register
SPARE = 1.25  # what an upper estimate of registers may be too high by, before it is refused
FOLDED = 8  # words of shared memory that a thread has at most for what is folded across threads


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


@dataclass(frozen=True, slots=True)
class Grid:
    """The programs of a nest: loops that span them, what each does, and how many there are."""

    axes: tuple[Loop, ...]
    body: tuple[Stmt, ...]

    @property
    def programs(self) -> int:
        return math.prod(a.extent if isinstance(a.extent, int) else 1 for a in self.axes)


def grid_of(s: Stmt) -> Grid:
    """The grid of a statement of a kernel's body.

    Raises:
        UnsupportedError: its extents are no numbers.
    """
    axes: list[Loop] = []
    body: tuple[Stmt, ...] = (s,)
    while len(body) == 1 and isinstance(s := body[0], Loop) and s.kind == "parallel":
        if not isinstance(s.extent, int):
            raise UnsupportedError("a grid is of numbers", got=s.extent)
        axes.append(s)
        body = s.body
    return Grid(tuple(axes), body)


def demands(k: Kernel, launch: Launch) -> list[Demand]:
    """What each launch of a scheduled kernel asks for."""
    found = []
    wide = widths(k)
    groups = launches(k.body, launch.beside)
    for group in groups:
        local = {b.name for b in k.scratch if sum(b.name in touched(g) for g in groups) == 1}
        parts = [_Using(k, s, launch, wide, local) for s in group]
        count = sum(grid_of(s).programs for s in group) if _parallel(group[0]) else 1
        if 0 < launch.persistent < count:
            count = launch.persistent
        use = functools.reduce(Use.beside, (p.use() for p in parts))
        found.append(Demand(max(p.shared() for p in parts), registers(use), count))
    return found


def launches(body: Iterable[Stmt], beside: bool = False) -> list[tuple[Stmt, ...]]:
    """Statements by launches: a parallel loop has its own, what is between is one program.

    Args:
        beside: parallel loops that wait for nothing of one another, nor for what comes between
            them, are one launch.
    """
    found: list[tuple[Stmt, ...]] = []
    for s in body:
        if _parallel(s) or not found or _parallel(found[-1][-1]):
            found.append((s,))
        else:
            found[-1] += (s,)
    if not beside:
        return found
    levels: list[tuple[Stmt, ...]] = []
    for group in found:
        last = max((n for n, g in enumerate(levels) if touch(g, group)), default=-1)
        free = (n for n, g in enumerate(levels) if n > last and _parallel(g[0]))
        if _parallel(group[0]) and (at := next(free, None)) is not None:
            levels[at] += group
        else:
            levels.append(group)
    return levels


def _parallel(s: Stmt) -> bool:
    return isinstance(s, Loop) and s.kind == "parallel"


def fits(k: Kernel, launch: Launch, gpu: Gpu) -> Illegal | None:
    """Why a kernel cannot be run on a device, with the number; None where it can."""
    for group, d in zip(launches(k.body, launch.beside), demands(k, launch), strict=True):
        loop = next((s.var for s in group if isinstance(s, Loop)), "")
        if d.shared > gpu.shared:
            return Illegal("resources", loop, "", (("shared", d.shared), ("most", gpu.shared)))
        if d.registers > SPARE * gpu.registers_each:
            numbers = (("registers", d.registers), ("most", gpu.registers_each))
            return Illegal("resources", loop, "", numbers)
        threads = launch.warps * WARP
        taken = threads * min(d.registers, gpu.registers_each)
        if taken > gpu.registers:
            numbers = (("registers", taken), ("most", gpu.registers))
            return Illegal("resources", loop, "", numbers)
        if d.programs >= 1 << 31:
            return Illegal("resources", loop, "", (("programs", d.programs), ("most", 1 << 31)))
    return None


def resident(d: Demand, launch: Launch, gpu: Gpu) -> int:
    """Programs that a multiprocessor holds at once; at least one."""
    threads = launch.warps * WARP
    by_shared = gpu.shared_each // (d.shared + 1024) if d.shared else gpu.programs
    by_registers = gpu.registers // max(1, threads * min(d.registers, gpu.registers_each))
    return max(1, min(by_shared, by_registers, gpu.threads // threads, gpu.programs))


def tiles(s: Stmt, wide: Widths) -> Iterator[tuple[Leaf, list[Loop], dict[str, int]]]:
    """Every statement with the loops around it and the widths of its blocks."""
    for leaf, path, _ in leaves((s,)):
        loops = [x for x in path if isinstance(x, Loop)]
        yield leaf, loops, {x.var: wide.blocks[x.var] for x in loops if x.kind == "block"}


@dataclass(frozen=True, slots=True)
class Use:
    """What a nest keeps in registers at most, in words of a thread.

    Attributes:
        held: tiles that live.
        narrow, wide: operands of products of tiles, by tensor cores and by vectors.
        accesses: loads that a statement makes, of up to 16 bytes where elements lie together.
        alone, looped: elements that a statement loads outside of loops, and that all statements of
            a loop do.
        made: elements that a statement folds.
        products: whether there are products of tiles.
    """

    held: float
    narrow: float
    wide: float
    accesses: float
    alone: float
    looped: float
    made: float
    products: bool

    def beside(self, other: Use) -> Use:
        """Of both in one program."""
        return Use(*map(max, astuple(self), astuple(other)))


class _Using:
    """What one nest of a kernel asks of the program that runs it."""

    def __init__(
        self, k: Kernel, s: Stmt, launch: Launch, wide: Widths, local: set[str]
    ) -> None:  # fmt: skip
        self.k, self.s, self.launch, self.wide = k, s, launch, wide
        used = touched((s,))
        self.held = {b.name: self._bytes(b) for b in k.scratch if b.name in used & local}

    def shared(self) -> int:
        """Bytes of shared memory."""
        crossing = beside = through = 0
        for leaf, loops, blocks in tiles(self.s, self.wide):
            made = math.prod(blocks.values()) * WORD
            serial = {x.var for x in loops if x.kind == "serial"}
            if crossed(leaf, blocks):
                crossing += self._staged(leaf, blocks, serial)
                continue
            beside += self._staged(leaf, blocks, serial) if serial else 0
            if isinstance(leaf, Update) and blocks:
                through = max(through, min(made, self.launch.warps * WARP * WORD * FOLDED))
            elif len(self._contiguous(leaf, loops, blocks)) > 1:
                through = max(through, made)
        return max(crossing + (beside if crossing else 0), through)

    def _staged(self, leaf: Leaf, blocks: Mapping[str, int], serial: set[str]) -> int:
        """Bytes of a statement's operands, as many copies as are under way of what steps load; of a
        product also those that are there already."""
        total, product = 0, crossed(leaf, blocks)
        for load in dict.fromkeys(ex.loads(leaf.value)):
            if load.tensor in self.held and not product:
                continue
            free = {v for i in load.index for v in ex.free(i)}
            count = math.prod(blocks[v] for v in free if v in blocks) * self._size(load.tensor)
            steps = load.tensor not in self.held and free & serial
            total += count * (self.launch.stages if steps else 1)
        return total

    def _contiguous(
        self, leaf: Leaf, loops: Sequence[Loop], blocks: Mapping[str, int]
    ) -> set[str]:  # fmt: skip
        """The axes along which what a statement touches lies together in memory."""
        domain = around(tuple(loops))
        read = [(x.tensor, x.index) for x in ex.loads(leaf.value)]
        found = set()
        for name, index in [*read, (leaf.buffer, leaf.index)]:
            if name not in self.held:
                at = form(self.k.buffer(name).layout.address(index), domain)
                found |= {v for v in blocks if at.coefficient(v) == 1}
        return found

    def use(self) -> Use:
        threads = self.launch.warps * WARP
        held = narrow = wide = accesses = alone = made = 0.0
        products = False
        looped: dict[tuple[str, ...], float] = {}
        for leaf, loops, blocks in tiles(self.s, self.wide):
            here = {x.var for x in loops}
            held = max(held, sum(n for b, n in self.held.items() if self._lives(b, here)))
            read = self._read(leaf, blocks)
            if crossed(leaf, blocks):
                operands, products = sum(read.values()) / WORD, True
                if self.launch.precision == "ieee" and self._wide(leaf):
                    wide = max(wide, operands)
                else:
                    narrow = max(narrow, operands)
            elif isinstance(leaf, Update):
                made = max(made, math.prod(blocks.values()))
            accesses = max(accesses, self._accesses(leaf, loops, blocks))
            near = tuple(x.var for x in loops if x.kind != "block")
            memory = sum(n / self._size(b) for b, n in read.items() if b not in self.held)
            if any(x.kind == "serial" for x in loops):  # steps overlap: all that one loads
                looped[near] = looped.get(near, 0.0) + memory
            else:
                alone = max(alone, memory)
        most = max(looped.values(), default=0.0)
        return Use(
            held / WORD / threads, narrow / threads, wide / threads, accesses / threads,
            alone / threads, most / threads, made / threads, products,
        )  # fmt: skip

    def _accesses(self, leaf: Leaf, loops: Sequence[Loop], blocks: Mapping[str, int]) -> float:
        """Loads of a statement, by all threads."""
        total = 0.0
        domain = around(tuple(loops))
        for load in dict.fromkeys(ex.loads(leaf.value)):
            b = self.k.buffer(load.tensor)
            if b.name in self.held:
                continue
            at = form(b.layout.address(load.index), domain)
            used = {v for i in load.index for v in ex.free(i) if v in blocks}
            together = 16 // self._size(b.name)
            near = [v for v in used if at.coefficient(v) == 1]
            for e in (*(n for a, n in at.terms.items() if n != 1), at.constant,
                      *(blocks[v] for v in near), *b.sizes[-1:]):  # fmt: skip
                together = math.gcd(together, e)
            total += math.prod(blocks[v] for v in used) / (together if near else 1)
        return total

    def _wide(self, leaf: Leaf) -> bool:
        """Are the factors of a product of float32, or of tiles that are?"""
        kinds = {self.k.buffer(x.tensor).dtype for x in ex.loads(leaf.value)
                 if x.tensor not in self.held}  # fmt: skip
        return not kinds & set(NARROW)

    def _size(self, name: str) -> int:
        return self.k.buffer(name).dtype.bits // 8 or 1

    def _bytes(self, b: Buffer) -> int:
        sizes = (self.wide.dim(b.name, n, size) for n, size in enumerate(b.sizes))
        return math.prod(sizes) * max(b.dtype.bits // 8, 1)

    def _lives(self, name: str, around: set[str]) -> bool:
        """Is a tile alive within these loops? It is wherever the loop around its life is."""
        scope = self.k.scopes.get(name, ())
        return not scope or scope[-1] in around

    def _read(self, leaf: Leaf, blocks: Mapping[str, int]) -> dict[str, int]:
        """Bytes of what a statement reads, by buffer."""
        found: dict[str, int] = {}
        for load in dict.fromkeys(ex.loads(leaf.value)):
            used = {v for i in load.index for v in ex.free(i) if v in blocks}
            count = math.prod(blocks[v] for v in used) * self._size(load.tensor)
            found[load.tensor] = found.get(load.tensor, 0) + count
        return found


def registers(u: Use) -> int:
    """Of a thread, told from what it holds: no less than compilers were seen to take where nothing
    is spilled. With little under way a tile costs twice its size; large ones cost less."""
    if not u.products:
        return math.ceil(24 + 2.0 * u.accesses + 1.1 * u.alone + 2.1 * u.looped)
    small = 36 + 2.25 * u.held + 2.0 * u.wide + 1.35 * u.accesses + 0.17 * u.made
    large = 42 + 1.45 * u.held + 3.35 * u.wide + 1.6 * u.accesses + 0.36 * u.made
    return math.ceil(min(small, large))
