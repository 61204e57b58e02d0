"""What programs run on: this host as one processor, and clusters of devices as plans see them.

Machine   the processor of this process, with measured limits             processor.py
Device    one accelerator or host: peaks, memory, how fast kernels of each class get   device.py
Link      what joins devices: latency, bandwidth, who shares a port       link.py
Cluster   devices in nodes, nodes in a network; presets are YAML          cluster.py, preset.py
Mesh      some devices of a cluster arranged along named axes             mesh.py
"""

from __future__ import annotations

from whet.machine.cluster import Cluster, Level, Node
from whet.machine.device import Curve, Device
from whet.machine.link import Link, Timing
from whet.machine.mesh import Mesh
from whet.machine.preset import cluster, overridden, presets, read, sweep, write
from whet.machine.processor import ISA, Cache, Machine, Rate

__all__ = [
    "ISA",
    "Cache",
    "Cluster",
    "Curve",
    "Device",
    "Level",
    "Link",
    "Machine",
    "Mesh",
    "Node",
    "Rate",
    "Timing",
    "cluster",
    "overridden",
    "presets",
    "read",
    "sweep",
    "write",
]
