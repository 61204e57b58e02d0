"""Scratch that is as large as what one turn of its loops touches, no larger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from whet.ir import expr as ex
from whet.ir.expr import Expr, Load
from whet.kernel.layout import dense
from whet.kernel.legal import around
from whet.kernel.loops import Kernel, Stmt, Store, Update, accesses, mapped, rewrite, scope
from whet.kernel.region import Span, region, shifted
from whet.kernel.tidy import tidy


def shrunk(k: Kernel, names: Iterable[str]) -> Kernel:
    """Scratch narrowed to the region that is touched where it lives; layouts start anew."""
    for name in names:
        b = k.buffer(name)
        touched = [a for a in accesses(k.body) if a.buffer == name]
        depth = len(scope(k, name))
        outer = dict(list(around(touched[0].path).items())[:depth])
        spans = region(touched, b.sizes, outer)
        sizes = tuple(s.size for s in spans)
        if sizes != b.sizes:
            k = replace(k, body=_moved(k.body, name, spans))
            k = k.with_buffer(replace(b, sizes=sizes, layout=dense(sizes)))
    return tidy(k)


def within(k: Kernel, var: str) -> list[str]:
    """Scratch buffers that live in an iteration of a loop."""
    return [b.name for b in k.scratch if var in scope(k, b.name)]


def _moved(body: Iterable[Stmt], name: str, spans: tuple[Span, ...]) -> tuple[Stmt, ...]:
    def read(e: Expr) -> Expr:
        e = ex.rebuild(e, read)
        own = isinstance(e, Load) and e.tensor == name
        return Load(name, shifted(e.index, spans)) if isinstance(e, Load) and own else e

    def write(s: Stmt) -> Stmt | None:
        if isinstance(s, (Store, Update)) and s.buffer == name:
            return replace(s, index=shifted(s.index, spans))
        return None

    return tuple(rewrite(mapped(body, read), write))
