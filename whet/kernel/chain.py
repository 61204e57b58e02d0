"""Chains over rows: all that one row needs in one pass, its values staying near.

    inline    what costs less to compute again than to keep
    order     loops that only store run as their results lie in memory
    join      loops over the same extent, from the outermost in, wherever they may be one
    invert    divisors that belong to a whole row
    vectorize innermost loops; parallelize the outermost

Norms, soft-maxima and what is done to each element between them become a handful of passes over a
row in the first-level cache. Nothing is recomputed, and nothing needs to be known but the nests.
"""

from __future__ import annotations

from whet.ir import expr as ex
from whet.kernel.affine import form
from whet.kernel.draft import Draft, nest, points, turns, weight
from whet.kernel.hoist import Invert
from whet.kernel.inline import Inline
from whet.kernel.loops import Kernel, Loop, Stmt, Store, accesses, leaves, walk
from whet.kernel.mark import Keep, Parallelize, Vectorize
from whet.kernel.order import Collapse, Join, Reorder

LARGE = 400  # parts of an expression beyond which nothing more is put into it
KEEP = 4  # what keeping a value and reading it again costs, in additions
MANY = 8  # turns for which one division more is worth it
SHARED = 1 << 14  # stores and updates from which on threads pay


def inline(d: Draft, keep: frozenset[str] = frozenset()) -> None:
    """Values that are cheaper to compute again than to keep go where they are used."""
    for name in [b.name for b in d.kernel.scratch]:
        if name not in keep and worth(d.kernel, name):
            d.do(Inline(name))


def worth(k: Kernel, name: str) -> bool:
    """Whether a scratch buffer is one store that is cheap enough to be made at every use."""
    made, used, size = [], 0, 0
    for leaf, path, _ in leaves(k.body):
        count = 1
        for s in path:
            count *= turns(s) if isinstance(s, Loop) else 1
        if leaf.buffer == name:
            made.append((leaf, count))
        # Within a statement the same element is made once: the compiler sees to that.
        loads = (x for e in (*leaf.index, leaf.value) for x in ex.loads(e))
        reads = len({x for x in loads if x.tensor == name})
        if reads:
            used += reads * count
            size = max(size, _size(leaf.value) + reads * 1)
    if len(made) != 1 or not isinstance(made[0][0], Store) or not used:
        return False
    store, count = made[0]
    value = _size(store.value)
    if value * max(1, used // max(count, 1)) + size > LARGE:
        return False
    cost = weight(store.value)
    return cost * used <= (cost + KEEP) * count or cost == 0


def _size(e: ex.Expr) -> int:
    return sum(1 for _ in ex.walk(e))


def order(d: Draft) -> None:
    """Nests that only store, with the loop innermost along which results lie together."""
    for s in d.kernel.body:
        loops = nest(s)
        if not loops or not all(isinstance(x, Store) for x in loops[-1].body):
            continue
        apart = {x.var: _distance(d.kernel, loops, x.var) for x in loops}
        wanted = sorted((x.var for x in loops), key=lambda v: -apart[v])
        if wanted != [x.var for x in loops]:
            d.do(Reorder(tuple(wanted)))


def _distance(k: Kernel, loops: list[Loop], var: str) -> int:
    """Elements from one turn's results to the next one's; what has one turn stands outside."""
    domain = {s.var: s.extent for s in loops}
    if turns(k.loop(var)) == 1:
        return 1 << 62
    found = 0
    for s in loops[-1].body:
        assert isinstance(s, Store)
        found = max(
            found, abs(form(k.buffer(s.buffer).layout.address(s.index), domain).coefficient(var))
        )
    return found


def join(d: Draft) -> None:
    """Siblings of one extent become one loop, wherever that is legal, outermost first."""
    done = False
    while not done:
        done = not any(_joined(d, body) for body in _lists(d.kernel))


def _lists(k: Kernel) -> list[tuple[Stmt, ...]]:
    return [k.body, *(s.body for s in walk(k.body) if isinstance(s, Loop))]


def _joined(d: Draft, body: tuple[Stmt, ...]) -> bool:
    loops = [s for s in body if isinstance(s, Loop)]
    for a, first in enumerate(loops):
        for second in loops[a + 1 :]:
            if first.extent == second.extent and d.do(Join(first.var, second.var)):
                return True
    return False


def invert(d: Draft) -> None:
    """Divisions by what belongs to the whole row become products, in innermost loops."""
    for loop in [s for s in walk(d.kernel.body) if isinstance(s, Loop)]:
        if _innermost(loop) and loop.kind == "serial" and turns(loop) >= MANY:
            d.do(Invert(loop.var))


def vectorize(d: Draft) -> None:
    """Innermost loops as vectors, as far as that is legal."""
    for loop in [s for s in walk(d.kernel.body) if isinstance(s, Loop)]:
        if loop.kind == "serial" and not any(isinstance(s, Loop) for s in walk(loop.body)):
            d.do(Vectorize(loop.var))


def parallelize(d: Draft, threads: int) -> None:
    """The outermost loops of each nest, shared among threads where there is enough to do."""
    if threads < 2 or points(d.kernel) < SHARED:
        return
    for s in d.kernel.body:
        if not isinstance(s, Loop):
            continue
        var, count = s.var, turns(s)
        for inner in nest(s)[1:]:
            if count >= 8 * threads or inner.kind != "serial" or _innermost(inner):
                break
            before = set(d.kernel.loops)
            if not d.do(Collapse(var, inner.var)):
                break
            (var,) = set(d.kernel.loops) - before
            count *= turns(inner)
        d.do(Parallelize(var))


def _innermost(loop: Loop) -> bool:
    return not any(isinstance(s, Loop) for s in walk(loop.body))


def place(d: Draft, stack: int) -> None:
    """Scratch of one element in a register, what is small on the stack."""
    for b in d.kernel.scratch:
        if b.role != "memory":
            continue
        if b.count == 1:
            d.do(Keep(b.name, "register"))
        elif b.bytes <= stack and _within(d.kernel, b.name):
            d.do(Keep(b.name, "stack"))


def _within(k: Kernel, name: str) -> bool:
    """Whether a buffer lives inside of a loop."""
    return all(a.path for a in accesses(k.body) if a.buffer == name)


def chain(kernel: Kernel, threads: int, stack: int = 1 << 16) -> Draft:
    """The whole construction."""
    d = Draft(kernel)
    inline(d)
    order(d)
    join(d)
    invert(d)
    vectorize(d)
    parallelize(d, threads)
    place(d, stack)
    return d
