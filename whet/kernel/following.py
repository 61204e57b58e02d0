"""Which values follow which loops, and how large loops and folds get: what tilings ask."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from whet.ir import expr as ex
from whet.ir.expr import Index
from whet.kernel.affine import bounds
from whet.kernel.draft import turns
from whet.kernel.legal import around
from whet.kernel.loops import Kernel, Loop, Stmt, Store, Update, bound, leaves, walk


def through(k: Kernel, root: str, fences: Collection[str]) -> dict[str, dict[int, str]]:
    """For each scratch buffer that a nest reads, which of its dims follow which of its loops.

    Statements are taken from the last to the first, so that a value's readers are known before it.
    """
    found: dict[str, dict[int, str]] = {}
    for s in reversed(k.body):
        mine = isinstance(s, Loop) and s.var == root
        for leaf, path, _ in leaves((s,)):
            if mine:
                names = {x.var: x.var for x in path if isinstance(x, Loop)}
            elif leaf.buffer in found:
                names = named_by(leaf, found[leaf.buffer])
            else:
                continue
            for load in (x for e in (*leaf.index, leaf.value) for x in ex.loads(e)):
                b = k.buffer(load.tensor)
                if not b.is_scratch or b.name == leaf.buffer or b.name in fences:
                    continue
                at = {n: names[i.name] for n, i in enumerate(load.index)
                      if isinstance(i, Index) and i.name in names}  # fmt: skip
                known = found.get(load.tensor, at)
                found[load.tensor] = dict(known.items() & at.items())
    return found


def last_first(k: Kernel, names: Collection[str]) -> list[str]:
    """Buffers by where they are made, so that each is reached before what it is made of."""
    found: dict[str, None] = {}
    for s in reversed(k.body):
        for leaf, _, _ in leaves((s,)):
            if leaf.buffer in names:
                found[leaf.buffer] = None
    return list(found)


def named_by(leaf: Store | Update, dims: Mapping[int, str]) -> dict[str, str]:
    """A statement's own loops, with the root's that they follow."""
    return {i.name: v for n, v in dims.items() if isinstance(i := leaf.index[n], Index)}


def power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def folds(k: Kernel, s: Stmt) -> int:
    """Elements that a statement folds into one."""
    found = 1
    for leaf, path, _ in leaves((s,)):
        if isinstance(leaf, Update):
            free = {v for i in leaf.index for v in ex.free(i)}
            found = max(
                found,
                math.prod(turns(x) for x in path if isinstance(x, Loop) and x.var not in free),
            )
    return found


def most(k: Kernel, var: str) -> int:
    """A loop's largest extent."""
    loop, path = next((s, p) for s, p in _paths(k.body) if s.var == var)
    return int(bounds(bound(loop.extent), around(path))[1])


def _paths(
    body: Sequence[Stmt], path: tuple[Loop, ...] = ()
) -> Iterator[tuple[Loop, tuple[Loop, ...]]]:
    for s in body:
        if isinstance(s, Loop):
            yield s, path
            yield from _paths(s.body, (*path, s))
        elif hasattr(s, "body"):
            yield from _paths(s.body, path)


def first(k: Kernel, names: Sequence[str]) -> str:
    """The outermost of these loops."""
    return next(v for v in k.loops if v in names)


def along(loops: Sequence[Loop], leaf: Stmt, top: Update, body: Sequence[Stmt]) -> str | None:
    """The loop of a nest that runs over what the maximum is taken over."""
    own = {v for i in top.index for v in ex.free(i)}
    length = next(
        turns(x) for s in body for x in walk((s,))
        if isinstance(x, Loop) and x.var not in own and any(y == top for y, _, _ in leaves((x,)))
    )  # fmt: skip
    assert isinstance(leaf, (Store, Update))
    free = {v for i in leaf.index for v in ex.free(i)}
    summed = [x.var for x in loops if x.var not in free]
    if isinstance(leaf, Update):
        return summed[0] if len(summed) == 1 else None
    return next((x.var for x in reversed(loops) if turns(x) == length), None)
