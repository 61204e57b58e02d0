"""A kernel after a move: indices simplified, what never or always happens gone.

A loop of extent 1 is its body, one of extent 0 is nothing; a condition that always holds is its
body; a condition that is known to hold from one around it is not asked again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Num, Select
from whet.kernel.affine import Domain, simplify
from whet.kernel.loops import (
    Extent,
    If,
    Kernel,
    Loop,
    Stmt,
    Store,
    Update,
    bound,
    substituted,
)


def tidy(k: Kernel) -> Kernel:
    """The same kernel, simplified."""
    return k.with_body(_block(k.body, {}, frozenset()))


def tidied(body: Iterable[Stmt], domain: Domain) -> tuple[Stmt, ...]:
    """Statements under loops of the domain, simplified."""
    return tuple(_block(body, domain, frozenset()))


def _block(body: Iterable[Stmt], domain: Domain, facts: frozenset[Expr]) -> Iterator[Stmt]:
    here = tuple(domain.items())

    def known(e: Expr) -> Expr:
        return _assume(_simple(e, here), facts) if facts else _simple(e, here)

    for s in body:
        match s:
            case Loop(var, extent, inner, kind):
                size = _extent(simplify(bound(extent), domain))
                if size == 1:
                    yield from _block(substituted(inner, {var: Num(0)}), domain, facts)
                elif not (isinstance(size, int) and size <= 0):
                    new = tuple(_block(inner, {**domain, var: size}, facts))
                    if new:
                        yield Loop(var, size, new, kind)
            case If(test, inner):
                test = known(test)
                if not isinstance(test, Num):
                    new = tuple(_block(inner, domain, facts | set(conjuncts(test))))
                    if new:
                        yield If(test, new)
                elif test.value:
                    yield from _block(inner, domain, facts)
            case Store(buffer, index, value):
                yield Store(buffer, tuple(map(known, index)), known(value))
            case Update(buffer, index, how, value):
                yield Update(buffer, tuple(map(known, index)), how, known(value))


@functools.lru_cache(maxsize=1 << 14)
def _simple(e: Expr, domain: tuple[tuple[str, Extent], ...]) -> Expr:
    """Most of a kernel stays as it is from one move to the next."""
    return simplify(e, dict(domain))


def conjuncts(test: Expr) -> Iterator[Expr]:
    """The conditions that a conjunction asks for."""
    if isinstance(test, Call) and test.fn == "and":
        for a in test.args:
            yield from conjuncts(a)
    else:
        yield test


def _assume(e: Expr, facts: frozenset[Expr]) -> Expr:
    if e in facts:
        return Num(1)
    if isinstance(e, Select):
        return ex.select(*(_assume(x, facts) for x in (e.test, e.then, e.other)))
    return ex.rebuild(e, lambda x: _assume(x, facts)) if isinstance(e, Call) else e


def _extent(e: Expr) -> Extent:
    return e.value if isinstance(e, Num) and isinstance(e.value, int) else e
