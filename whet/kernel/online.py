"""The move that folds sums in one pass with the maximum that their terms are scaled by.

Sums of f(x - m) * …, where m is the maximum of x, wait for m. If f turns sums into products, they
need not: a sum that was taken under an earlier maximum b is corrected by f(b - m) (Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022,
section 3.1). While everything so far is minus infinity, terms are taken relative to 0: they vanish,
as they do under any later maximum; if nothing else ever comes, 0/0 is what the two passes give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Load, Num, Select
from whet.ir.functions import FUNCTIONS
from whet.kernel.legal import Path, apart, around, refuse, serial, touch
from whet.kernel.loops import (
    Buffer,
    Kernel,
    Leaf,
    Loop,
    Stmt,
    Store,
    Update,
    accesses,
    bound,
    leaves,
    mapped,
    substituted,
)
from whet.kernel.move import Move, fresh, register
from whet.kernel.place import rebodied
from whet.kernel.region import digits, nested
from whet.kernel.shrink import shrunk, within

LOWEST = Num(ex.REDUCTIONS["max"])


@register("online")
@dataclass(frozen=True, slots=True)
class Online(Move):
    """Loops over one extent become one; the first takes a maximum, the others come in any order.

    before:
        x: input[f32, 4, 64]
        y: output[f32, 4]
        m: memory[f32, 4]
        p: memory[f32, 4, 64]
        z: memory[f32, 4]
        for i in range(4):
            m[i] = -inf
        for j in range(64):
            for a in range(4):
                m[a] = max(m[a], x[a, j])
        for k in range(64):
            for b in range(4):
                p[b, k] = exp(x[b, k] - m[b])
        for c in range(4):
            z[c] = 0
        for l in range(64):
            for d in range(4):
                z[d] += p[d, l]
        for e in range(4):
            y[e] = log(z[e]) + m[e]
    move: online((j, k, l,))
    after:
        x: input[f32, 4, 64]
        y: output[f32, 4]
        m: memory[f32, 4]
        p: memory[f32, 4, 1]
        z: memory[f32, 4]
        m_b: memory[f32, 4]
        m_c: memory[f32, 4]
        m_s: memory[f32, 4]
        for i in range(4):
            m[i] = -inf
        for c in range(4):
            z[c] = 0
        for j in range(64):
            for m_b_0 in range(4):
                m_b[m_b_0] = m[m_b_0]
            for a in range(4):
                m[a] = max(m[a], x[a, j])
            for m_c_0 in range(4):
                m_c[m_c_0] = (1 if m_b[m_c_0] == m[m_c_0] else exp(m_b[m_c_0] - m[m_c_0]))
                m_s[m_c_0] = (0 if m[m_c_0] == -inf else m[m_c_0])
            for b in range(4):
                p[b, 0] = exp(x[b, j] - m_s[b])
            for z_c_0 in range(4):
                z[z_c_0] *= m_c[z_c_0]
            for d in range(4):
                z[d] += p[d, 0]
        for e in range(4):
            y[e] = log(z[e]) + m[e]
    """

    loops: tuple[str, ...]

    def do(self, k: Kernel) -> Kernel:
        plan = self.check(k)
        m = k.buffer(plan.top.buffer)
        before, factor, safe = (fresh(k, f"{m.name}_{c}") for c in "bcs")
        new = tuple(Buffer(n, m.sizes, m.dtype, m.role) for n in (before, factor, safe))
        k = replace(k, buffers=(*k.buffers, *new))
        var = self.loops[0]
        loops, at = _over(before, m)
        body: list[Stmt] = [*nested(loops, (Store(before, at, Load(m.name, at)),))]
        body += plan.first.body
        loops, at = _over(factor, m)
        was, now = Load(before, at), Load(m.name, at)
        scale = Select(
            Call("==", (was, now)), ex.ONE, Call(plan.function, (Call("-", (was, now)),))
        )
        shift = Select(Call("==", (now, LOWEST)), ex.ZERO, now)
        body += nested(loops, (Store(factor, at, scale), Store(safe, at, shift)))

        def relative(e: Expr) -> Expr:
            e = ex.rebuild(e, relative)
            return Load(safe, e.index) if isinstance(e, Load) and e.tensor == m.name else e

        for loop in plan.rest:
            for name, place in plan.sums.items():
                if any(s.buffer == name for s, _, _ in leaves(loop.body)):
                    prefix = fresh(k, f"{name}_c")
                    loops, at = _over(prefix, k.buffer(name))
                    values = dict(zip(place.vars, at, strict=True))
                    index = tuple(ex.substitute(i, values) for i in place.index)
                    body += nested(loops, (Update(name, at, "prod", Load(factor, index)),))
            body += mapped(substituted(loop.body, {loop.var: Index(var)}), relative)
        fused = replace(plan.first, body=tuple(body))
        siblings = (*plan.before, *plan.between, fused, *plan.after)
        k = rebodied(k, plan.path, siblings)
        return shrunk(k, within(k, var))

    def check(self, k: Kernel) -> Plan:
        """Siblings whose terms scale with the maximum, and meet within one iteration only."""
        return planned(k, self.loops)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sum's factor is: the maximum's index, over a variable for each of the sum's dims."""

    vars: tuple[str, ...]
    index: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    path: Path
    before: tuple[Stmt, ...]
    between: tuple[Stmt, ...]
    after: tuple[Stmt, ...]
    first: Loop
    rest: tuple[Loop, ...]
    top: Update
    function: str
    sums: dict[str, Place]


