"""Kernels with their unrolled loops written out, and the arithmetic of indices done.

for i in unroll(2): t[i] = x[j + i]        becomes        t[0] = x[j]; t[1] = x[j + 1]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from whet.ir import expr as ex
from whet.ir.expr import Expr, Index, Num
from whet.kernel.affine import Domain, simplify
from whet.kernel.loops import Extent, If, Loop, Stmt, Store, Update, bound


def expanded(
    body: Iterable[Stmt], domain: Domain, values: Mapping[str, Expr] | None = None
) -> tuple[Stmt, ...]:
    """Statements without loops that are marked unroll.

    Args:
        body: statements.
        domain: loops around them.
        values: variables that stand for something else by now.
    """
    return tuple(_expanded(body, dict(domain), values or {}, ""))


def _expanded(
    body: Iterable[Stmt], domain: dict[str, Extent], values: Mapping[str, Expr], copy: str
) -> Iterable[Stmt]:
    def f(e: Expr) -> Expr:
        return simplify(ex.substitute(e, values) if values else e, domain)

    for s in body:
        match s:
            case Loop(var, extent, inner, kind):
                size = f(bound(extent))
                whole = int(str(size.value)) if isinstance(size, Num) else None
                if whole == 0:
                    continue
                if whole is not None and (kind == "unroll" or whole == 1):
                    for k in range(whole):
                        again = f"{copy}_{k}" if whole > 1 else copy
                        yield from _expanded(inner, domain, {**values, var: Num(k)}, again)
                    continue
                new: Extent = size if whole is None else whole
                name = f"{var}_u{copy}" if copy else var
                within, renamed = {**domain, name: new}, {**values, var: Index(name)}
                kind = "serial" if kind == "unroll" else kind
                turns = tuple(_expanded(inner, within, renamed if copy else values, copy))
                if turns:
                    yield Loop(name, new, turns, kind)
            case If(test, inner):
                known = f(test)
                if not isinstance(known, Num):
                    then = tuple(_expanded(inner, domain, values, copy))
                    if then:
                        yield If(known, then)
                elif known.value:
                    yield from _expanded(inner, domain, values, copy)
            case Store(name, index, value):
                yield Store(name, tuple(map(f, index)), f(value))
            case Update(name, index, how, value):
                yield Update(name, tuple(map(f, index)), how, f(value))
