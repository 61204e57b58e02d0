"""What a tiled kernel takes on a device, told from its loops: the analytic part of the cost.

    seconds = sum over launches of  launch + the most of (compute, L2, memory, latency)

Compute: a multiprocessor runs its share of programs, tensor cores and vectors each at the device's
peak. L2: what all programs load and store. Memory: what lies beyond L2 is touched once, or as often
as it is loaded where it does not fit. Latency: steps of a program that wait for loads, as many at a
time as stages are under way (Williams et al., "Roofline", CACM 52(4), 2009, with the terms that
short kernels need).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.types import DType
from whet.kernel.block import Launch, launch_of
from whet.kernel.blocks import products
from whet.kernel.cut import Cut
from whet.kernel.draft import Draft, weight
from whet.kernel.following import most
from whet.kernel.grid import grid
from whet.kernel.legal import Illegal
from whet.kernel.limits import demands, fits, grid_of, launches, resident, tiles
from whet.kernel.loops import Kernel, Leaf, Loop, Stmt, Update, leaves, touched
from whet.kernel.pad import Widths, crossed, widths
from whet.machine.gpu import Gpu

WAIT = 6e-7  # seconds from a load's issue to its use, from memory
EFFICIENCY = 0.75  # of the peak, that long products reach


@dataclass(frozen=True, slots=True)
class Work:
    """What one program of a launch does.

    Attributes:
        products: operations on tensor cores, and their element type.
        others: operations on vectors.
        moved: bytes that it loads and stores.
        steps: that wait for loads.
    """

    products: float
    dtype: str
    others: float
    moved: float
    steps: float


def seconds(k: Kernel, launch: Launch, gpu: Gpu) -> float:
    """The whole kernel, all its launches."""
    total, wide = 0.0, widths(k)
    groups = launches(k.body, launch.beside)
    for group, d in zip(groups, demands(k, launch), strict=True):
        local = {b.name for b in k.scratch if sum(b.name in touched(g) for g in groups) == 1}
        nests = [(s,) for s in group] if len(group) > 1 and grid_of(group[0]).axes else [group]
        compute = moved = latency = 0.0
        for nest in nests:
            w = work(k, nest, launch, wide, local)
            count = grid_of(nest[0]).programs
            each = -(-count // gpu.multiprocessors)
            share = each * gpu.multiprocessors if len(nests) == 1 else count
            compute += share * w.products / (EFFICIENCY * gpu.rate(w.dtype))
            compute += share * w.others / gpu.rate("vector")
            moved += count * w.moved
            held = resident(d, launch, gpu) * gpu.multiprocessors
            tiles_each = -(-count // d.programs) if launch.persistent else 1
            waves = -(-min(count, d.programs) // held) * tiles_each
            wait = max(1.0, w.steps) * WAIT / max(1, min(launch.stages - 1, w.steps))
            latency = max(latency, waves * wait)
        unique = sum(min(b.bytes, moved) for b in k.buffers if b.name in touched(group))
        beyond = unique if unique < gpu.l2 else max(unique, moved / 4)
        memory = min(moved, beyond) / gpu.bandwidth
        total += gpu.launch + max(compute, moved / gpu.l2_bandwidth, memory, latency)
    return total


def work(
    k: Kernel, group: Sequence[Stmt], launch: Launch, wide: Widths, local: set[str]
) -> Work:  # fmt: skip
    """What one tile of a launch takes."""
    on_cores = others = moved = steps = 0.0
    dtype = "float32"
    for leaf, loops, blocks in (x for s in group for x in tiles(s, wide)):
        serial = [x for x in loops if x.kind in ("serial", "unroll")]
        trips = float(math.prod(most(k, x.var) for x in serial))
        points = trips * math.prod(blocks.values())
        if crossed(leaf, blocks):
            on_cores += 2 * points
            dtype = _type(k, leaf, launch)
        else:
            others += points * (weight(leaf.value) + isinstance(leaf, Update))
        moved += _moved(k, leaf, serial, blocks, local)
        steps = max(steps, trips)
    return Work(on_cores, dtype, others, moved, steps)


def _type(k: Kernel, leaf: Leaf, launch: Launch) -> str:
    kinds = {k.buffer(x.tensor).dtype for x in ex.loads(leaf.value)}
    for narrow in (DType.bf16, DType.f16):
        if narrow in kinds:
            return str(narrow.value)
    return "tfloat32" if launch.precision == "tf32" else "float32"


def _moved(
    k: Kernel, leaf: Leaf, serial: Sequence[Loop], blocks: dict[str, int], local: set[str]
) -> float:
    total = 0.0
    touches = [(x.tensor, x.index) for x in dict.fromkeys(ex.loads(leaf.value))]
    for name, index in (*touches, (leaf.buffer, leaf.index)):
        if name in local:
            continue
        used = {v for i in index for v in ex.free(i)}
        count = math.prod(n for v, n in blocks.items() if v in used)
        count *= math.prod(most(k, x.var) for x in serial if x.var in used)
        total += count * (k.buffer(name).dtype.bits / 8)
    return total


# -- candidates ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule that a device can run, with what it should take."""

    name: str
    draft: Draft
    launch: Launch
    seconds: float
    cut: Cut