def planned(k: Kernel, loops: Sequence[str]) -> Plan:
    """What the loops do, where it is a maximum and sums of terms that scale with it.

    Refuses anything else.
    """
    return _Planning(k, loops).plan()


def _over(prefix: str, b: Buffer) -> tuple[list[tuple[str, int]], tuple[Expr, ...]]:
    """Loops over a buffer, and the element that they are at."""
    loops = [(f"{prefix}_{d}", n) for d, n in enumerate(b.sizes) if n != 1]
    at = tuple(Index(f"{prefix}_{d}") if n != 1 else ex.ZERO for d, n in enumerate(b.sizes))
    return loops, at


class _Planning:
    def __init__(self, k: Kernel, names: Sequence[str]) -> None:
        if len(names) < 2:
            raise refuse("missing", loops=len(names))
        self.k, self.names = k, names
        found = [serial(k, v) for v in names]
        self.loops = [loop for loop, _ in found]
        self.path = found[0][1]
        for loop, path in found[1:]:
            if path != self.path:
                raise refuse("perfect", loop=loop.var)
            if loop.extent != self.loops[0].extent:
                raise refuse("extent", loop=loop.var)
        self.first = self.loops[0]
        tops = [
            (s, (*self.path, self.first, *p))
            for s, p, _ in leaves(self.first.body)
            if isinstance(s, Update) and s.how == "max"
        ]
        if len(tops) != 1:
            raise refuse("algebra", loop=self.first.var, maxima=len(tops))
        self.top, self.top_path = tops[0]
        if not k.buffer(self.top.buffer).is_scratch:
            raise refuse("role", buffer=self.top.buffer)
        self.function = ""
        self.scaled: set[str] = set()  # buffers of terms, made anew in each iteration
        self.sums: dict[str, Place] = {}

    def plan(self) -> Plan:
        siblings = self.path[-1].body if self.path else self.k.body
        self.loops.sort(key=siblings.index)
        at = [siblings.index(loop) for loop in self.loops]
        if self.loops[0] is not self.first or at != sorted(set(at)):
            raise refuse("order", loop=self.names[0])
        between = [s for s in siblings[at[0] : at[-1]] if s not in self.loops]
        for s in between:
            earlier = [x for x in self.loops if siblings.index(x) < siblings.index(s)]
            if shared := touch(earlier, (s,)):
                raise refuse("order", buffer=shared)
        for loop in self.loops[1:]:
            for s, path, _ in leaves(loop.body):
                self._leaf(s, (*self.path, loop, *path), loop)
        if not self.function or not self.sums:
            raise refuse("algebra", buffer=self.top.buffer, sums=len(self.sums))
        self._starts(self.top.buffer, LOWEST)
        for name in self.sums:
            self._starts(name, ex.ZERO)
        self._apart()
        after = siblings[at[-1] + 1 :]
        for a in accesses(after, self.path):
            if a.buffer in self.scaled:
                raise refuse("uses", buffer=a.buffer)
        return Plan(
            self.path, siblings[: at[0]], tuple(between), after, self.first,
            tuple(self.loops[1:]), self.top, self.function, self.sums,
        )  # fmt: skip

    def _starts(self, name: str, value: Expr) -> None:
        """Refuses unless a buffer starts at a value, and is written nowhere else."""
        stored = [s for s, _, _ in leaves(self.k.body) if s.buffer == name and isinstance(s, Store)]
        updates = [a for a in accesses(self.k.body) if a.buffer == name and a.kind == "update"]
        if len(updates) != 1 or any(s.value != value for s in stored):
            raise refuse("algebra", buffer=name, updates=len(updates))

    def _leaf(self, s: Leaf, path: Path, loop: Loop) -> None:
        """Terms are stored, or summed; neither touches the maximum."""
        degree = self._degree(s.value, path)
        if s.buffer == self.top.buffer or (s.buffer in self.sums and isinstance(s, Store)):
            raise refuse("order", loop=loop.var, buffer=s.buffer)
        if degree == 0:
            if s.buffer in self.sums or s.buffer in self.scaled:
                raise refuse("algebra", loop=loop.var, buffer=s.buffer)
            return
        if isinstance(s, Store):
            self.scaled.add(s.buffer)
        elif s.buffer in self.sums:
            raise refuse("uses", loop=loop.var, buffer=s.buffer)
        elif s.how == "sum" and loop.var not in {v for i in s.index for v in ex.free(i)}:
            self.sums[s.buffer] = self._place(s, path)
        else:
            raise refuse("algebra", loop=loop.var, buffer=s.buffer)

    def _place(self, s: Update, path: Path) -> Place:
        """The maximum's place as a function of the sum's."""
        inner = around(path[len(self.path) :])
        plan = digits(s.index, inner, s.buffer)
        if any(len(dim) > 1 for dim in plan):
            raise refuse("index", buffer=s.buffer)
        names = tuple(dim[0].var if dim else f"dim {n}" for n, dim in enumerate(plan))
        for index in self._tops(s.value):
            if all(ex.free(i) - set(self._outer()) <= set(names) for i in index):
                return Place(names, index)
        raise refuse("index", buffer=s.buffer)

    def _outer(self) -> list[str]:
        return [s.var for s in self.path if isinstance(s, Loop)]

    def _tops(self, e: Expr) -> Iterator[tuple[Expr, ...]]:
        """Indices at which a term reads the maximum, or would have through its buffer."""
        for load in ex.loads(e):
            if load.tensor == self.top.buffer:
                yield load.index
            elif load.tensor in self.scaled:
                yield from self._through(load)

    def _through(self, load: Load) -> Iterator[tuple[Expr, ...]]:
        for loop in self.loops[1:]:
            for s, path, _ in leaves(loop.body):
                if s.buffer != load.tensor:
                    continue
                plan = digits(s.index, around((loop, *path)), s.buffer)
                values = {d[0].var: i for d, i in zip(plan, load.index, strict=True) if d}
                for index in self._tops(s.value):
                    yield tuple(ex.substitute(i, values) for i in index)

    def _degree(self, e: Expr, path: Path) -> int:
        """By which power of f(-m) a value scales. Refuses where it does otherwise."""
        top = self.top.buffer
        match e:
            case Call(fn, (Call("-", (x, Load(name, index))),)) if name == top:
                function = FUNCTIONS.get(fn)
                if function is None or "sum_to_product" not in function.laws:
                    raise refuse("algebra", buffer=top)
                if self.function not in ("", fn) or not self._below(x, index, path):
                    raise refuse("algebra", buffer=top)
                self.function = fn
                return 1
            case Load(name):
                if name == top or name in self.sums:
                    raise refuse("algebra", buffer=name)
                return int(name in self.scaled)
            case Call("*", (a, b)):
                return self._one(self._degree(a, path) + self._degree(b, path))
            case Call("/", (a, b)) if self._degree(b, path) == 0:
                return self._degree(a, path)
            case Call("+" | "-", (a, b)):
                return self._same(a, b, path)
            case Select(test, then, other) if self._degree(test, path) == 0:
                return self._same(then, other, path)
        if any(self._degree(c, path) for c in ex.children(e)):
            raise refuse("algebra", buffer=top)
        return 0

    def _one(self, degree: int) -> int:
        if degree > 1:
            raise refuse("algebra", buffer=self.top.buffer, degree=degree)
        return degree

    def _same(self, a: Expr, b: Expr, path: Path) -> int:
        degrees = {self._degree(x, path) for x in (a, b) if x != ex.ZERO}
        if len(degrees) > 1:
            raise refuse("algebra", buffer=self.top.buffer)
        return degrees.pop() if degrees else 0

    def _below(self, x: Expr, index: tuple[Expr, ...], path: Path) -> bool:
        """Is `x` one of the values whose maximum so far is at `index`?"""
        names: dict[str, str] = {}
        mine, theirs = around(path), around(self.top_path)
        loop = next(s.var for s in path if isinstance(s, Loop) and s.var in self.names)
        pairs = [(self.top.value, x), *zip(self.top.index, index, strict=True)]
        if not all(_alike(a, b, names) for a, b in pairs):
            return False
        if names.get(self.first.var, loop) != loop or len(set(names.values())) != len(names):
            return False
        pairs = [(bound(theirs[a]), bound(mine[b])) for a, b in names.items() if a != b]
        return all(_alike(a, b, names) for a, b in pairs)

    def _apart(self) -> None:
        """Refuses where one iteration of a loop meets another one of a later loop."""
        var = self.first.var
        bodies = [substituted(s.body, {s.var: Index(var)}) for s in self.loops]
        free = {self.top.buffer, *self.sums}
        touched = [list(accesses(b, (*self.path, self.first))) for b in bodies]
        for n, left in enumerate(touched):
            for right in touched[n + 1 :]:
                for a in left:
                    for b in right:
                        if a.buffer != b.buffer or a.kind == b.kind == "read" or a.buffer in free:
                            continue
                        if not apart(self.k, a, b, var):
                            raise refuse("dependence", loop=var, buffer=a.buffer)


def _alike(a: Expr, b: Expr, names: dict[str, str]) -> bool:
    """Is `b` the expression `a` with variables renamed? Notes the names."""
    if isinstance(a, Index) and isinstance(b, Index):
        return names.setdefault(a.name, b.name) == b.name
    if type(a) is not type(b):
        return False
    heads = [
        (x.tensor if isinstance(x, Load) else x.fn if isinstance(x, Call) else "") for x in (a, b)
    ]
    if (isinstance(a, Num) and a != b) or heads[0] != heads[1]:
        return False
    left, right = ex.children(a), ex.children(b)
    return len(left) == len(right) and all(
        _alike(x, y, names) for x, y in zip(left, right, strict=True)
    )
