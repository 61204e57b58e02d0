"""Strategies that people use, as points of the space: baselines to be compared with, and seeds.

    data        replicas, each with some of the samples
    fsdp        the same with parameters, gradients and state sharded among the replicas
    tensor      parameters cut inside nodes (Shoeybi et al., "Megatron-LM", 2019), replicas of that
    pipeline    stages, replicas of them
    3d          all three (Narayanan et al., SC 2021), plain and interleaved schedules
    weird       convolutions cut samples, products with parameters cut parameters
    experts     experts on different devices, everything else cuts samples

Each family lists its own degrees, microbatches, recomputation and sharding of the state: a baseline
is as good as its best member.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from whet.ir.graph import Node
from whet.parallel.choice import Choice
from whet.parallel.intra import Problem
from whet.parallel.sharding import Sharding
from whet.parallel.strategy import Recipe, Strategy, even
from whet.parallel.work import work

FAMILIES = ("data", "fsdp", "tensor", "pipeline", "3d", "weird", "experts")
MEMBERS = 64  # of a family that are tried


def fixed(problem: Problem, style: str) -> dict[Node, Choice] | None:
    """Choices that a style decides itself."""
    if style not in ("weird", "experts"):
        return None
    found: dict[Node, Choice] = {}
    for n in problem.layer.forward:
        w = work(n)
        if not w.roles:
            continue
        weight = next((k for k, a in enumerate(n.operands) if _from_parameter(a)), None)
        if weight is None:
            continue
        roles = w.roles[2:3] if style == "weird" else w.roles[:1]
        if style == "weird" and w.kind == "window":
            continue
        for c in problem.choices.of(n):
            cut = [(a, m) for m, a, _ in c.cuts if m == "data"]
            if cut and any(cut[0][0] in r for r in roles):
                own = c.operands[weight]
                if own is not None and _on(own, "data"):
                    found[n] = c
                    break
    return found


def _on(s: Sharding, axis: str) -> bool:
    return any(a == axis for _, _, a in s.cuts)


def _from_parameter(a: Node) -> bool:
    while len(a.operands) == 1 and work(a).kind in ("view", "stream"):
        a = a.operands[0]
    return a.op == "parameter"


def divisors(n: int) -> list[int]:
    """All of them, in order."""
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})


def families(
    batch: int,
    devices: tuple[int, ...],
    node: int,
    weights: Sequence[float],
    *,
    windows: bool,
    experts: bool,
    training: bool,
) -> Iterator[tuple[str, Strategy]]:
    """(family, member) of every family, the likely ones first.

    Args:
        batch: samples of a step.
        devices: of the cluster.
        node: devices of one node.
        weights: of each block.
        windows, experts: whether the model has what a family is about.
        training: with gradients.
    """
    for name in FAMILIES:
        if (name == "weird" and not windows) or (name == "experts" and not experts):
            continue
        members = _members(name, batch, devices, node, weights, training=training)
        for s in itertools.islice(members, MEMBERS):
            yield name, replace(s, origin=name)


def _members(
    name: str, batch: int, devices: tuple[int, ...], node: int, weights: Sequence[float], *,
    training: bool,
) -> Iterator[Strategy]:  # fmt: skip
    total = len(devices)
    zeros = {"data": (0,), "fsdp": (3, 2), "experts": (1, 3)}.get(name, (1, 0))
    for depth, tensor in _degrees(name, total, node, len(weights)):
        data = total // (depth * tensor)
        if batch % data:
            continue
        pinned = frozenset() if name in ("weird", "experts") else frozenset({"data"})
        style = name if name in ("weird", "experts") else "tokens"
        recipe = Recipe((("data", data), ("tensor", tensor)), pinned, style)
        for micro in _microbatches(batch // data, depth):
            for chunks in (1, 2) if name == "3d" and depth > 1 else (1,):
                if chunks > 1 and (micro % depth or depth * chunks > len(weights)):
                    continue
                for recompute in (False, True) if training else (False,):
                    for zero in zeros if training else zeros[:1]:
                        size = total // depth
                        groups = [devices[k * size : (k + 1) * size] for k in range(depth)]
                        parts = even(
                            [weights] * depth, groups, [recipe] * depth, chunks=chunks,
                            zero=zero, recompute=recompute,
                        )  # fmt: skip
                        schedule = "interleaved" if chunks > 1 else "1f1b"
                        yield Strategy(parts, micro, schedule, chunks)


def _degrees(name: str, total: int, node: int, blocks: int) -> list[tuple[int, int]]:
    """(stages, tensor) of a family."""
    depths = [d for d in divisors(total) if d <= min(blocks, 64)]
    tensors = [t for t in divisors(node) if total % t == 0]
    match name:
        case "tensor":
            return [(1, t) for t in tensors[::-1] if t > 1]
        case "pipeline":
            return [(d, 1) for d in depths if d > 1]
        case "3d":
            return [
                (d, t) for d in depths for t in tensors[::-1]
                if d > 1 and t > 1 and total % (d * t) == 0
            ]  # fmt: skip
    return [(1, 1)]


def _microbatches(samples: int, depth: int) -> list[int]:
    """Numbers of microbatches of one replica, those that fill a pipeline best first."""
    found = divisors(samples)
    if depth > 1:
        found = [m for m in found if m >= depth] or found[-1:]
        return sorted(found, reverse=True)[:3]
    return found[:1] + found[1:][-3:] if len(found) > 4 else found
