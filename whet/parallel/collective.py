"""What a collective costs on a topology, by algorithm, and which links it uses.

    all_reduce      ring | tree | hierarchical
    all_gather, reduce_scatter      ring | halving | hierarchical
    all_to_all      pairwise          broadcast      tree

A library picks its algorithm by size and place; so does this: the cheapest one. Bandwidth terms are
those of the most loaded link of each level that a group crosses, shared with the other groups of
the same mesh axes, which work at the same time. Where a collective was measured on a machine, with
as many ranks, the measurement goes before the model.

Sources: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in
MPICH", IJHPCA 2005 (ring, recursive halving and doubling); Sanders, Speck, Träff, "Two-tree
algorithms for full bandwidth broadcast, reduction and scan", 2009, which NCCL's trees follow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from whet.errors import WhetError
from whet.machine import Mesh, Topology
from whet.parallel.placed import COLLECTIVES, Placed


@dataclass(frozen=True, slots=True)
class Hop:
    """One level that groups cross.

    Attributes:
        level: of the hierarchy.
        ranks: units of the level in a group.
        members: devices of a group in one of them.
        latency: seconds of a message.
        flow: bytes a second at which a group gets out of a unit.
    """

    level: int
    ranks: int
    members: int
    latency: float
    flow: float


def hops(
    topology: Topology, mesh: Mesh, axes: Sequence[str], others: tuple[Mesh, ...] = ()
) -> tuple[Hop, ...]:
    """The levels that groups of a mesh along some axes cross, the innermost first.

    Args:
        others: meshes that communicate along the same axes at the same time; see `neighbours`.
    """
    found = []
    for span in topology.spans(mesh, axes, others):
        # The slowest link of the level among the kinds of nodes that take part.
        links = topology.links(span.level, mesh)
        flow = min(link.flow(span.members, span.groups, span.total) for link in links)
        latency = max(link.latency for link in links)
        found.append(Hop(span.level, span.units, span.members, latency, flow))
    return tuple(found)


def seconds(
    topology: Topology,
    mesh: Mesh,
    what: str,
    axes: Sequence[str],
    bytes: float,
    others: tuple[Mesh, ...] = (),
) -> tuple[float, str]:
    """Seconds that a collective takes when its links serve nothing else, and the algorithm.

    Args:
        what: one of `COLLECTIVES`.
        bytes: of the whole tensor of a group; see `Step.bytes`.
        others: meshes that communicate along the same axes at the same time.

    Raises:
        WhetError: no such collective.
    """
    if what not in COLLECTIVES:
        raise WhetError("no such collective", expected=", ".join(COLLECTIVES), got=what)
    ranks = mesh.size(*axes)
    if ranks == 1:
        return 0.0, "none"
    measured = topology.timing(what, ranks)
    if measured is not None:
        return measured.seconds(bytes), "measured"
    path = hops(topology, mesh, axes, others)
    return min((cost, name) for name, cost in _algorithms(what, path, ranks, bytes).items())


def _algorithms(what: str, path: tuple[Hop, ...], ranks: int, bytes: float) -> dict[str, float]:
    slowest = min(hop.flow for hop in path)
    latency = max(hop.latency for hop in path)
    rounds = math.ceil(math.log2(ranks))
    part = bytes * (ranks - 1) / ranks / slowest  # once around, without each rank's own share
    match what:
        case "all_reduce":
            found = {
                "ring": 2 * part + 2 * (ranks - 1) * latency,
                "tree": 2 * bytes / slowest + 2 * rounds * latency,
            }
            if len(path) > 1:
                found["hierarchical"] = 2 * _by_level(path, bytes)
        case "all_gather" | "reduce_scatter":
            found = {"ring": part + (ranks - 1) * latency}
            if len(path) == 1 and ranks & (ranks - 1) == 0:
                found["halving"] = part + rounds * latency
            if len(path) > 1:
                found["hierarchical"] = _by_level(path, bytes)
        case "all_to_all":
            found = {"pairwise": _exchange(path, ranks, bytes)}
        case _:
            found = {"tree": bytes / slowest + rounds * latency}
    return found


def _by_level(path: tuple[Hop, ...], bytes: float) -> float:
    """Scatter or gather level by level: the outer levels move what the inner ones left of it.

    All members of a unit take part in the outer level, each with its part of the tensor, so the
    unit's flow out serves the whole of what is left.
    """
    total, left = 0.0, bytes
    for hop in path:
        # `flow` is of a group out of a unit; its members carry equal parts side by side.
        total += left * hop.members * (hop.ranks - 1) / hop.ranks / hop.flow
        total += math.ceil(math.log2(hop.ranks)) * hop.latency
        left /= hop.ranks
    return total


def _exchange(path: tuple[Hop, ...], ranks: int, bytes: float) -> float:
    """Each rank sends 1/ranks of its bytes to each other one; every level carries what crosses."""
    slowest, rounds = 0.0, 0
    for hop in path:
        # Of what a unit's members send, the part for ranks in other units.
        crossing = hop.members * bytes * (ranks - hop.members) / ranks
        slowest = max(slowest, crossing / hop.flow)
        rounds = max(rounds, hop.ranks - 1)
    return slowest + min(rounds, 2 * math.ceil(math.log2(ranks))) * max(h.latency for h in path)


def neighbours(topology: Topology, meshes: Sequence[Mesh]) -> tuple[tuple[Mesh, ...], ...]:
    """Of each mesh, the others that share a node, a board or a medium with it.

    Groups of a pipeline work at the same time, so what leaves a node along an axis of one mesh
    shares the node's ports with what leaves it along the same axis of the others there.
    """
    places = []
    for mesh in meshes:
        found = set()
        for d in mesh.devices:
            path = topology.path(d)
            for level, instance in enumerate(path):
                if level < len(path) - 1 or topology.link(level, d).medium:
                    found.add((level, instance))
        places.append(found)
    return tuple(
        tuple(other for j, other in enumerate(meshes) if j != k and places[j] & places[k])
        for k in range(len(meshes))
    )


@dataclass(frozen=True, slots=True)
class Channel:
    """Messages from one group of devices to another.

    Attributes:
        source, target: the groups.
        ticks: picoseconds of one message, alone.
        claims: what it shares with other channels: each stands for the ports, too narrow for all
            channels that pass them, that the same channels pass.
    """

    source: int
    target: int
    ticks: int
    claims: tuple[int, ...] = ()


Ports = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class _Route:
    """Seconds of a message, and how many pairs of devices use each port on its way."""

    seconds: float
    load: tuple[tuple[Ports, int], ...]


def channels(topology: Topology, placed: Placed) -> dict[tuple[int, int], Channel]:
    """The messages between neighbouring stages of a placed model: (from, to) → channel.

    Each device sends to its counterpart; where the stages differ in size, several share one.
    """
    routes: dict[tuple[int, int], _Route] = {}
    for k in range(len(placed.stages) - 1):
        for a, b in ((k, k + 1), (k + 1, k)) if placed.training else ((k, k + 1),):
            source, target = placed.stages[a].mesh, placed.stages[b].mesh
            routes[a, b] = _route(topology, source, target, placed.stages[k].output)
    users: dict[Ports, dict[tuple[int, int], int]] = {}
    for (a, b), route in routes.items():
        pair = (a % placed.groups, b % placed.groups)
        for port, pairs in route.load:
            users.setdefault(port, {})[pair] = pairs
    # Ports that the same channels pass are one: all of them are shared alike.
    alike: dict[frozenset[tuple[int, int]], int] = {}
    narrow = {
        port: alike.setdefault(frozenset(by_pair), len(alike))
        for port, by_pair in users.items()
        if len(by_pair) > 1 and sum(by_pair.values()) > _ports(topology, port)
    }
    return {
        (a, b): Channel(
            a % placed.groups,
            b % placed.groups,
            round(route.seconds * 10**12),
            tuple(sorted({narrow[port] for port, _ in route.load if port in narrow})),
        )
        for (a, b), route in routes.items()
    }


def _ports(topology: Topology, port: Ports) -> int:
    level, unit, direction = port
    return 1 if direction == "both" else topology.link(level, max(unit, 0)).ports


def _route(topology: Topology, source: Mesh, target: Mesh, bytes: float) -> _Route:
    if bytes <= 0 or source == target:
        return _Route(0.0, ())
    pairs = max(len(source.devices), len(target.devices))
    part = bytes * len(source.devices) / pairs
    ends = [
        (
            source.devices[k * len(source.devices) // pairs],
            target.devices[k * len(target.devices) // pairs],
        )
        for k in range(pairs)
    ]
    load: Counter[Ports] = Counter()
    rows = []
    for a, b in ends:
        top = topology.meeting(a, b)
        ports = [p for level in range(top + 1) for p in _used(topology, level, a, b)]
        load.update(ports)
        rows.append((a, b, top, ports))
    worst = 0.0
    for a, b, top, ports in rows:
        time = 0.0
        for port in ports:
            link = topology.link(port[0], a if port[2] != "in" else b)
            time = max(time, part / link.flow(1, load[port], 1))
        latency = max(topology.link(top, a).latency, topology.link(top, b).latency)
        worst = max(worst, time + latency)
    return _Route(worst, tuple(sorted(load.items())))


def _used(topology: Topology, level: int, a: int, b: int) -> list[Ports]:
    """The ports of one level that a message from a to b passes: out of one unit, into another."""
    found: list[Ports] = []
    for end, direction in ((a, "out"), (b, "in")):
        path = topology.path(end)
        if topology.link(level, end).medium:
            port = (level, path[level], "both")
        else:
            # A unit is named by its first device, so that its link can be looked up.
            port = (level, path[level - 1] if level else end, direction)
        if port not in found:
            found.append(port)
    return found
