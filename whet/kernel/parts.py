"""The move that takes sums in parts, each under a maximum of its own.

Sums of f(x - m) * …, where m is the maximum of x and f turns sums into products, may be taken
under any maximum: parts of them, each relative to the part's own, are folded once all are there,
each corrected by f(its maximum - m). Unlike in one pass (`whet.kernel.online`) no part waits for
another, so that each may be a program's (Dao et al., "Flash-Decoding for long-context inference",
2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Load, Select
from whet.kernel.legal import refuse, whole
from whet.kernel.loops import Buffer, Kernel, Loop, Stmt, Store, Update, mapped, rewrite
from whet.kernel.move import Move, fresh, register
from whet.kernel.online import LOWEST, Place, Plan, planned
from whet.kernel.place import rebodied
from whet.kernel.region import nested
from whet.kernel.tidy import tidy


@register("parts")
@dataclass(frozen=True, slots=True)
class Parts(Move):
    """Each iteration of loops over one extent has a maximum and sums of its own; these are folded.

    What parts leave lies in memory in one shape, that of the largest sum: one nest makes it.

    before:
        x: input[f32, 64]
        y: output[f32, 1]
        m: memory[f32, 1]
        p: memory[f32, 64]
        z: memory[f32, 1]
        m[0] = -inf
        for j in range(2):
            for jj in range(32):
                m[0] = max(m[0], x[32 * j + jj])
        for k in range(2):
            for kk in range(32):
                p[32 * k + kk] = exp(x[32 * k + kk] - m[0])
        z[0] = 0
        for l in range(2):
            for ll in range(32):
                z[0] += p[32 * l + ll]
        y[0] = log(z[0]) + m[0]
    move: parts((j, k, l,))
    after:
        x: input[f32, 64]
        y: output[f32, 1]
        m: memory[f32, 1]
        p: memory[f32, 64]
        z: memory[f32, 1]
        m_p: memory[f32, 1, 2]
        z_p: memory[f32, 1, 2]
        m_k: memory[f32, 1, 2]
        z_k: memory[f32, 1, 2]
        m_s: memory[f32, 1, 2]
        m_f: memory[f32, 1, 2]
        m[0] = -inf
        z[0] = 0
        for m_pi_1 in range(2):
            m_p[0, m_pi_1] = -inf
        for z_pi_1 in range(2):
            z_p[0, z_pi_1] = 0
        for j in range(2):
            for jj in range(32):
                m_p[0, j] = max(m_p[0, j], x[32 * j + jj])
        for m_s_1 in range(2):
            m_s[0, m_s_1] = (0 if m_p[0, m_s_1] == -inf else m_p[0, m_s_1])
        for k in range(2):
            for kk in range(32):
                p[32 * k + kk] = exp(x[32 * k + kk] - m_s[0, k])
        for l in range(2):
            for ll in range(32):
                z_p[0, l] += p[32 * l + ll]
        for z_k_1 in range(2):
            m_k[0, z_k_1] = m_p[0, z_k_1]
            z_k[0, z_k_1] = z_p[0, z_k_1]
        for m_m_1 in range(2):
            m[0] = max(m[0], m_k[0, m_m_1])
        for m_f_1 in range(2):
            m_f[0, m_f_1] = (1 if m_k[0, m_f_1] == m[0] else exp(m_k[0, m_f_1] - m[0]))
        for z_q_1 in range(2):
            z[0] += z_k[0, z_q_1] * m_f[0, z_q_1]
        y[0] = log(z[0]) + m[0]
    """

    loops: tuple[str, ...]

    def do(self, k: Kernel) -> Kernel:
        plan, widest = self.check(k)
        return _Parting(k, plan, widest).kernel()

    def check(self, k: Kernel) -> tuple[Plan, str]:
        """As for one pass; and what sums wait for is found from the largest one's element."""
        plan = planned(k, self.loops)
        whole(plan.first)
        widest = max(plan.sums, key=lambda n: len(k.buffer(n).sizes))
        top = k.buffer(plan.top.buffer)
        for name, place in plan.sums.items():
            plain = [i for i in place.index if isinstance(i, Index)]
            if len(set(plain)) != len(plain) or not all(
                isinstance(i, Index) or i == ex.ZERO for i in place.index
            ):
                raise refuse("index", buffer=name)
            own = k.buffer(name).sizes
            if name != widest and (own != top.sizes or not _same(place, own)):
                raise refuse("index", buffer=name)
        return plan, widest


def _same(place: Place, sizes: Sequence[int]) -> bool:
    """Is a sum's element the maximum's of the same place?"""
    return all(
        n == 1 or i == Index(v) for i, v, n in zip(place.index, place.vars, sizes, strict=True)
    )


