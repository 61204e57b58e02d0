"""A topology: devices in nodes, nodes in a network, and how they are joined at each level.

    Topology := name Node+ Level+ Timing*        levels above the nodes, the innermost first
    Node    := count Device Level*              levels inside a node, the innermost first
    Level   := name units Link                  an instance joins `units` units of the one below

Devices are numbered node by node. Two devices meet at the innermost level that holds both; what
they exchange passes the links of all levels up to there, so the slowest sets the pace.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from whet.errors import WhetError
from whet.machine.device import PROCESS, Device
from whet.machine.link import Link, Timing
from whet.machine.mesh import Mesh, Span


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the hierarchy: `units` units joined by `link`; 0 units: as many as there are."""

    name: str
    units: int
    link: Link


@dataclass(frozen=True, slots=True)
class Node:
    """`count` equal nodes: one kind of device, joined by the levels inside.

    A node without levels is one device.
    """

    count: int
    device: Device
    inside: tuple[Level, ...] = ()

    @property
    def devices(self) -> int:
        """Devices of one node."""
        total = 1
        for level in self.inside:
            total *= level.units
        return total


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that a plan is made for.

    Attributes:
        name: as in the preset, with what was changed.
        nodes: kinds of nodes, in the order in which devices are numbered.
        network: levels above the nodes.
        timings: collectives as measured; they go before what links predict.
        about, sources: for readers.
    """

    name: str
    nodes: tuple[Node, ...]
    network: tuple[Level, ...]
    timings: tuple[Timing, ...] = ()
    about: str = ""
    sources: tuple[str, ...] = ()
    _memo: dict[object, object] = field(default_factory=dict, compare=False, repr=False, hash=False)

    @property
    def size(self) -> int:
        """How many devices there are."""
        return sum(node.count * node.devices for node in self.nodes)

    @property
    def here(self) -> bool:
        """Whether its devices are processes, which any host can start."""
        return all(node.device.name == PROCESS for node in self.nodes)

    def device(self, index: int) -> Device:
        """The device of that number.

        Raises:
            WhetError: there are not so many.
        """
        left = index
        for node in self.nodes:
            if 0 <= left < node.count * node.devices:
                return node.device
            left -= node.count * node.devices
        raise WhetError(
            f"{self.name} has no device {index}", expected=f"0 to {self.size - 1}", got=index
        )

    def kinds(self, devices: Iterable[int] | None = None) -> tuple[Device, ...]:
        """The different devices among these (all by default), in order of first use."""
        if devices is None:
            return tuple(dict.fromkeys(node.device for node in self.nodes))
        return tuple(dict.fromkeys(self.device(d) for d in devices))

    @property
    def depth(self) -> int:
        """Levels of the hierarchy; nodes with fewer levels inside skip the outer ones of these."""
        return max(len(node.inside) for node in self.nodes) + len(self.network)

    def path(self, index: int) -> tuple[int, ...]:
        """The instance of each level that holds a device, the innermost first.

        Where a node has fewer levels than another, the instance is the node itself.
        """
        memo = self._memo.setdefault("paths", {})
        assert isinstance(memo, dict)
        found = memo.get(index)
        if found is None:
            found = memo[index] = self._path(index)
        assert isinstance(found, tuple)
        return found

    def _path(self, index: int) -> tuple[int, ...]:
        inside = max(len(node.inside) for node in self.nodes)
        left, nodes, first = index, 0, 0
        for node in self.nodes:
            here = node.count * node.devices
            if left < here:
                break
            left, nodes, first = left - here, nodes + node.count, first + here
        else:
            self.device(index)
        unit, units = left, 1
        path: list[int] = []
        for level in node.inside:
            units *= level.units
            unit = left // units
            path.append(first + unit * units)  # named by its first device: unique in the topology
        place = nodes + left // node.devices
        whole = first + (left // node.devices) * node.devices
        path += [whole] * (inside - len(path))
        for level in self.network:
            place = place // level.units if level.units else 0
            path.append(place)
        return tuple(path)

    def link(self, level: int, index: int) -> Link:
        """The link at one level of the hierarchy, as a device meets it."""
        found = self._memo.get((level, index))
        if found is None:
            found = self._memo[level, index] = self._link(level, index)
        assert isinstance(found, Link)
        return found

    def _link(self, level: int, index: int) -> Link:
        inside = max(len(node.inside) for node in self.nodes)
        if level >= inside:
            return self.network[level - inside].link
        left = index
        for node in self.nodes:
            here = node.count * node.devices
            if left < here:
                return node.inside[min(level, len(node.inside) - 1)].link
            left -= here
        raise WhetError(f"{self.name} has no device {index}")

    def links(self, level: int, mesh: Mesh) -> tuple[Link, ...]:
        """The different links that a mesh's devices meet at one level of the hierarchy."""
        key = ("links", level, mesh)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = tuple({self.link(level, d): None for d in mesh.devices})
        assert isinstance(found, tuple)
        return found

    def meeting(self, a: int, b: int) -> int:
        """The innermost level that holds both devices."""
        for level, (x, y) in enumerate(zip(self.path(a), self.path(b), strict=True)):
            if x == y:
                return level
        raise WhetError(
            f"devices {a} and {b} are not joined",
            where=self.name,
            hint="give the machine a network level without a number of units",
        )

    def spans(
        self, mesh: Mesh, axes: Sequence[str], others: tuple[Mesh, ...] = ()
    ) -> tuple[Span, ...]:
        """How the groups of a mesh along some axes use each level that they cross.

        Args:
            mesh: the devices.
            axes: of the groups.
            others: meshes whose groups along the same axes communicate at the same time.
        """
        key = ("spans", mesh, tuple(axes), others)
        found = self._memo.get(key)
        if found is None:
            beside = [
                group
                for other in others
                if all(a in dict(other.axes) for a in axes)
                for group in other.groups(axes)
            ]
            found = self._memo[key] = self._spans(mesh.groups(axes), beside)
        assert isinstance(found, tuple)
        return found

    def _spans(
        self, groups: Sequence[tuple[int, ...]], beside: Sequence[tuple[int, ...]]
    ) -> tuple[Span, ...]:
        spans = []
        for level in range(self.depth):
            units = members = 0
            leaving: Counter[int] = Counter()
            talking: dict[int, set[int]] = {}
            own: set[int] = set()
            for number, group in enumerate((*groups, *beside)):
                for instance, count in self._inside(group, level).items():
                    if len(count) < 2:
                        continue
                    leaving.update(count.keys())
                    talking.setdefault(instance, set()).update(count.keys())
                    if number < len(groups):
                        own.update(count.keys())
                        units = max(units, len(count))
                        members = max(members, *count.values())
            if units:
                total = max(len(t) for t in talking.values() if t & own)
                spans.append(Span(level, units, members, max(leaving[u] for u in own), total))
        return tuple(spans)

    def _inside(self, group: Sequence[int], level: int) -> dict[int, Counter[int]]:
        """Devices of a group by unit of the level below, for each instance of the level."""
        inside: dict[int, Counter[int]] = {}
        for d in group:
            path = self.path(d)
            unit = path[level - 1] if level else d
            inside.setdefault(path[level], Counter())[unit] += 1
        return inside

    def timing(self, what: str, ranks: int) -> Timing | None:
        """The measured collective of that name and number of ranks, if there is one."""
        return next((t for t in self.timings if (t.what, t.ranks) == (what, ranks)), None)

    def fingerprint(self) -> str:
        """Equal exactly for topologies that behave alike; names and sources do not count."""
        text = repr((self.nodes, self.network, self.timings))
        return f"{re.split('[:,]', self.name)[0]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
