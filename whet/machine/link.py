"""What joins devices: a link of one level of the hierarchy, and measured collectives.

    Link   := name latency bandwidth ports medium efficiency
    Timing := what ranks (bytes, seconds)*           one collective, measured at some sizes

A link joins the units of one level: devices in a node, nodes in a network. Each unit has `ports`
ports; a port carries `bandwidth` in each direction at once. In a `medium` there is one port for all
units together, and both directions share it: a bus, or the memory of a host.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """One kind of link.

    Attributes:
        name: how the level's unit refers to it.
        latency: seconds that the first byte takes, software included.
        bandwidth: bytes a second of one port, in one direction.
        ports: ports of each unit that it joins; a device uses one at a time.
        medium: all units share one port, for both directions.
        efficiency: the share of the bandwidth that a library's collectives reach on large messages.
    """

    name: str
    latency: float
    bandwidth: float
    ports: int = 1
    medium: bool = False
    efficiency: float = 1.0

    def flow(self, members: int, groups: int, units: int) -> float:
        """Bytes a second at which one of several equal groups gets out of a unit.

        Args:
            members: devices of the group inside the unit; each uses one port.
            groups: groups that leave the same unit at once.
            units: units that communicate; they share a medium.
        """
        if self.medium:
            share = 1.0 / max(1, groups * units)
        else:
            share = min(self.ports / max(1, groups), float(members))
        return self.bandwidth * self.efficiency * share


@dataclass(frozen=True, slots=True)
class Timing:
    """A collective as it was measured.

    Attributes:
        what: "all_reduce", "all_gather", …
        ranks: how many took part.
        points: (bytes of the whole tensor, seconds), the fewest bytes first.
    """

    what: str
    ranks: int
    points: tuple[tuple[int, float], ...]

    def seconds(self, bytes: float) -> float:
        """Between two sizes on the straight line; beyond the last in proportion to its bandwidth.

        The bandwidth beyond the last size is that between the last two.
        """
        sizes = [size for size, _ in self.points]
        at = bisect_left(sizes, bytes)
        if at == 0 or len(self.points) == 1:
            return self.points[0][1]
        at = min(at, len(self.points) - 1)
        (x0, y0), (x1, y1) = self.points[at - 1], self.points[at]
        return max(y0 + (bytes - x0) * (y1 - y0) / (x1 - x0), 0.0)
