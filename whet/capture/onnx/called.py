"""Library calls that ONNX has an operator for, although the table has no record.

target → (writer, operands, arguments, keywords) → names of the results
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from whet.backend.library import Operand, read_call
from whet.capture.onnx.writer import Writer
from whet.ir.graph import Node

Values = Sequence[str | int | bool]


def written(w: Writer, n: Node, args: Sequence[str | None]) -> tuple[str, ...] | None:
    """An opaque node's results by name; None for a call that ONNX has nothing for."""
    target, values, named = read_call(str(n.attr("statics")))
    row = ROWS.get(target)
    if row is None:
        return None
    given = [args[v.index] if isinstance(v, Operand) else v for v in values]
    return row(w, *given, **named)


def topk(
    w: Writer, x: str, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[str, ...]:
    """The k largest or smallest along a dim, and where they stand."""
    return w.several(
        "TopK", 2, x, w.ints(k), axis=dim, largest=int(largest), sorted=int(sorted)
    )  # fmt: skip


ROWS: Mapping[str, Callable[..., tuple[str, ...]]] = {"aten.topk.default": topk}
