"""The core of a kernel: the reduction that it spends its time in, and along which axes to cut it.

    init     for f…: t[f] = neutral element
    core     for f…: for r…: t[f] how= e(loads)
    home     for f…: y[f] = e(t[f], loads) …        the one nest that reads t, element by element

Vectors run along an axis where the result lies together and every operand lies together, stands
still, or is a parameter, which can be laid out ahead of time. Rows run along another axis where
operands stand still, so that what was loaded serves all of them (Goto and van de Geijn, "Anatomy of
high-performance matrix multiplication", TOMS 2008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Expr, Index
from whet.kernel.affine import CHUNK, LANE, Domain, by_value, form
from whet.kernel.draft import nest, turns, weighed
from whet.kernel.legal import around
from whet.kernel.loops import Kernel, Loop, Store, Update, accesses, leaves


@dataclass(frozen=True, slots=True)
class Core:
    """See the module's docstring.

    Attributes:
        buffer: what the reduction accumulates in.
        update: its statement.
        free, reduced: its loops, outermost first.
        home: loops of the nest that reads the result.
        stores: that nest's statements.
        twins: loops of `home`, with the loops of the reduction that they follow.
        vector, row: loops of `home` for vectors and rows; "" where nothing serves as rows.
    """

    buffer: str
    update: Update
    free: tuple[Loop, ...]
    reduced: tuple[Loop, ...]
    home: tuple[Loop, ...]
    stores: tuple[Store, ...]
    twins: Mapping[str, str]
    vector: str = ""
    row: str = ""

    @property
    def dim(self) -> int:
        """The accumulator's dim along which vectors run."""
        return self.update.index.index(Index(self.twins[self.vector]))

    @property
    def domain(self) -> Domain:
        """Loops around the update."""
        return around((*self.free, *self.reduced))

    def extent(self, var: str) -> int:
        """Turns of one of home's loops; 1 for ""."""
        return next((turns(s) for s in self.home if s.var == var), 1)


def core(k: Kernel, fixed: frozenset[str], lanes: int = 1) -> Core | None:
    """The heaviest reduction of a kernel, if it has a home and an axis for vectors.

    Args:
        k: with cheap values inlined.
        fixed: inputs that may be laid out ahead of time.
        lanes: of a vector, all of which may be picked from one vector of an operand.
    """
    updates = [(count, s) for s, count in weighed(k) if isinstance(s, Update)]
    if not updates:
        return None
    update = max(updates, key=lambda cs: cs[0])[1]
    if not k.buffer(update.buffer).is_scratch:
        return None
    path = next(path for leaf, path, _ in leaves(k.body) if leaf is update)
    loops = tuple(s for s in path if isinstance(s, Loop))
    own = {v for i in update.index for v in ex.free(i)}
    readers = [s for s in k.body if _reads(s, update.buffer)]
    if len(readers) != 1 or not isinstance(readers[0], Loop):
        return None
    home = tuple(nest(readers[0]))
    stores = tuple(s for s in home[-1].body if isinstance(s, Store))
    if len(stores) != len(home[-1].body):
        return None
    found = Core(
        update.buffer, update, tuple(s for s in loops if s.var in own),
        tuple(s for s in loops if s.var not in own), home, stores, _twins(stores, update),
    )  # fmt: skip
    vector = _vector(k, found, fixed, lanes)
    return replace(found, vector=vector, row=_row(found, vector)) if vector else None


def _reads(s: object, buffer: str) -> bool:
    return any(a.buffer == buffer and a.kind == "read" for a in accesses((s,)))  # type: ignore[arg-type]


def _twins(stores: Sequence[Store], update: Update) -> dict[str, str]:
    found: dict[str, str] = {}
    for load in (x for s in stores for x in ex.loads(s.value)):
        if load.tensor == update.buffer:
            for mine, theirs in zip(load.index, update.index, strict=True):
                if isinstance(mine, Index) and isinstance(theirs, Index):
                    found[mine.name] = theirs.name
    return found


def _vector(k: Kernel, c: Core, fixed: frozenset[str], lanes: int) -> str:
    """The longest axis that vectors may run along."""
    best = (3, "")
    for loop in c.home:
        if loop.var not in c.twins:
            continue
        written = {stride(k, s.buffer, s.index, loop.var, around(c.home)) for s in c.stores}
        if written != {1}:
            continue
        loads = [x for x in ex.loads(c.update.value) if x.tensor not in fixed]
        twin = c.twins[loop.var]
        if all(
            stride(k, x.tensor, x.index, twin, c.domain) in (0, 1)
            or (lanes > 1 and is_picked(k, x, twin, c.domain, lanes))
            for x in loads
        ):
            best = max(best, (turns(loop), loop.var))
    return best[1]


def _row(c: Core, vector: str) -> str:
    """The innermost axis along which an operand stands still."""
    for loop in reversed(c.home):
        twin = c.twins.get(loop.var, "")
        if loop.var != vector and twin and turns(loop) > 1:
            loads = list(ex.loads(c.update.value))
            if any(all(twin not in ex.free(i) for i in x.index) for x in loads):
                return loop.var
    return ""


def windows(c: Core) -> tuple[str, ...]:
    """Reduced loops that slide along the rows, over an operand that vectors run along.

    Rows next to one another then share most of what they read, and nothing else is used again.
    """
    lane, row = c.twins[c.vector], c.twins.get(c.row, "")
    sliding = [
        x for x in ex.loads(c.update.value)
        if any(lane in ex.free(i) for i in x.index) and any(row in ex.free(i) for i in x.index)
    ]  # fmt: skip
    return tuple(
        s.var for s in c.reduced
        if any({row, s.var} <= ex.free(i) for x in sliding for i in x.index)
    )  # fmt: skip


def stride(k: Kernel, buffer: str, index: Sequence[Expr], var: str, domain: Domain) -> int | None:
    """Elements from one place to the next along a loop; None where that differs."""
    f = form(k.buffer(buffer).layout.address(index), domain)
    if any(var in ex.free(a) and a != Index(var) for a in f.terms):
        return None
    return f.coefficient(var)


def is_picked(k: Kernel, x: ex.Load, var: str, domain: Domain, lanes: int) -> bool:
    """Whether what a vector along a loop reads lies within one vector, in the same places of it for
    each vector of the loop."""
    whole = ex.call("+", ex.call("*", ex.Num(lanes), Index(CHUNK)), Index(LANE))
    address = ex.substitute(k.buffer(x.tensor).layout.address(x.index), {var: whole})
    inner: Domain = {**domain, CHUNK: domain[var], LANE: lanes}
    found = by_value(form(address, inner), LANE, lanes)
    return found is not None and max(found[1]) - min(found[1]) < lanes


def distance(k: Kernel, c: Core, var: str, fixed: frozenset[str]) -> int:
    """How far apart a reduction's loop reads what is not laid out for it, in elements."""
    found = [
        stride(k, x.tensor, x.index, var, c.domain)
        for x in ex.loads(c.update.value)
        if x.tensor not in fixed
    ]
    return max((abs(s) if s is not None else 1 << 60 for s in found), default=0)