def priced(kernel: Kernel, cut: Cut, gpu: Gpu) -> Candidate:
    """A kernel cut so, with what it should take; whether it fits is another question."""
    d = grid(kernel, cut)
    launch = launch_of(d.schedule)
    return Candidate(str(cut), d, launch, seconds(d.kernel, launch, gpu), cut)


def cuts(kernel: Kernel, precision: str = "ieee", persistent: int = 0) -> list[Cut]:
    """Ways to cut that are worth looking at, by what the kernel has.

    Args:
        precision: of products of float32.
        persistent: also as many programs, that take all tiles in turns. No price tells whether
            that pays: asked for where a device is there to try it.
    """
    dots = products(kernel)
    several = len(dots) > 1 and len(kernel.outputs) > 1
    if not dots:
        sizes = ((4096, 1024, 4), (4096, 2048, 4), (4096, 4096, 8), (8192, 8192, 8))
        found = [Cut(row=r, tile=t, warps=w, stages=2) for r, t, w in sizes]
    else:
        shapes: tuple[tuple[int, int, int, int, int], ...] = (
            (128, 128, 32, 8, 3), (128, 64, 32, 4, 4), (64, 128, 32, 4, 4), (64, 64, 64, 4, 3),
            (64, 64, 32, 4, 4), (128, 256, 64, 8, 3), (32, 64, 64, 4, 3), (16, 64, 64, 4, 3),
        )  # fmt: skip
        if several:  # one cut for all of them: such as suit small ones
            shapes = (*shapes[1:2], *shapes[3:5], *shapes[6:7])
        found = [
            Cut(rows=m, columns=n, depth=k, warps=w, stages=s, precision=precision)
            for m, n, k, w, s in shapes
        ]
        if not several:
            found += [replace(c, group=8) for c in found[:2]]
            found += [Cut(64, 64, 64, 4, 3, precision, splits=n) for n in (4, 8)]
        found += [replace(c, persistent=persistent) for c in found[:3] if persistent]
    if dots and any(isinstance(s, Update) and s.how == "max" for s, _, _ in leaves(kernel.body)):
        found += [Cut(64, 64, 64, 4, 3, precision, splits=n, tile=256) for n in (16, 32, 64)]
    if several:
        found = [*(replace(c, beside=True) for c in found), found[0]]
    elif len(kernel.outputs) > 1:  # where they wait for nothing of one another
        found += [replace(c, beside=True) for c in found]
    return found


def candidates(
    kernel: Kernel, gpu: Gpu, precision: str = "ieee", only: Iterable[Cut] | None = None,
    measured: bool = False,
) -> tuple[list[Candidate], list[Illegal]]:  # fmt: skip
    """Schedules that the device can run, the most promising first, and why others were refused.

    Args:
        only: these; `cuts` unless given.
        measured: what no price can tell will be measured: programs that stay are among them.
    """
    found: dict[str, Candidate] = {}
    refused: list[Illegal] = []
    stay = gpu.multiprocessors if measured else 0
    for cut in cuts(kernel, precision, stay) if only is None else only:
        c = priced(kernel, cut, gpu)
        why = fits(c.draft.kernel, c.launch, gpu)
        if why is not None:
            refused.append(why.of(str(cut)))
            continue
        found.setdefault(f"{c.draft.kernel.digest} {c.launch}", c)
    return sorted(found.values(), key=lambda c: c.seconds), refused
