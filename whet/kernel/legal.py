"""What a move may do: refusals as data, and the questions about dependence that moves ask.

    Illegal = move, kind, loop, buffer, numbers

A move that is refused says why in a form that a search can act on: which loop or buffer stands in
the way, and the numbers that were compared. Kinds:

    missing      no loop, buffer or statement of that name
    kind         the loop is parallel, vector or unroll already, or must be serial for this
    extent       the extent is not a number, or does not fit what was asked for
    perfect      something stands between loops that must be directly one in the other
    dependence   two iterations, or two statements, touch the same element and one writes it
    order        a value would be read before it is written, or after it is overwritten
    index        an index cannot be read backwards: no loop for each element
    role         the buffer is the caller's, or not
    uses         the buffer is read or written where this move needs it not to be
    layout       two elements would share a place, or an element has none
    algebra      the reduction does not have the law that the move needs

Two iterations of a loop are apart in an access when their indices differ in some dim whatever the
inner loops do: the coefficient of the loop's variable is larger than what the rest of the index can
make up for (the separability test of Wolfe, "High Performance Compilers", on one variable). What
changes in whole multiples of all that the loop does (its coefficient times its extent) is a higher
digit, and makes up for nothing. That is sufficient, not necessary: a refusal may be too careful,
never too bold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Expr, Index, Num
from whet.kernel.affine import Form, form, limits
from whet.kernel.loops import (
    Access,
    Extent,
    If,
    Kernel,
    Loop,
    Stmt,
    Update,
    accesses,
    rewrite,
    scope,
    substituted,
)


@dataclass(frozen=True, slots=True)
class Illegal:
    """Why a move does not apply; see the module's docstring.

    Attributes:
        kind: one of the kinds listed there.
        loop, buffer: what stands in the way; empty where there is no such thing.
        numbers: named figures that were compared.
        move: its text, once it is known.
    """

    kind: str
    loop: str = ""
    buffer: str = ""
    numbers: tuple[tuple[str, int], ...] = ()
    move: str = ""

    def __str__(self) -> str:
        parts = [f"loop {self.loop}"] if self.loop else []
        parts += [f"buffer {self.buffer}"] if self.buffer else []
        parts += [f"{name} {n}" for name, n in self.numbers]
        head = f"{self.move}: " if self.move else ""
        return f"{head}{self.kind} ({', '.join(parts)})" if parts else f"{head}{self.kind}"

    def of(self, move: str) -> Illegal:
        """The same, said of a move."""
        return replace(self, move=move)


class Refused(Exception):
    """Carries an `Illegal` out of a check; `schedule.apply` turns it into its value."""

    def __init__(self, why: Illegal) -> None:
        super().__init__(str(why))
        self.why = why


def refuse(kind: str, *, loop: str = "", buffer: str = "", **numbers: int) -> Refused:
    """What a check raises."""
    return Refused(Illegal(kind, loop, buffer, tuple(sorted(numbers.items()))))


# -- finding ---------------------------------------------------------------------------------------
Path = tuple[Loop | If, ...]


def find(k: Kernel, var: str) -> tuple[Loop, Path]:
    """A loop, and what is around it. Refuses where there is none."""

    def search(body: Iterable[Stmt], path: Path) -> Iterator[tuple[Loop, Path]]:
        for s in body:
            if isinstance(s, Loop) and s.var == var:
                yield s, path
            elif isinstance(s, (Loop, If)):
                yield from search(s.body, (*path, s))

    found = next(search(k.body, ()), None)
    if found is None:
        raise refuse("missing", loop=var)
    return found


def serial(k: Kernel, var: str) -> tuple[Loop, Path]:
    """A serial loop, and what is around it."""
    loop, path = find(k, var)
    if loop.kind != "serial":
        raise refuse("kind", loop=var)
    return loop, path


def whole(loop: Loop) -> int:
    """A loop's extent as a number."""
    if not isinstance(loop.extent, int):
        raise refuse("extent", loop=loop.var)
    return loop.extent


def named(k: Kernel, buffer: str) -> None:
    """Refuses where there is no such buffer."""
    if all(b.name != buffer for b in k.buffers):
        raise refuse("missing", buffer=buffer)


