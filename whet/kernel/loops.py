"""The Loop IR: a kernel as loops over the elements of buffers.

    Kernel  = (Buffer, …), (Stmt, …)
    Buffer  = name, sizes, dtype, role, layout       role: in | out | memory | stack | register
    Stmt    = Loop(var, extent, kind, (Stmt, …))     var from 0 to extent - 1;
                                                     kind: serial | parallel | vector | unroll
                                                           | block
            | If(test, (Stmt, …))
            | Store(buffer, index, value)            buffer[index] = value
            | Update(buffer, index, how, value)      how: sum | max | min | prod
    Expr    = whet.ir.expr without Reduce and without a load's `outside`; index arithmetic is over
              integers, `//` and `%` round down

Kernels are immutable, sizes concrete. Run in the order they stand, one statement after the other,
the statements say what is computed; kinds, roles and layouts say how, and never change a result.

Buffers are indexed by the dims of their tensor; the layout says where an element lies. "in" and
"out" are the caller's, in the order of the cluster's leaves and results. The rest is scratch: it
lives in the innermost loop body around all its accesses (`scope`), is undefined at each entry, and
inside a parallel loop each thread has its own. "memory" comes from the caller's scratch region,
"stack" from the thread's stack, "register" must be all constant indices once loops that are marked
vector or unroll are unrolled.

Loop variables are unique in a kernel, so a loop is named by its variable. An extent is an int or an
expression over outer variables (a tail: `minimum(16, 100 - 16*i)`).

The text form reads back (`whet.kernel.text`):

    x: input[f32, 8, 100]
    y: output[f32, 8]
    for i in parallel(8):
        y[i] = 0
        for j in range(100):
            y[i] += x[i, j]
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from whet.errors import WhetError
from whet.ir import expr as ex
from whet.ir.expr import Expr, Index, Load, Num
from whet.ir.types import DType
from whet.kernel.layout import Layout, dense

KINDS = ("serial", "parallel", "vector", "unroll", "block")
ROLES = ("in", "out", "memory", "stack", "register")
Extent = int | Expr


class KernelError(WhetError):
    """A kernel that is not well formed, or a name in it that does not exist."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """An array.

    Attributes:
        name: unique in the kernel.
        sizes: of its dims, in elements.
        dtype: of an element.
        role: see the module's docstring.
        layout: where elements lie; dense and row-major unless given.
        ahead: is it asked for before it is read, where loops allow that? (`whet.kernel.ahead`)
    """

    name: str
    sizes: tuple[int, ...]
    dtype: DType
    role: str
    layout: Layout = None  # type: ignore[assignment]
    ahead: bool = False

    def __post_init__(self) -> None:
        if self.layout is None:
            object.__setattr__(self, "layout", dense(self.sizes))

    @property
    def is_scratch(self) -> bool:
        return self.role not in ("in", "out")

    @property
    def count(self) -> int:
        """Elements that it holds."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """From the first byte to the last."""
        return self.layout.elements * (self.dtype.bits // 8)


@dataclass(frozen=True, slots=True)
class Loop:
    """`var` runs from 0 to extent - 1."""

    var: str
    extent: Extent
    body: tuple[Stmt, ...]
    kind: str = "serial"


@dataclass(frozen=True, slots=True)
class If:
    test: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Store:
    buffer: str
    index: tuple[Expr, ...]
    value: Expr


@dataclass(frozen=True, slots=True)
class Update:
    """`buffer[index] = how(buffer[index], value)`; a sum's order is free, as in any reduction."""

    buffer: str
    index: tuple[Expr, ...]
    how: str
    value: Expr


Leaf = Store | Update
Stmt = Loop | If | Store | Update


