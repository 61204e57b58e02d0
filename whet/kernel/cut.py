"""How a kernel is cut for a device that runs a program for each tile."""

from __future__ import annotations

from dataclasses import dataclass

ROW = 4096  # elements of a row that a tile takes at once
TILE = 2048  # elements of a tile without products
HELD = 1 << 16  # elements of all tiles that a program may hold


@dataclass(frozen=True, slots=True)
class Cut:
    """How a kernel is cut for such a device.

    Attributes:
        rows, columns, depth: of a product's tile, and of what it sums at a time.
        warps, stages, precision: see `whet.kernel.block.Launch`.
        splits: parts that a sum is taken in, by programs of their own.
        group: tiles of rows that programs take before the next tile of columns, so that what is
            read stays in the L2 cache; 1 for rows after rows.
        persistent, beside: see `whet.kernel.block.Launch`.
        row: elements of a row at once, and elements of a tile without products.
    """

    rows: int = 64
    columns: int = 64
    depth: int = 32
    warps: int = 4
    stages: int = 3
    precision: str = "ieee"
    splits: int = 1
    group: int = 1
    row: int = ROW
    tile: int = TILE
    persistent: int = 0
    beside: bool = False

    def __str__(self) -> str:
        text = f"{self.rows}x{self.columns}x{self.depth} w{self.warps} s{self.stages}"
        text += f" /{self.splits}" if self.splits > 1 else ""
        text += f" g{self.group}" if self.group > 1 else ""
        text += f" p{self.persistent}" if self.persistent else ""
        text += " beside" if self.beside else ""
        return text + (f" r{self.row}" if self.row != ROW else "")
