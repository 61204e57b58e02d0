"""What programs run on: this host as one processor, and devices with links as plans see them.

Machine   the processor of this process, with measured limits           processor.py
Device    an accelerator or host: peaks, memory, what kernels get       device.py
Link      what joins devices: latency, bandwidth, who shares a port     link.py
Topology  devices in nodes, nodes in a network; presets are YAML        topology.py, preset.py
Mesh      some devices of a topology, arranged along named axes         mesh.py
"""

from __future__ import annotations

from whet.machine.device import Curve, Device
from whet.machine.link import Link, Timing
from whet.machine.mesh import Mesh
from whet.machine.preset import overridden, presets, read, sweep, topology, write
from whet.machine.processor import ISA, Cache, Machine, Rate
from whet.machine.topology import Level, Node, Topology

__all__ = [
    "ISA",
    "Cache",
    "Curve",
    "Device",
    "Level",
    "Link",
    "Machine",
    "Mesh",
    "Node",
    "Rate",
    "Timing",
    "Topology",
    "overridden",
    "presets",
    "read",
    "sweep",
    "topology",
    "write",
]
