"""A run of dims replaced by a group of any number of dims, wherever it stands.

    before:  concat(x[M, K], y[N, K], axis=0)        run: K
    after:   concat(x[M, *B], y[N, *B], axis=0)

    before:  relu(select(x[T, M], axis=0, index=i))  run: T, M
    after:   relu(select(x[*B], axis=a, index=i))    a: any axis of the group

Axes behind the group are counted from the end.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from whet.errors import WhetError
from whet.ir.types import Poly, Size
from whet.rewrite.conjecture import Conjecture, Statement, build
from whet.rewrite.sketch import Side, Sketch, Text, Tree, spelled
from whet.rewrite.syntax import Apply, Literal, Var, is_structural


def polynomials(value: object) -> Iterator[Poly]:
    """Sizes over symbols in an attribute's value."""
    if isinstance(value, Poly):
        yield value
    elif isinstance(value, tuple):
        for v in value:
            yield from polynomials(v)


def grouped(sketch: Sketch, run: tuple[str, ...]) -> Sketch | None:
    """With a run of dims replaced by a group wherever it stands; None where it cannot be."""
    try:
        statement = Statement(Conjecture(f"grouped: {sketch.text}"))
        tensors = statement.leaves(statement.symbols)
    except WhetError:
        return None
    group = "B" if not any("B" in dims for dims in sketch.shapes.values()) else "B9"
    symbols = tuple(Poly.symbol(d) for d in run)
    shapes: dict[str, tuple[str, ...]] = {}
    for name, dims in sketch.shapes.items():
        at = _find(dims, run)
        rest = dims if at is None else (*dims[:at], *dims[at + len(run) :])
        if any(d in run for d in rest):
            return None
        shapes[name] = dims if at is None else (*dims[:at], f"*{group}", *dims[at + len(run) :])
    try:
        rewriter = _Grouping(symbols, group, statement, tensors)
        sides = [tuple(rewriter.side(s) for s in x) for x in (sketch.left, sketch.right)]
    except (WhetError, LookupError):
        return None
    return replace(sketch, left=sides[0], right=sides[1], shapes=shapes)


def _find(dims: Sequence[object], run: Sequence[object], cut: int = 0) -> int | None:
    """Where a run stands among dims; of which `cut` may be other ones, of a part or a whole."""
    for k in range(len(dims) - len(run) + 1):
        pairs = zip(dims[k : k + len(run)], run, strict=True)
        if sum(a != b for a, b in pairs) <= cut:
            return k
    return None


class _Grouping:
    """Rewrites attributes for a group that takes the place of a run of dims."""

    def __init__(
        self, run: tuple[Poly, ...], group: str, statement: Statement, tensors: Mapping[str, object]
    ) -> None:
        self.run, self.group, self.statement, self.tensors = run, group, statement, tensors

    def side(self, s: Side) -> Side:
        if not isinstance(s, Tree):
            return s
        args = tuple(None if a is None else self.side(a) for a in s.args)
        first = s.args[0] if s.args else None
        shape = self._shape(first) if first is not None else ()
        attrs = tuple((k, self._attr(s.op, k, v, shape)) for k, v in s.attrs)
        return Tree(s.op, attrs, args)

    def _shape(self, s: Side) -> tuple[Size, ...]:
        """The shape of a subgraph before the run was replaced."""

        def pattern(t: Side | None) -> Apply | Var | Literal | None:
            if t is None:
                return None
            if isinstance(t, str):
                if t in self.tensors or t.isidentifier():
                    return Var(t, None)
                return Literal(float(t))
            attrs = tuple((k, ast.parse(spelled(v), mode="eval").body) for k, v in t.attrs)
            return Apply(t.op, tuple(pattern(a) for a in t.args), attrs)

        made = pattern(s)
        assert made is not None
        return build((made,), self.tensors, self.statement.symbols)[0].shape  # type: ignore[arg-type]

    def _attr(self, op: str, name: str, value: object, shape: tuple[Size, ...]) -> object:
        at = _find(shape, self.run)
        if at is None and len(self.run) > 1:
            at = _find(shape, self.run, 1)
        if isinstance(value, tuple) and any(isinstance(v, Poly) for v in value):
            found = _find(value, self.run)
            if found is None:
                if any(_mentions(v, self.run) for v in value):
                    raise LookupError(name)
                return value
            before, after = value[:found], value[found + len(self.run) :]
            return (*before, Text(f"*{self.group}"), *after)
        if not is_structural(op, name):
            if _mentions(value, self.run):
                raise LookupError(name)
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return self._axis(op, value, shape, at)
        if isinstance(value, tuple) and all(isinstance(v, int) for v in value):
            if at is None:
                return value
            if len(self.run) > 1 and len(shape) == len(self.run) == len(value):
                return Text("p")
            if sorted(value) == list(range(len(shape))):  # a permutation
                raise LookupError(name)
            return tuple(self._axis(op, v, shape, at) for v in value)
        return value

    def _axis(self, op: str, value: int, shape: tuple[Size, ...], at: int | None) -> object:
        rank = len(shape) + (op == "stack")
        if at is None or value < at:
            return value
        if value < at + len(self.run):
            if len(self.run) == 1:
                raise LookupError("the dim is addressed")
            return Text("a")
        return value - rank


def _mentions(value: object, run: Sequence[Poly]) -> bool:
    names = {str(s) for s in run}
    return any(names & p.symbols() for p in polynomials(value))
