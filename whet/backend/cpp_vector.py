"""Vector loops as C: chunks of W iterations, the last one under a mask.

few chunks, or accumulators in registers    written out, one after the other
many                                        a loop over chunks; with sums in it over four at
                                            once, each with a vector of its own to add to
an update of one element                    lanes are summed in a vector, that is folded once
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from whet.backend.cpp_lanes import Chunk, Lanes, Plain, chunk_index, neutral_lanes
from whet.backend.cpp_scalar import combined, extremum, spelled
from whet.backend.cpp_unroll import expanded
from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Num
from whet.ir.types import DType
from whet.kernel.affine import LANE, Domain, bounds, simplify
from whet.kernel.loops import Buffer, Extent, If, Loop, Stmt, Store, Update, accesses, bound, leaves

WRITTEN_OUT = 4  # chunks that are no loop
AT_ONCE = 4  # vectors that a long sum is spread over, to hide an addition's latency


@dataclass(slots=True)
class Fold:
    """An update of one element by every iteration.

    Attributes:
        update: the statement.
        names: vectors that it is summed in.
    """

    update: Update
    names: list[str] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, tuple[Expr, ...], str]:
        return self.update.buffer, self.update.index, self.update.how


class Vectors:
    """Prints the vector loops of a kernel.

    Attributes:
        private: {loop: scratch that lives within it}.
        declared: {loop: vectors to declare in each of its chunks}.
    """

    def __init__(
        self,
        lanes: Lanes,
        private: Mapping[str, tuple[Buffer, ...]],
        declared: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.lanes, self.scalars, self.width = lanes, lanes.scalars, lanes.width
        self.private, self.declared = private, declared
        self.masks = 0

    # -- loops -------------------------------------------------------------------------------------
    def loop(self, s: Loop, domain: Domain, indent: str) -> list[str]:
        """The loop's lines. Raises `Plain` where lanes cannot hold it."""
        found = [
            Fold(leaf) for leaf, _, _ in leaves(s.body)
            if isinstance(leaf, Update) and self._folds(leaf, s)
        ]  # fmt: skip
        folds = list({fold.place: fold for fold in found}.values())
        count = self.chunks(s, domain)
        written = count is not None and (count <= WRITTEN_OUT or self.registers(s))
        spread = 1 if written else AT_ONCE if folds else 1
        lines: list[str] = []
        for k, fold in enumerate(folds):
            fold.names = [f"{spelled(s.var)}_f{k}_{j}" for j in range(spread)]
            start = neutral_lanes(fold.update.how)
            lines.append(f"{indent}vf {', '.join(f'{n} = {start}' for n in fold.names)};")
        if written:
            assert count is not None
            for c in range(count):
                lines += self._chunk(s, Num(c), domain, folds, 0, indent)
        else:
            lines += self._looped(s, domain, folds, spread, indent)
        for fold in folds:
            lines.append(indent + self._folded(fold, domain))
        return lines

    def chunks(self, s: Loop, domain: Domain) -> int | None:
        """How many chunks there are at most, if that is known."""
        most = s.extent if isinstance(s.extent, int) else bounds(s.extent, domain)[1]
        return -(-int(most) // self.width) if most < 2**31 else None

    def registers(self, s: Loop) -> bool:
        """Does the loop run along vectors that are kept in registers?"""
        kept = [
            a for a in accesses((s,))
            if a.buffer in self.lanes.variables and any(s.var in ex.free(i) for i in a.index)
        ]  # fmt: skip
        return bool(kept)

    def _folds(self, leaf: Update, s: Loop) -> bool:
        """Is it one element, whatever the iteration?"""
        if any(b.name == leaf.buffer for b in self.private.get(s.var, ())):
            return False
        if any(s.var in ex.free(i) for i in leaf.index):
            return False
        if self.scalars.kernel.buffer(leaf.buffer).dtype is not DType.f32:
            raise Plain
        return True

    def _looped(
        self, s: Loop, domain: Domain, folds: list[Fold], spread: int, indent: str
    ) -> Iterator[str]:
        w, c = self.width, f"{spelled(s.var)}_c"
        size = bound(s.extent)
        text = self.scalars.whole(size, domain)
        inner = indent + "  "
        known = s.extent if isinstance(s.extent, int) else None
        n = str(known) if known is not None else f"{spelled(s.var)}_n"
        if known is None:
            yield f"{indent}const i64 {n} = {text};"
        yield f"{indent}i64 {c} = 0;"
        chunks = simplify(Call("//", (size, Num(w))), domain)
        if spread > 1 and (known is None or known >= spread * w):
            yield f"{indent}for (; ({c} + {spread}) * {w} <= {n}; {c} += {spread}) {{"
            for j in range(spread):
                at = Index(c) if not j else Call("+", (Index(c), Num(j)))
                around: dict[str, Extent] = {**domain, c: _extent(chunks)}
                yield from self._chunk(s, at, around, folds, j, inner, whole=True)
            yield f"{indent}}}"
        if known is None or known >= w:
            yield f"{indent}for (; ({c} + 1) * {w} <= {n}; {c}++) {{"
            around = {**domain, c: _extent(chunks)}
            yield from self._chunk(s, Index(c), around, folds, 0, inner, whole=True)
            yield f"{indent}}}"
        if known is None or known % w:
            rest = n if known is None else str(known)
            if known is None:
                yield f"{indent}if ({c} * {w} < {rest}) {{"
            else:
                yield f"{indent}{{"
            last: Expr = Num(known // w) if known is not None else Index(c)
            around = {**domain} if known is not None else {**domain, c: _extent(chunks, 1)}
            lanes = known % w if known is not None else w
            tail = f"{spelled(s.var)}_t"
            start = str(known // w * w) if known is not None else f"{c} * {w}"
            yield f"{inner}const vi {tail} = iota() < (int)({rest} - {start});"
            yield from self._chunk(s, last, around, folds, 0, inner, tail=(tail, lanes))
            yield f"{indent}}}"

    # -- one chunk ---------------------------------------------------------------------------------
    def _chunk(
        self,
        s: Loop,
        c: Expr,
        domain: Domain,
        folds: list[Fold],
        which: int,
        indent: str,
        *,
        whole: bool = False,
        tail: tuple[str, int] | None = None,
    ) -> Iterator[str]:
        """W iterations; written out (neither `whole` nor `tail`), the mask is found here."""
        w = self.width
        lanes, mask = w, None
        yield f"{indent}{{"
        indent += "  "
        if tail is not None:
            mask, lanes = tail
        elif not whole:
            assert isinstance(c, Num)
            start = w * int(str(c.value))
            if isinstance(s.extent, int):
                lanes = min(w, s.extent - start)
                if lanes < w:
                    mask = "tail"
                    yield f"{indent}const vi tail = iota() < {lanes};"
            else:
                mask = "tail"
                lanes = min(w, int(bounds(s.extent, domain)[1]) - start)
                size = self.scalars.whole(bound(s.extent), domain)
                yield f"{indent}const vi tail = iota() < (int)({size} - {start});"
        for name in self.declared.get(s.var, ()):
            yield f"{indent}vf {name};"
        around: dict[str, Extent] = {**domain, LANE: lanes}
        private = frozenset(b.name for b in self.private.get(s.var, ()))
        at = Chunk(around, mask, None, private)
        values = chunk_index(s.var, c, w)
        for new in expanded(s.body, around, values):
            yield from self._statement(new, at, folds, which, indent)
        yield f"{indent[:-2]}}}"

    def _statement(
        self, s: Stmt, at: Chunk, folds: list[Fold], which: int, indent: str
    ) -> Iterator[str]:
        match s:
            case If(test, body) if not self.lanes.varies(test, at):
                yield f"{indent}if ({self.scalars.truth(test, at.domain)}) {{"
                for x in body:
                    yield from self._statement(x, at, folds, which, indent + "  ")
                yield f"{indent}}}"
            case If(test, body):
                truth = self.lanes.truths(*self.lanes.text(test, at))
                active = f"{at.active} & {truth}" if at.active else truth
                self.masks += 1
                name = f"on{self.masks}"
                yield f"{indent}const vi {name} = {active};"
                for x in body:
                    yield from self._statement(x, at.within(name), folds, which, indent)
            case Store(name, index, value):
                yield indent + self._written(name, index, self.lanes.text(value, at), at)
            case Update(name, index, how, value):
                text = self.lanes.text(value, at)
                fold = next((f for f in folds if f.place == (name, index, how)), None)
                if fold is not None:
                    yield indent + self._summed(fold.names[which % len(fold.names)], how, text, at)
                else:
                    yield from self._updated(s, text, at, indent)
            case Loop():
                raise Plain

    def _written(
        self, name: str, index: tuple[Expr, ...], value: tuple[str, str], at: Chunk
    ) -> str:
        held = self.lanes.variable(name, index, at)
        if held is not None:
            text = self.lanes.floats(*value)
            return f"{held} = {f'sel({at.mask}, {text}, {held})' if at.mask else text};"
        b = self.scalars.kernel.buffer(name)
        rest, step = self.lanes.address(b, index, at)
        if step == 0 or name in at.private:
            raise Plain
        return self.lanes.store(b, rest, step, value, at)

    def _updated(self, s: Update, value: tuple[str, str], at: Chunk, indent: str) -> Iterator[str]:
        b = self.scalars.kernel.buffer(s.buffer)
        if not b.dtype.is_float:
            raise Plain
        text = self.lanes.floats(*value)
        held = self.lanes.variable(s.buffer, s.index, at)
        if held is not None:
            new = updated(s.how, held, text)
            yield f"{indent}{held} = {f'sel({at.mask}, {new}, {held})' if at.mask else new};"
            return
        rest, step = self.lanes.address(b, s.index, at)
        if step == 0:
            if s.buffer in at.private or b.dtype is not DType.f32:
                raise Plain
            place = f"{spelled(b.name)}[{self.lanes.pointer(b, rest, at).split(' + ', 1)[1]}]"
            if at.active:
                text = f"sel({at.active}, {text}, {neutral_lanes(s.how)})"
            yield f"{indent}{place} = {combined(s.how, place, f'fold_{s.how}({text})', 'f')};"
            return
        if b.dtype is DType.f64:
            raise Plain
        old = self.lanes.fetched(b, rest, step, at.active, at)
        yield indent + self.lanes.store(b, rest, step, (updated(s.how, old, text), "F"), at)

    def _summed(self, name: str, how: str, value: tuple[str, str], at: Chunk) -> str:
        text = self.lanes.floats(*value)
        new = updated(how, name, text)
        return f"{name} = {f'sel({at.active}, {new}, {name})' if at.active else new};"

    def _folded(self, fold: Fold, domain: Domain) -> str:
        names, how = list(fold.names), fold.update.how
        while len(names) > 1:
            pairs = zip(names[::2], names[1::2], strict=True)
            names = [f"({updated(how, a, b)})" for a, b in pairs]
        place = self.scalars.place(fold.update.buffer, fold.update.index, domain)
        if how in ("max", "min"):
            return f"{place} = {extremum(how, [place, f'fold_{how}({names[0]})'], 'f')};"
        return f"{place} = {combined(how, place, f'fold_{how}({names[0]})', 'f')};"


def updated(how: str, old: str, new: str) -> str:
    """An update of every lane."""
    if how in ("sum", "prod"):
        return f"{old} {'+' if how == 'sum' else '*'} {new}"
    return f"v{how}({old}, {new})"


def _extent(e: Expr, more: int = 0) -> Extent:
    if isinstance(e, Num):
        return int(str(e.value)) + more
    return Call("+", (e, Num(more))) if more else e
