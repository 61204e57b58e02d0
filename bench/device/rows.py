"""Results of a device as they come: a file in the shape of `whet bench`, begun again where it ends.

    Result := {"suite", "date", "complete", "versions", "machine", "tries", "records"}
    record := {"model", "system", "median_s", "spread", "optimize_s", "error", "floor_s", …}
            | {"model", "system", "failed": reason}

A model is named with its batch and element type: `resnet50/32/bfloat16`.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.suite import versions, write
from whet.run.cuda import Cuda

Record = dict[str, Any]


@dataclass
class Rows:
    """One part's results.

    Attributes:
        path: the file; the chip and the part are in its name.
        data: what it holds.
    """

    path: Path
    data: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, part: str, cuda: Cuda, pretended: bool) -> Rows:
        """The file of an earlier run on this chip, or a new one."""
        machine = cuda.gpu.machine()
        chip = torch.cuda.get_device_name() if cuda.kind == "cuda" else "pretended"
        stem = f"gpu-{chip.lower().replace(' ', '-')}-{part}"
        found = sorted(folder.glob(f"*-{stem}.json"))
        if found:
            return cls(found[-1], json.loads(found[-1].read_text(encoding="utf-8")))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        data = {
            "suite": f"gpu-{part}", "date": now, "complete": False, "pretended": pretended,
            "versions": versions(), "machine": {**machine.to_json(), "name": chip},
            "tries": {}, "records": [],
        }  # fmt: skip
        return cls(folder / f"{now[:10]}-{stem}.json", data)

    @property
    def records(self) -> list[Record]:
        """All of them, of earlier runs too."""
        found: list[Record] = self.data["records"]
        return found

    def __contains__(self, model: str) -> bool:
        """Whether a model is done."""
        return any(r["model"] == model for r in self.records)

    def begin(self, model: str) -> int:
        """How often it was begun before without having been ended."""
        tries: dict[str, int] = self.data["tries"]
        tries[model] = tries.get(model, 0) + 1
        self.keep()
        return tries[model] - 1

    def add(self, records: Sequence[Record]) -> None:
        """Keeps all records of a model, and shows them."""
        self.records.extend(records)
        self.keep()
        for record in records:
            print(json.dumps(record), flush=True)

    def complete(self, done: bool) -> None:
        """Says whether anything is left."""
        self.data["complete"] = done
        self.keep()

    def keep(self) -> None:
        """Writes the file, whole."""
        write(self.path, json.dumps(self.data, indent=1))

    def summary(self) -> str:
        """Of what has a gain: geometric mean and lowest. What was wrong or failed, counted."""
        lines = []
        for system in dict.fromkeys(r["system"] for r in self.records):
            mine = [r for r in self.records if r["system"] == system and r.get("gain")]
            if mine:
                mean = math.exp(sum(math.log(r["gain"]) for r in mine) / len(mine))
                low = min(mine, key=lambda r: float(r["gain"]))
                lines.append(
                    f"{system}: {len(mine)} rows, geometric mean {mean:.3f}, "
                    f"lowest {low['gain']:.3f} ({low['model']})"
                )
        wrong = [r["model"] for r in self.records if not r.get("right", True)]
        lines += [f"wrong: {', '.join(wrong)}"] if wrong else []
        failed = sum("failed" in r for r in self.records)
        return "\n".join([*lines, f"{len(self.records)} records, {failed} failed", str(self.path)])
