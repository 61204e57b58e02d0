"""One operator as its naive loop nest, over memory of any strides: right, simple, and not fast.

What no other backend takes runs through this, so that a whole graph always becomes one program. The
outermost loops are shared among threads; nothing else is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from whet.backend.piece import Generated, Piece, Strides, Value
from whet.errors import RecordError, UnsupportedError
from whet.ir.expr import Expr, Index, loads
from whet.ir.graph import Node
from whet.ir.nest import (
    PRELUDE,
    Combine,
    Declare,
    For,
    Nest,
    Printer,
    Stmt,
    Store,
    nest,
    statements,
)
from whet.ir.ops import exists
from whet.ir.record import Instance

MINIMUM = 1 << 13  # turns of a nest that are worth a second thread


def naive(node: Node, operands: tuple[Value, ...], result: Value) -> Piece:
    """A piece that computes `node`.

    Args:
        node: of the operator table, over concrete sizes.
        operands: of those that are present, as they lie in memory.
        result: the node's own.

    Raises:
        UnsupportedError: it has no record, or an element type that C lacks.
    """
    if not exists(node.op):
        raise UnsupportedError("a library call has no loops", got=node.op)
    bound = node.instance
    types = {n: a.dtype for n, a in zip(bound.operands, node.operands, strict=True)}
    out = str(node.attr("out") or bound.outs[0])
    fixed = {out: node.dtype} if node.attr("dtype") is not None else {}
    loops = nest(bound, types, fixed)
    strides = {
        name: _atomic(bound, name, v.strides)
        for name, v in zip(bound.operands, operands, strict=True)
    }
    strides[out] = _atomic(bound, out, result.strides)
    try:
        printer = _Strided(loops, strides, out)
        body = printer.unit("SYMBOL")
    except RecordError as fault:
        raise UnsupportedError(
            f"no loops for {node.op}", expected=fault.expected, got=fault.got
        ) from fault
    symbol = f"naive_{node.op}_{hashlib.blake2b(body.encode(), digest_size=8).hexdigest()}"
    call = Generated(symbol, body.replace("SYMBOL", symbol, 1), printer.scratch)
    same = tuple(
        (k, 0) for k, (name, v) in enumerate(zip(bound.operands, operands, strict=True))
        if elementwise(loops, k) and strides[name] == strides[out] and v.bytes == result.bytes
        and v.node.dtype == node.dtype
    )  # fmt: skip
    return Piece((node,), operands, (result,), call, same)


def elementwise(loops: Nest, operand: int) -> bool:
    """Whether each element of the operand is read at its own place only, before it is written."""
    inputs = [b for b in loops.buffers if b.role == "in"]
    if sum(b.role != "in" for b in loops.buffers) != 1:
        return False
    name = inputs[operand].name
    body: tuple[Stmt, ...] = loops.body
    axes = []
    while len(body) == 1 and isinstance(body[0], For):
        axes.append(body[0].axis)
        body = body[0].body
    store = body[0]
    if len(body) != 1 or not isinstance(store, Store):
        return False
    plain = tuple(Index(a) for a in axes)
    read = [x for x in loads(store.value) if x.tensor == name]
    return all(x.index == plain and x.outside is None for x in read)


def _atomic(bound: Instance, name: str, strides: Strides) -> tuple[int, ...]:
    """Strides of a tensor's atomic axes, in the order that loads index them."""
    slots = bound.operands.get(name) or bound.results[name]
    found: list[int] = []
    for axes, dim in zip(slots.axes, slots.dims, strict=True):
        step, inner = strides[dim], []
        for a in reversed(axes):
            inner.append(step)
            step *= int(str(bound.extents[a]))
        found += reversed(inner)
    return tuple(found)


class _Strided(Printer):
    """Prints a nest whose parameters have strides and whose temporaries lie in scratch memory."""

    def __init__(self, n: Nest, strides: Mapping[str, tuple[int, ...]], out: str) -> None:
        super().__init__(n)
        self.strides = dict(strides)
        self.out = out
        self.places: dict[str, int] = {}
        self.scratch = 0
        for b in n.buffers:
            if b.name in strides:
                continue
            count, steps = 1, []
            for size in reversed(b.sizes):
                steps.append(count)
                count *= int(str(size))
            self.strides[b.name] = tuple(reversed(steps))
            self.places[b.name] = self.scratch
            self.scratch += -(-max(count, 1) * (b.dtype.bits // 8) // 64) * 64

    def unit(self, name: str) -> str:
        """The whole compilation unit."""
        lines = [PRELUDE, f"void {name}(void *const *args, void *scratch) {{", "  (void)scratch;"]
        inputs = [b for b in self.nest.buffers if b.role == "in"]
        for b in self.nest.buffers:
            kind = self._ctype(b.dtype)
            if b.name in self.places:
                place = f"(char *)scratch + {self.places[b.name]}"
            else:
                place = f"args[{inputs.index(b) if b in inputs else len(inputs)}]"
            const = "const " if b.role == "in" else ""
            lines.append(f"  {const}{kind} *{b.name} = ({const}{kind} *)({place});")
        for s in self.nest.body:
            if isinstance(s, For) and _turns(s) >= MINIMUM and not _folds(s):
                depth = _depth(s)
                lines.append(f"  #pragma omp parallel for collapse({depth})")
            lines += self._statement(s, "  ")
        return "\n".join([*lines, "}", ""])

    def _element(self, tensor: str, index: tuple[Expr, ...]) -> str:  # type: ignore[override]
        steps = zip(index, self.strides[tensor], strict=True)
        parts = [f"({self.text(i)}) * {step}" for i, step in steps]
        return f"{tensor}[{' + '.join(parts) or 0}]"


def _turns(s: For) -> int:
    inner = max((_turns(x) for x in s.body if isinstance(x, For)), default=1)
    return int(str(s.extent)) * inner


def _folds(s: For) -> bool:
    """Whether turns of a loop meet in a local that is declared outside of it: a reduction to one
    element, which threads must not share."""
    every = list(statements((s,)))
    own = {x.local for x in every if isinstance(x, Declare)}
    return not {x.local for x in every if isinstance(x, Combine)} <= own


def _depth(s: For) -> int:
    """How many loops are perfectly nested, so that their turns can be dealt out together."""
    (inner, *more) = s.body
    return 1 + (_depth(inner) if isinstance(inner, For) and not more else 0)
