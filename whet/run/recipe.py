"""How a program of a device is made again: what was decided, as data that a file can hold.

    recipe := kind, gpu, precision, partition, schedules {group: text}
    kind   := one of `whet.run.launched`: graphed, channels, tiles, compiled, searched

A program on a device is a recording, which no file can hold; its recipe can. Making it again
searches for nothing: groups are cut as they were, and each has the kernel that was decided for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from whet.errors import StoreError, UnsupportedError
from whet.kernel.block import launch_of
from whet.kernel.legal import Illegal
from whet.kernel.limits import fits
from whet.kernel.loops import Kernel
from whet.kernel.schedule import Schedule
from whet.machine.gpu import Gpu

FILE = "device.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """See the module's docstring.

    Attributes:
        kind: how the body is run.
        gpu: name of the device that it was decided on.
        precision: of products of float32 in generated kernels: "ieee" or "tf32".
        partition: the groups, as text of `whet.fuse.partition`; empty where there are none.
        schedules: of generated kernels, by the digest of their group.
    """

    kind: str
    gpu: str
    precision: str = "ieee"
    partition: str = ""
    schedules: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Writes it where `load` finds it."""
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1)
        Path(folder, FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Recipe:
        """The recipe in a folder.

        Raises:
            StoreError: there is none, or one of another version.
        """
        try:
            data = json.loads(Path(folder, FILE).read_text(encoding="utf-8"))
            if data.pop("version") != VERSION:
                raise KeyError("version")
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise StoreError(
                "a program for a device cannot be read", where=Path(folder, FILE), got=fault,
                hint="optimize the model again with this version of whet",
            ) from fault  # fmt: skip


def held(k: Kernel, moves: Schedule, gpu: Gpu) -> None:
    """Refuses a kernel that was decided on another device, and is too large for this one.

    Raises:
        UnsupportedError: says the number.
    """
    why: Illegal | None = fits(k, launch_of(moves), gpu)
    if why is not None:
        raise UnsupportedError(
            "a kernel of the program does not fit this device", expected=gpu.name, got=str(why),
            hint="optimize the model again here",
        )  # fmt: skip
