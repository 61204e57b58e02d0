"""Random placed models, and random changes of them: what a search might propose."""

from __future__ import annotations

import random
from dataclasses import replace

from whet.machine import Mesh, Topology
from whet.parallel.placed import Block, Optimizer, Placed, Run, Stage, Step, Weights

KERNELS = ("contraction", "stream", "gather", "fused")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")


def step(
    rng: random.Random, at: int, axes: list[str], steps: list[Step], *, backward: bool
) -> Step:
    """A kernel or collective that may wait for steps before it."""
    after = tuple(sorted({rng.randrange(at) for _ in range(rng.randint(0, 2))})) if at else ()
    alloc = tuple(rng.choice((100, 5000, 3 << 20, 30 << 20)) for _ in range(rng.randint(0, 2)))
    taken = [size for s in steps for size in s.alloc]
    free = (rng.choice(taken),) if taken and rng.random() < 0.4 else ()
    if axes and rng.random() < 0.35:
        chosen = tuple(rng.sample(axes, rng.randint(1, len(axes))))
        bytes = rng.choice((0, 1000, 1 << 20, 200 << 20))
        kind = rng.choice(COLLECTIVES)
        return Step(f"c{at}", kind, bytes=bytes, axes=chosen, after=after, alloc=alloc, free=free)
    size = rng.choice((16, 512, 4096))
    return Step(
        f"k{at}",
        rng.choice(KERNELS),
        flops=2 * size**3,
        read=4 * size * size * rng.randint(1, 3),
        written=4 * size * size,
        dims=(1, size, size, size),
        dtype=rng.choice(("bfloat16", "float32")),
        after=after,
        alloc=alloc,
        free=free,
        weight=backward and rng.random() < 0.4,
    )


def steps(rng: random.Random, axes: list[str], count: int, *, backward: bool) -> tuple[Step, ...]:
    made: list[Step] = []
    for k in range(count):
        made.append(step(rng, k, axes, made, backward=backward))
    return tuple(made)


def block(rng: random.Random, name: str, axes: list[str]) -> Block:
    return Block(
        name,
        steps(rng, axes, rng.randint(0, 5), backward=False),
        steps(rng, axes, rng.randint(0, 6), backward=True),
        tuple(
            Weights(
                f"w{k}",
                rng.choice((0, 1000, 10**6, 10**8)),
                rng.choice((2, 4)),
                tuple(rng.sample(axes, rng.randint(0, len(axes)))),
                rng.random() < 0.9,
            )
            for k in range(rng.randint(0, 2))
        ),
        rng.choice((0, 4096, 20 << 20)),
    )


def placed(
    rng: random.Random, topology: Topology, *, devices: int | None = None, small: bool = False
) -> Placed:
    """A model of random blocks on some devices of a topology; a `small` one has few repetitions."""
    total = min(devices or topology.size, topology.size)
    groups = rng.choice([g for g in (1, 2, 3, 4) if g <= total])
    each = total // groups
    schedule = rng.choice(("gpipe", "1f1b", "interleaved", "zero_bubble"))
    chunks = rng.choice((1, 2, 3)) if schedule == "interleaved" and groups > 1 else 1
    most = 2 if small else 6
    batches = groups * rng.randint(1, most // 2) if chunks > 1 else rng.randint(1, most)
    order = list(range(total))
    if rng.random() < 0.3:
        rng.shuffle(order)
    meshes = [mesh(rng, order[g * each : (g + 1) * each]) for g in range(groups)]
    names = [[name for name, _ in m.axes] for m in meshes]
    shared = (
        [block(rng, f"b{k}", names[0]) for k in range(2)] if len({*map(tuple, names)}) == 1 else []
    )
    shares = [
        tuple(rng.choice((1.0, 2.0, 0.5)) for _ in range(m.shape[0])) if rng.random() < 0.2 else ()
        for m in meshes
    ]
    stages = []
    for k in range(groups * chunks):
        g = k % groups
        pool = [*shared, block(rng, f"s{k}", names[g])]
        runs = tuple(
            Run(rng.choice(pool), rng.randint(1, 2 if small else 4))
            for _ in range(rng.randint(1, 2 if small else 3))
        )
        stages.append(
            Stage(
                meshes[g],
                runs,
                recompute=rng.random() < 0.3,
                zero=rng.randint(0, 3),
                offload=frozenset(o for o in ("optimizer", "activations") if rng.random() < 0.15),
                output=rng.choice((0, 10**4, 10**7)),
                shares=shares[g],
                overlap=rng.random() < 0.8,
                eager=rng.random() < 0.2,
            )
        )
    optimizer = Optimizer(rng.choice((0, 8, 12)), rng.choice((2, 4)))
    training = rng.random() < 0.9
    return Placed(tuple(stages), batches, schedule, chunks, optimizer, training).checked()


def mesh(rng: random.Random, devices: list[int]) -> Mesh:
    inner = rng.choice([n for n in (1, 2, 4) if len(devices) % n == 0])
    if inner == 1 or rng.random() < 0.2:
        return Mesh((("data", len(devices)),), tuple(devices))
    return Mesh((("data", len(devices) // inner), ("tensor", inner)), tuple(devices))


def changed(rng: random.Random, old: Placed) -> Placed:
    """One thing changed: a step, a cut between stages, a choice of a stage, the microbatches."""
    k = rng.randrange(len(old.stages))
    stage = old.stages[k]
    axes = [name for name, _ in stage.mesh.axes]
    match rng.randrange(6):
        case 0 | 1:  # one step of one block, wherever the block stands in this stage
            run = rng.choice(stage.runs)
            side = rng.choice(("forward", "backward"))
            before = getattr(run.block, side)
            if not before:
                return old
            at = rng.randrange(len(before))
            other = step(rng, at, axes, list(before[:at]), backward=side == "backward")
            after = (*before[:at], other, *before[at + 1 :])
            new = replace(run.block, **{side: after})
            runs = tuple(replace(r, block=new) if r.block == run.block else r for r in stage.runs)
            stage = replace(stage, runs=runs)
        case 2:
            at = rng.randrange(len(stage.runs))
            run = replace(stage.runs[at], times=rng.randint(1, 5))
            stage = replace(stage, runs=(*stage.runs[:at], run, *stage.runs[at + 1 :]))
        case 3:
            stage = replace(stage, zero=rng.randint(0, 3), recompute=rng.random() < 0.5)
        case 4:
            stage = replace(stage, output=rng.choice((0, 10**4, 10**7)))
        case _:
            step_ = old.groups if old.chunks > 1 else 1
            return replace(old, microbatches=step_ * rng.randint(1, 4))
    return replace(old, stages=(*old.stages[:k], stage, *old.stages[k + 1 :]))