@dataclass(frozen=True)
class Kernel:
    """See the module's docstring."""

    buffers: tuple[Buffer, ...]
    body: tuple[Stmt, ...]

    def buffer(self, name: str) -> Buffer:
        """The buffer called `name`. Raises `KernelError` where there is none."""
        found = self._buffers.get(name)
        if found is None:
            raise KernelError(f"no buffer is called {name}", expected=", ".join(self._buffers))
        return found

    def loop(self, var: str) -> Loop:
        """The loop over `var`. Raises `KernelError` where there is none."""
        found = self.loops.get(var)
        if found is None:
            raise KernelError(f"no loop is called {var}", expected=", ".join(self.loops))
        return found

    @cached_property
    def _buffers(self) -> Mapping[str, Buffer]:
        return {b.name: b for b in self.buffers}

    @cached_property
    def loops(self) -> Mapping[str, Loop]:
        """Every loop by its variable, in the order they stand."""
        return {s.var: s for s in walk(self.body) if isinstance(s, Loop)}

    @cached_property
    def scopes(self) -> Mapping[str, tuple[str, ...]]:
        """Variables of the loops around all accesses of each buffer."""
        found: dict[str, tuple[str, ...]] = {}
        for a in accesses(self.body):
            known = found.get(a.buffer)
            if known is None:
                found[a.buffer] = a.vars
            elif known:
                pairs = zip(known, a.vars, strict=False)
                same = next((n for n, (x, y) in enumerate(pairs) if x != y), len(a.vars))
                found[a.buffer] = known[:same]
        return found

    @cached_property
    def digest(self) -> str:
        """Equal for equal kernels, across processes."""
        return hashlib.blake2b(str(self).encode(), digest_size=16).hexdigest()

    @property
    def inputs(self) -> tuple[Buffer, ...]:
        return tuple(b for b in self.buffers if b.role == "in")

    @property
    def outputs(self) -> tuple[Buffer, ...]:
        return tuple(b for b in self.buffers if b.role == "out")

    @property
    def scratch(self) -> tuple[Buffer, ...]:
        return tuple(b for b in self.buffers if b.is_scratch)

    def with_buffer(self, new: Buffer) -> Kernel:
        """The buffer of that name replaced, or a new one added at the end."""
        if new.name not in self._buffers:
            return replace(self, buffers=(*self.buffers, new))
        return replace(self, buffers=tuple(new if b.name == new.name else b for b in self.buffers))

    def with_body(self, body: Iterable[Stmt]) -> Kernel:
        """Other statements over the same buffers; scratch that nothing uses any more is dropped."""
        body = tuple(body)
        used = touched(body)
        kept = tuple(b for b in self.buffers if not b.is_scratch or b.name in used)
        return Kernel(kept, body)

    def __str__(self) -> str:
        from whet.kernel.text import show

        return show(self)


# -- walking ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Access:
    """One place where a buffer is read or written.

    Attributes:
        buffer, index: what.
        kind: "read", "store" or "update".
        path: loops and conditions around it, outermost first.
        leaf: the statement; None for a read in an extent or a test.
        place: position of each ancestor among its siblings, and of the leaf: orders all accesses.
    """

    buffer: str
    index: tuple[Expr, ...]
    kind: str
    path: tuple[Loop | If, ...]
    leaf: Leaf | None
    place: tuple[int, ...]

    @property
    def vars(self) -> tuple[str, ...]:
        """Loop variables around it, outermost first."""
        return tuple(s.var for s in self.path if isinstance(s, Loop))


def walk(body: Iterable[Stmt]) -> Iterator[Stmt]:
    """Every statement, parents first."""
    for s in body:
        yield s
        if isinstance(s, (Loop, If)):
            yield from walk(s.body)


def leaves(
    body: Iterable[Stmt], path: tuple[Loop | If, ...] = (), place: tuple[int, ...] = ()
) -> Iterator[tuple[Leaf, tuple[Loop | If, ...], tuple[int, ...]]]:
    """Every store and update with the loops and conditions around it, and its place."""
    for k, s in enumerate(body):
        if isinstance(s, (Loop, If)):
            yield from leaves(s.body, (*path, s), (*place, k))
        else:
            yield s, path, (*place, k)


def accesses(
    body: Iterable[Stmt], path: tuple[Loop | If, ...] = (), place: tuple[int, ...] = ()
) -> Iterator[Access]:
    """Every access in the order of execution; a statement reads before it writes."""
    for k, s in enumerate(body):
        here = (*place, k)
        leaf = s if isinstance(s, (Store, Update)) else None
        for e in expressions(s):
            for load in ex.loads(e):
                yield Access(load.tensor, load.index, "read", path, leaf, here)
        if isinstance(s, (Loop, If)):
            yield from accesses(s.body, (*path, s), here)
        else:
            kind = "store" if isinstance(s, Store) else "update"
            yield Access(s.buffer, s.index, kind, path, s, here)


def touched(body: Iterable[Stmt]) -> set[str]:
    """Buffers that statements read or write."""
    found: set[str] = set()
    for s in walk(body):
        if isinstance(s, (Store, Update)):
            found.add(s.buffer)
        for e in expressions(s):
            found.update(load.tensor for load in ex.loads(e))
    return found


def expressions(s: Stmt) -> tuple[Expr, ...]:
    """The expressions of a statement itself, not of those within it."""
    match s:
        case Loop(_, extent):
            return () if isinstance(extent, int) else (extent,)
        case If(test):
            return (test,)
        case _:
            return (*s.index, s.value)


