"""Results whose elements are computed in several ways, told apart by where they lie.

    inline    everything: what stands between is kept nowhere
    unroll    the loop that tells the ways apart (or its last digit, where they alternate), inside
              of the others: each way is one statement, without a condition
    vectorize what lies together

What is gathered, stacked or interleaved from many small results is so written where it belongs, in
one pass, and what the ways have in common is computed once: the compiler sees it.
"""

from __future__ import annotations

from collections.abc import Iterator

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Num, Select
from whet.kernel.chain import order, parallelize
from whet.kernel.draft import Draft, nest, turns
from whet.kernel.inline import Inline
from whet.kernel.loops import Kernel, Loop, Stmt, Store
from whet.kernel.mark import Unroll, Vectorize
from whet.kernel.order import Peel, Reorder

WAYS = 32  # statements that stand side by side
LARGE = 1 << 14  # parts of an expression, all of its ways together


def parted(kernel: Kernel, threads: int, lanes: int) -> Draft | None:
    """The whole construction; None where nothing is told apart, or too much.

    Args:
        kernel: naive, with its buffers laid out as they will lie.
        threads: that share the outermost loops.
        lanes: elements of a vector.
    """
    d = Draft(kernel)
    if not _inlined(d) or not any(_digits(s.body[0]) for s in map(_innermost, d.kernel.body) if s):
        return None
    order(d)
    _evened(d)
    for s in d.kernel.body:
        if not _placed(d, nest(s), lanes):
            return None
    parallelize(d, threads)
    return d


def _inlined(d: Draft) -> bool:
    """Whether everything could be put where it is used."""
    for name in [b.name for b in d.kernel.scratch]:
        if not d.do(Inline(name)):
            return False
        if any(_size(s) > LARGE for s in d.kernel.body):
            return False
    return all(_innermost(s) for s in d.kernel.body)


def _innermost(s: Stmt) -> Loop | None:
    """The loop of a nest that holds one store and nothing else."""
    loops = nest(s) if isinstance(s, Loop) else []
    if not loops or len(loops[-1].body) != 1 or not isinstance(loops[-1].body[0], Store):
        return None
    return loops[-1]


def _size(s: Stmt) -> int:
    last = _innermost(s)
    return (
        sum(1 for x in last.body if isinstance(x, Store) for _ in ex.walk(x.value)) if last else 0
    )


def _digits(store: Stmt) -> dict[str, int]:
    """How many values of each loop variable, or of its last digit, tell ways apart."""
    assert isinstance(store, Store)
    found: dict[str, int] = {}
    for e in ex.walk(store.value):
        if isinstance(e, Select) and _computes(e.then) and _computes(e.other):
            for var, base in _read(e.test):
                found[var] = max(base, found.get(var, 0))
    return found


def _computes(e: Expr) -> bool:
    """Whether it reads anything: a margin's value is no way of computing."""
    return any(True for _ in ex.loads(e))


def _read(e: Expr) -> Iterator[tuple[str, int]]:
    """Loop variables that a condition looks at, each with the base whose last digit is asked for;
    0 for the variable itself."""
    match e:
        case Call("%", (Index(var), Num(int(base)))):
            yield var, base
        case Index(var):
            yield var, 0
        case Call(_, args):
            for a in args:
                yield from _read(a)


def _evened(d: Draft) -> None:
    """What is left where ways that alternate do not come out even becomes a nest of its own."""
    again = True
    while again:
        again = any(_peeled(d, nest(s)) for s in d.kernel.body)


def _peeled(d: Draft, loops: list[Loop]) -> bool:
    wanted = _digits(loops[-1].body[0])
    for loop in loops[:-1]:
        base, count = wanted.get(loop.var, 0), turns(loop)
        if base and count > base and count % base:
            others = [x.var for x in loops if x is not loop]
            d.do(Reorder((loop.var, *others)))
            return d.do(Peel(loop.var, count // base * base))
    return False


def _placed(d: Draft, loops: list[Loop], lanes: int) -> bool:
    """Order, unroll and vectorize one nest; whether the ways are few enough."""
    last = loops[-1].var
    wanted = _digits(loops[-1].body[0])
    ways = 1
    apart: list[str] = []
    around: list[str] = []
    for loop in loops[:-1]:
        base = wanted.get(loop.var)
        if base is None:
            around.append(loop.var)
            continue
        ways *= base or turns(loop)
        high, low = d.split(loop.var, base) if base else ("", loop.var)
        around += [high] if high else []
        apart.append(low)
    if ways > WAYS or last in wanted:
        return False
    high, low = d.split(last, lanes)
    around += [high] if high else []
    if not d.do(Reorder((*around, *apart, low))):
        return False
    return all(d.do(Unroll(v)) for v in apart) and d.do(Vectorize(low))