class _Parting:
    """The kernel after the move."""

    def __init__(self, k: Kernel, plan: Plan, widest: str) -> None:
        self.plan, self.widest, self.count = plan, widest, whole(plan.first)
        self.top, self.names = plan.top.buffer, (plan.top.buffer, *plan.sums)
        self.k = k
        self.part = {n: self._new(f"{n}_p", k.buffer(n).sizes, n) for n in self.names}
        self.kept = {n: self._new(f"{n}_k", k.buffer(widest).sizes, n) for n in self.names}
        self.safe = self._new(f"{self.top}_s", k.buffer(self.top).sizes, self.top)
        self.factor = self._new(f"{self.top}_f", k.buffer(self.top).sizes, self.top)

    def _new(self, base: str, sizes: Sequence[int], like: str) -> str:
        name = fresh(self.k, base)
        made = Buffer(name, (*sizes, self.count), self.k.buffer(like).dtype, "memory")
        self.k = replace(self.k, buffers=(*self.k.buffers, made))
        return name

    def kernel(self) -> Kernel:
        p = self.plan
        body: list[Stmt] = [*p.before, *p.between]
        for n in self.names:
            body += self._over(f"{self.part[n]}i", self.part[n], partial(self._start, n))
        body += self._parted(p.first)
        body += self._over(self.safe, self.safe, self._shift)
        for loop in p.rest:
            body += self._parted(loop)
        body += self._over(f"{self.widest}_k", self.kept[self.widest], self._keeping)
        body += self._over(f"{self.top}_m", self.part[self.top], self._highest)
        body += self._over(self.factor, self.factor, self._scale)
        for n in p.sums:
            body += self._over(f"{n}_q", self.part[n], partial(self._folded, n))
        k = rebodied(self.k, p.path, (*body, *p.after))
        return tidy(k)

    def _over(
        self, prefix: str, like: str, made: Callable[[tuple[Expr, ...]], tuple[Stmt, ...]]
    ) -> tuple[Stmt, ...]:
        """A nest over a buffer, with what `made` says of each element."""
        sizes = self.k.buffer(like).sizes
        loops = [(fresh(self.k, f"{prefix}_{d}"), n) for d, n in enumerate(sizes)]
        at = tuple(Index(v) if n != 1 else ex.ZERO for v, n in loops)
        return nested([x for x in loops if x[1] != 1], made(at))

    def _parted(self, loop: Loop) -> list[Stmt]:
        """A loop whose results are its iteration's own."""
        var = Index(loop.var)

        def read(e: Expr) -> Expr:
            e = ex.rebuild(e, read)
            if isinstance(e, Load) and e.tensor == self.top:
                return Load(self.safe, (*e.index, var))
            return e

        def write(s: Stmt) -> Stmt | None:
            if isinstance(s, Update) and s.buffer in self.part:
                return replace(s, buffer=self.part[s.buffer], index=(*s.index, var))
            return None

        return list(rewrite(mapped((loop,), read), write))

    def _shift(self, at: tuple[Expr, ...]) -> tuple[Stmt, ...]:
        now = Load(self.part[self.top], at)
        return (Store(self.safe, at, Select(Call("==", (now, LOWEST)), ex.ZERO, now)),)

    def _place(self, at: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """The maximum's place, from the largest sum's."""
        place = self.plan.sums[self.widest]
        values = dict(zip(place.vars, at[:-1], strict=True))
        return (*(ex.substitute(i, values) for i in place.index), at[-1])

    def _wide(self, at: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """A place of the largest sum, from the maximum's."""
        place = self.plan.sums[self.widest]
        values = {i.name: a for i, a in zip(place.index, at[:-1], strict=True)
                  if isinstance(i, Index)}  # fmt: skip
        return (*(values.get(v, ex.ZERO) for v in place.vars), at[-1])

    def _keeping(self, at: tuple[Expr, ...]) -> tuple[Stmt, ...]:
        found = []
        for n in (*(n for n in self.names if n != self.widest), self.widest):
            index = at if n == self.widest else self._place(at)
            found.append(Store(self.kept[n], at, Load(self.part[n], index)))
        return tuple(found)

    def _scale(self, at: tuple[Expr, ...]) -> tuple[Stmt, ...]:
        was, now = Load(self.kept[self.top], self._wide(at)), Load(self.top, at[:-1])
        scaled = Call(self.plan.function, (Call("-", (was, now)),))
        return (Store(self.factor, at, Select(Call("==", (was, now)), ex.ONE, scaled)),)

    def _start(self, name: str, at: tuple[Expr, ...]) -> tuple[Stmt, ...]:
        return (Store(self.part[name], at, LOWEST if name == self.top else ex.ZERO),)

    def _highest(self, at: tuple[Expr, ...]) -> tuple[Stmt, ...]:
        return (Update(self.top, at[:-1], "max", Load(self.kept[self.top], self._wide(at))),)

    def _folded(self, name: str, at: tuple[Expr, ...]) -> tuple[Stmt, ...]:
        """A part's sum, corrected."""
        place = self.plan.sums[name]
        values = dict(zip(place.vars, at[:-1], strict=True))
        top = (*(ex.substitute(i, values) for i in place.index), at[-1])
        wide = at if name == self.widest else self._wide(at)
        term = Call("*", (Load(self.kept[name], wide), Load(self.factor, top)))
        return (Update(name, at[:-1], "sum", term),)