def rewrite(body: Iterable[Stmt], f: Callable[[Stmt], Stmt | Iterable[Stmt] | None]) -> list[Stmt]:
    """Statements rebuilt bottom-up: `f` gives what replaces a statement, or None to keep it.

    A loop or condition that is left without statements goes.
    """
    found: list[Stmt] = []
    for s in body:
        if isinstance(s, (Loop, If)):
            inner = tuple(rewrite(s.body, f))
            if not inner:
                continue
            if inner != s.body:
                s = replace(s, body=inner)
        new = f(s)
        if new is None:
            found.append(s)
        elif isinstance(new, (Loop, If, Store, Update)):
            found.append(new)
        else:
            found += new
    return found


def mapped(body: Iterable[Stmt], f: Callable[[Expr], Expr]) -> tuple[Stmt, ...]:
    """`f` applied to every whole expression: extents, tests, each index, values."""

    def visit(s: Stmt) -> Stmt:
        match s:
            case Loop(var, extent, inner, kind):
                if isinstance(extent, int):
                    return s
                new = f(extent)
                whole = isinstance(new, Num) and isinstance(new.value, int)
                return Loop(var, new.value if whole else new, inner, kind)  # type: ignore[union-attr,arg-type]
            case If(test, inner):
                return If(f(test), inner)
            case Store(buffer, index, value):
                return Store(buffer, tuple(map(f, index)), f(value))
            case Update(buffer, index, how, value):
                return Update(buffer, tuple(map(f, index)), how, f(value))

    return tuple(rewrite(body, visit))


def substituted(body: Iterable[Stmt], values: Mapping[str, Expr]) -> tuple[Stmt, ...]:
    """Loop variables replaced by expressions (the loops themselves are not renamed)."""
    return mapped(body, lambda e: ex.substitute(e, values))


def bound(extent: Extent) -> Expr:
    """An extent as an expression."""
    return Num(extent) if isinstance(extent, int) else extent


def scope(k: Kernel, buffer: str) -> tuple[str, ...]:
    """Variables of the loops around all accesses of a scratch buffer: where it lives."""
    return k.scopes.get(buffer, ())


# -- checking --------------------------------------------------------------------------------------
def check(k: Kernel) -> Kernel:
    """`k`, if it is well formed.

    Raises:
        KernelError: names the statement: a variable that is bound twice or not at all, a buffer
            that is unknown, written though it is an input or indexed with another rank, an unknown
            kind, role or reduction, a Reduce or an `outside` in an expression.
    """
    names = [b.name for b in k.buffers]
    if len(set(names)) != len(names):
        raise KernelError("two buffers have one name", got=", ".join(names))
    for b in k.buffers:
        if b.role not in ROLES:
            raise KernelError("unknown role", expected=", ".join(ROLES), got=b.role, where=b.name)
        if b.layout.rank > len(b.sizes):
            raise KernelError("a layout of another rank", expected=len(b.sizes), got=b.layout)
    _check(k, k.body, {})
    seen: set[str] = set()
    for s in walk(k.body):
        if isinstance(s, Loop):
            if s.var in seen:
                raise KernelError("two loops have one variable", got=s.var)
            seen.add(s.var)
    return k


def _check(k: Kernel, body: Iterable[Stmt], free: Mapping[str, None]) -> None:
    for s in body:
        for e in expressions(s):
            _check_expr(k, e, free, s)
        match s:
            case Loop(var, _, inner, kind):
                if kind not in KINDS:
                    raise KernelError(
                        "unknown kind of loop", expected=", ".join(KINDS), got=kind, where=var
                    )
                _check(k, inner, {**free, var: None})
            case If(_, inner):
                _check(k, inner, free)
            case Store(name, index, _) | Update(name, index, _, _):
                _check_rank(k, name, index, s)
                if k.buffer(name).role == "in":
                    raise KernelError("an input is written", got=name)
                if isinstance(s, Update) and s.how not in ex.REDUCTIONS:
                    raise KernelError(
                        "unknown reduction", expected=", ".join(ex.REDUCTIONS), got=s.how
                    )


def _check_expr(k: Kernel, e: Expr, free: Mapping[str, None], s: Stmt) -> None:
    for x in ex.walk(e):
        match x:
            case Index(name) if name not in free:
                raise KernelError(f"{name} is no variable here", got=ex.show(e), where=_title(s))
            case ex.Reduce():
                raise KernelError("a reduction is a loop", got=ex.show(e), where=_title(s))
            case Load(tensor, index, outside):
                _check_rank(k, tensor, index, s)
                if outside is not None:
                    raise KernelError(
                        "what lies outside is said by a condition", got=ex.show(e), where=_title(s)
                    )


def _check_rank(k: Kernel, name: str, index: tuple[Expr, ...], s: Stmt) -> None:
    rank = len(k.buffer(name).sizes)
    if len(index) != rank:
        raise KernelError(
            f"{name} is indexed with another rank", expected=rank, got=len(index), where=_title(s)
        )


def _title(s: Stmt) -> str:
    from whet.kernel.text import lines

    return next(iter(lines((s,))))
