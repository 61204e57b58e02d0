"""What no strategy can beat, and what a strategy cannot beat with its degrees.

    bound   all products of a step at the best rate of every device, and one pass of the optimizer
            over every parameter, none of them ever waiting
    hope    the same on the devices that a strategy uses, with the idle time of its pipeline and
            the second forward pass of recomputation

Both are below every simulated step: a kernel is never faster than its class at its best size, cuts
never take operations away, and a pipeline of p stages whose gradients are not split waits (p - 1)/m
of its work at least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from whet.ir.graph import Node
from whet.machine import Topology
from whet.machine.device import Device
from whet.parallel.blocks import Model
from whet.parallel.cut import known
from whet.parallel.placed import Optimizer
from whet.parallel.strategy import Strategy
from whet.parallel.work import arithmetic, shared, work

Kinds = Mapping[tuple[str, str], float]  # (class of kernel, dtype) → operations
UPDATE = ("update", "")  # stands among them with the number of trained parameters


@dataclass(slots=True)
class Bound:
    """Bounds for one model on one cluster.

    Attributes:
        model, cluster: the two.
        optimizer: the bytes of an update.
        ahead, behind: operations of the forward pass, and of the backward pass with the update.
    """

    model: Model
    cluster: Topology
    optimizer: Optimizer
    ahead: Kinds = field(default_factory=dict)
    behind: Kinds = field(default_factory=dict)
    _speeds: dict[Device, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        forward = [_operations(layer.forward) for layer in self.model.layers]
        backward = [_operations(layer.backward) for layer in self.model.layers]
        self.ahead = _sum(forward[n] for n in self.model.order)
        self.behind = _sum(backward[n] for n in self.model.order)
        trained = [
            sum(math.prod(map(known, p.shape)) for p in x.gradients) for x in self.model.layers
        ]
        if total := sum(trained[n] for n in self.model.order):
            self.behind = {**self.behind, UPDATE: float(total)}

    def seconds(self, devices: Iterable[int] | None = None, *, again: float = 0.0) -> float:
        """Seconds that some devices (all by default) take at least.

        Args:
            again: how often the forward pass is computed once more.
        """
        kinds: dict[Device, int] = {}
        for d in range(self.cluster.size) if devices is None else devices:
            device = self.cluster.device(d)
            kinds[device] = kinds.get(device, 0) + 1
        reference = next(iter(kinds))
        ahead = sum(v / self._rate(reference, k) for k, v in self.ahead.items())
        behind = sum(v / self._rate(reference, k) for k, v in self.behind.items())
        # Several kinds of devices: each does what it is comparatively best at.
        return (ahead * (1 + again) + behind) / sum(
            self._speed(device, reference) * count for device, count in kinds.items()
        )

    def _speed(self, device: Device, reference: Device) -> float:
        keys = [*self.ahead, *self.behind]
        if device == reference or not keys:
            return 1.0
        return max(self._rate(device, k) / self._rate(reference, k) for k in keys)

    def hope(self, s: Strategy) -> float:
        """Seconds that a strategy takes at least."""
        used = dict.fromkeys(d for p in s.parts for d in p.devices)
        blocks = sum(p.last - p.first for p in s.parts)
        again = 0.0
        if self.model.training and blocks and all(p.recompute for p in s.parts):
            again = 1.0
        ideal = self.seconds(used, again=again)
        if s.schedule in ("gpipe", "1f1b") and s.groups > 1:
            ideal *= 1 + (s.groups - 1) / s.microbatches
        return ideal

    def speed(self, device: int) -> float:
        """How fast a device is by itself: 1 / seconds of the whole step on it."""
        kind = self.cluster.device(device)
        found = self._speeds.get(kind)
        if found is None:
            total = sum(v / self._rate(kind, k) for k, v in self.ahead.items())
            total += sum(v / self._rate(kind, k) for k, v in self.behind.items())
            found = self._speeds[kind] = 1 / max(total, 1e-12)
        return found

    def _rate(self, device: Device, key: tuple[str, str]) -> float:
        """Operations a second of a class at its best size; parameters a second of the update."""
        if key == UPDATE:
            o = self.optimizer
            width = min(p.dtype.bits // 8 for x in self.model.layers for p in x.gradients)
            stream = device.curve("stream", "")
            speed = max((r for _, r in stream.points), default=device.bandwidth * stream.top)
            # Either the device updates, or its host does and gradients and weights are copied.
            here = speed / (2 * o.state + o.gradient + width)
            return max(here, (device.host or device.bandwidth) / (o.gradient + width))
        kind, dtype = key
        curve = device.curve(kind, dtype)
        if curve.points:
            return max(rate for _, rate in curve.points)
        return device.flops_s(dtype) * curve.top


def _operations(nodes: Sequence[Node]) -> dict[tuple[str, str], float]:
    """Operations of products; gradients of one call share what they compute alike."""
    calls: dict[object, list[Node]] = {}
    for n in nodes:
        base, tilde, _ = n.op.rpartition("~")
        if tilde and work(n).roles:
            attrs = tuple(kv for kv in n.attrs if kv[0] != "out")
            calls.setdefault((base, n.args, attrs), []).append(n)
    part = {n: shared(group) for group in calls.values() if len(group) > 1 for n in group}
    found: dict[tuple[str, str], float] = {}
    for n in nodes:
        w = work(n)
        if w.roles:
            key = (w.kind, arithmetic(n))
            found[key] = found.get(key, 0.0) + w.flops * part.get(n, 1.0)
    return found


def _sum(parts: Iterable[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    total: dict[tuple[str, str], float] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    return total
