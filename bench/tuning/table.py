"""Tables of schedules that were all measured once: a search can be replayed over them in no time.

    Table := name, device, parameters, rows             row: a value for each parameter, and seconds

`read_kernel_tuner` reads the cache files that Kernel Tuner writes (van Werkhoven, FGCS 2019): one
JSON object, `tune_params_keys` naming the parameters and `cache` holding one object a
configuration, with the time in milliseconds or the name of the failure.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from whet.errors import InputError
from whet.kernel.process import Array

Row = tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """Everything that was measured of one task on one device.

    Attributes:
        task: what the schedules compute; tables of one task have the same parameters.
        device: on what they were measured.
        parameters: names, in the order of a row's values.
        seconds: of each row; infinity where it failed.
    """

    task: str
    device: str
    parameters: tuple[str, ...]
    seconds: Mapping[Row, float]

    @property
    def name(self) -> str:
        return f"{self.task}@{self.device}"

    @cached_property
    def best(self) -> float:
        """Seconds of the fastest row."""
        return min(self.seconds.values())

    @cached_property
    def values(self) -> tuple[tuple[float, ...], ...]:
        """The values that each parameter takes, in ascending order."""
        return tuple(tuple(sorted(set(column))) for column in zip(*self.seconds, strict=True))

    def features(self, rows: Sequence[Row]) -> Array:
        """(n, d): each parameter that varies, as a logarithm where it is a size; and products.

        Products of two sizes are what hardware limits: threads of a block, elements of a tile.
        """
        x = np.asarray(rows, dtype=np.float64)
        sizes = [k for k, v in enumerate(self.values) if len(v) > 2 and v[0] > 0]
        flags = [k for k, v in enumerate(self.values) if len(v) > 1 and k not in sizes]
        logs = np.log2(x[:, sizes]) if sizes else x[:, :0]
        return np.concatenate([logs, x[:, flags]], axis=1)

    def relations(self, rows: Sequence[Row]) -> Array:
        """(n, d'): `features`, and the logarithm of the product of every two and three sizes."""
        base = self.features(rows)
        count = sum(len(v) > 2 and v[0] > 0 for v in self.values)
        logs = base[:, :count].T
        pairs = [logs[a] + logs[b] for a in range(count) for b in range(a)]
        threes = [
            logs[a] + logs[b] + logs[c] for a in range(count) for b in range(a) for c in range(b)
        ]
        return np.concatenate([base, *(p[:, None] for p in (*pairs, *threes))], axis=1)


def read_kernel_tuner(path: Path) -> Table:
    """Reads a cache file, plain or gzipped.

    Raises:
        InputError: there is none, it is no cache, or nothing in it ran.
    """
    try:
        raw = path.read_bytes()
        data: Any = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
        names = tuple(map(str, data["tune_params_keys"]))
        seconds = {
            tuple(float(entry[name]) for name in names): _seconds(entry["time"])
            for entry in data["cache"].values()
        }
        table = Table(str(data["kernel_name"]), str(data["device_name"]), names, seconds)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise InputError(
            "this is no cache of Kernel Tuner that can be read", where=path,
            expected="JSON with kernel_name, device_name, tune_params_keys and cache",
            got=f"{type(fault).__name__}: {fault}",
        ) from fault  # fmt: skip
    if not math.isfinite(min(seconds.values(), default=math.inf)):
        raise InputError("nothing ran in this cache of Kernel Tuner", where=path)
    return table


def _seconds(time: object) -> float:
    """Milliseconds as seconds; failures are strings, or numbers beyond all measure (1e20)."""
    if isinstance(time, (int, float)) and 0 < time < 1e19:
        return float(time) / 1e3
    return math.inf