def around(path: Path) -> dict[str, Extent]:
    """The loops of a path as a domain."""
    return {s.var: s.extent for s in path if isinstance(s, Loop)}


# -- dependence ------------------------------------------------------------------------------------
def apart(k: Kernel, a: Access, b: Access, var: str) -> bool:
    """Do `a` and `b` touch different elements in any two different iterations of `var`?

    Both lie in that loop; variables of loops around it have the same value in both.
    """
    left, right = around(a.path), around(b.path)
    outer = frozenset(a.vars[: a.vars.index(var)])
    moved = [n for n, (x, y) in enumerate(zip(a.index, b.index, strict=True))
             if var in ex.free(x) | ex.free(y)]  # fmt: skip
    pairs = [*zip(a.index, b.index, strict=True), (_flat(k, a), _flat(k, b))]
    if 1 < len(moved) < len(a.index):
        pairs.append((_flat(k, a, moved), _flat(k, b, moved)))
    for x, y in pairs:
        one = _parted(form(x, left), var, outer)
        two = _parted(form(y, right), var, outer)
        if one is None or two is None:
            continue
        (c, fixed, inner), (d, others, deeper) = one, two
        rest = fixed.plus(others, -1)
        if c != d or c == 0 or rest.terms:
            continue
        turns = left[var] if isinstance(left[var], int) and left[var] == right[var] else 0
        step = abs(c) * int(str(turns))  # whole multiples of it cannot make up for anything
        low, high = limits(_below(inner, step), left)
        least, greatest = limits(_below(deeper, step), right)
        if max(abs(high - least + rest.constant), abs(low - greatest + rest.constant)) < abs(c):
            return True
    return False


def _below(f: Form, step: int) -> Form:
    """A form without what is a multiple of a step, if there is one."""
    return f if not step else Form({a: n for a, n in f.terms.items() if n % step}, f.constant)


def _flat(k: Kernel, a: Access, dims: Sequence[int] | None = None) -> Expr:
    """The element's row-major number: tells more than single dims where an index is taken apart.

    Over some dims only it is no element's, but where it differs, so does the element.
    """
    total: Expr = Num(0)
    for d, (i, n) in enumerate(zip(a.index, k.buffer(a.buffer).sizes, strict=True)):
        if dims is None or d in dims:
            total = ex.call("+", ex.call("*", total, Num(n)), i)
    return total


def _parted(f: Form, var: str, outer: frozenset[str]) -> tuple[int, Form, Form] | None:
    """(coefficient of var, what outer loops fix, what inner loops change), where that is clear."""
    fixed: dict[Expr, int] = {}
    inner: dict[Expr, int] = {}
    for atom, c in f.terms.items():
        if atom == Index(var):
            continue
        used = ex.free(atom)
        if var in used or (used & outer and used - outer):
            return None
        (fixed if used <= outer else inner)[atom] = c
    return f.coefficient(var), Form(fixed, f.constant), Form(inner, 0)


def commute(a: Access, b: Access) -> bool:
    """Are both updates of one kind? Their order is free."""
    return (
        isinstance(a.leaf, Update)
        and isinstance(b.leaf, Update)
        and a.kind == b.kind == "update"
        and a.leaf.how == b.leaf.how
    )


def conflicts(k: Kernel, loop: Loop, path: Path) -> Iterator[tuple[Access, Access]]:
    """Pairs of accesses within a loop to one element in different iterations, one a write.

    Scratch that lives within an iteration is no conflict.
    """
    inside = list(accesses(loop.body, (*path, loop)))
    for name in dict.fromkeys(a.buffer for a in inside if a.kind != "read"):
        b = k.buffer(name)
        if b.is_scratch and loop.var in scope(k, name):
            continue
        here = [a for a in inside if a.buffer == name]
        for n, one in enumerate(here):
            for two in here[n:]:
                if one.kind == two.kind == "read":
                    continue
                if not apart(k, one, two, loop.var):
                    yield one, two


def independent(k: Kernel, loop: Loop, path: Path) -> None:
    """Refuses where iterations depend on one another, updates of one element included.

    A loop whose variable is taken apart into digits (it was two loops once) is independent where
    the loops over its digits are: two iterations differ in one of these.
    """
    met = next(conflicts(k, loop, path), None)
    if met is not None and not _independent_digits(k, loop):
        raise refuse("dependence", loop=loop.var, buffer=met[0].buffer)


def _independent_digits(k: Kernel, loop: Loop) -> bool:
    """Are there digits, and is none of them what two iterations meet over?"""
    steps = _steps(loop)
    if len(steps) < 2:
        return False
    digits = [(f"{loop.var}@{n}", steps[n] // steps[n + 1], steps[n + 1])
              for n in range(len(steps) - 1)]  # fmt: skip
    value: Expr = Num(0)
    for var, _, step in digits:
        value = ex.call("+", value, ex.call("*", Num(step), Index(var)))
    body = substituted(loop.body, {loop.var: value})
    for var, extent, _ in reversed(digits):
        body = (Loop(var, extent, body),)

    def taken(s: Stmt) -> Iterable[Stmt] | None:
        return body if isinstance(s, Loop) and s.var == loop.var else None

    apart = k.with_body(rewrite(k.body, taken))
    return not any(
        next(conflicts(apart, *find(apart, var)), None) is not None for var, _, _ in digits
    )


def _steps(loop: Loop) -> list[int]:
    """The extent and what the loop's variable is divided by, down to 1, each dividing the last."""
    if not isinstance(loop.extent, int):
        return []
    found = {1}
    for a in accesses(loop.body):
        for e in (x for i in a.index for x in ex.walk(i)):
            match e:
                case ex.Call("//" | "%", (x, Num(int(n)))) if loop.var in ex.free(x):
                    below = x.args[1] if isinstance(x, ex.Call) and x.fn == "//" else Num(1)
                    found.add(n * int(str(below.value)) if isinstance(below, Num) else n)
    steps = sorted((n for n in found if n < loop.extent), reverse=True)
    chain = [loop.extent]
    for n in steps:
        if chain[-1] % n:
            return []
        chain.append(n)
    return chain


def reads(body: Iterable[Stmt]) -> set[str]:
    """Buffers that statements read; an update counts as a write."""
    return {a.buffer for a in accesses(body) if a.kind == "read"}


def writes(body: Iterable[Stmt]) -> set[str]:
    """Buffers that statements write."""
    return {a.buffer for a in accesses(body) if a.kind != "read"}


def touch(a: Iterable[Stmt], b: Iterable[Stmt]) -> str | None:
    """A buffer through which one group of statements depends on another, if there is one."""
    first, second = tuple(a), tuple(b)
    left, right = writes(first), writes(second)
    shared = (left & (right | reads(second))) | (right & reads(first))
    return min(shared, default=None)


# -- where values come from ------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Flow:
    """How a scratch buffer's values come to be and go, in the statement list where it lives.

    Attributes:
        path: what is around that list.
        siblings: the list.
        made: places in it that write the buffer, and read it not but to update.
        used: places that read it.
    """

    path: Path
    siblings: tuple[Stmt, ...]
    made: tuple[int, ...]
    used: tuple[int, ...]


def flow(k: Kernel, name: str) -> Flow:
    """Where a scratch buffer is made and used. Refuses where one statement does both."""
    named(k, name)
    if not k.buffer(name).is_scratch:
        raise refuse("role", buffer=name)
    vars = scope(k, name)
    path: Path = ()
    siblings = k.body
    if vars:
        loop, outside = find(k, vars[-1])
        path, siblings = (*outside, loop), loop.body
    made, used = [], []
    for place, s in enumerate(siblings):
        w, r = name in writes((s,)), name in reads((s,))
        if w and r:
            raise refuse("uses", buffer=name)
        if w:
            made.append(place)
        if r:
            used.append(place)
    if not used or not made:
        raise refuse("uses", buffer=name, made=len(made), used=len(used))
    if max(made) > min(used):
        raise refuse("order", buffer=name)
    return Flow(path, siblings, tuple(made), tuple(used))
