"""What an operator's own record says that it is: equalities of whole operators with their pieces.

    record      y[*b, i] = (x[*b, i] - m[*b]) * rsqrt(s[*b] + eps) * gamma[i]
    pieces      the record read as a graph: each function and each reduction by the operator whose
                whole record it is, operands put in place by reshapes
    optional    what an operator without its last operands is, and what these add to that
    inverse     a difference as a sum, a quotient as a product
    affine      where a result is linear in the first operand: x * factor + rest, both over as few
                axes as they have

Nothing is matched by name: which operator is a function or a reduction is read off the table. A
record that needs more than that (shifted indices, composite axes, products summed up) has none.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.errors import WhetError
from whet.ir.expr import Call, Expr, Index, Load, Num, Reduce, walk
from whet.ir.ops import TABLE, instance
from whet.ir.record import Instance
from whet.ir.types import Poly, Size, product
from whet.rewrite.kinds import listed, pointwise
from whet.rewrite.sketch import Side, Sketch, Tree

_MODES = ("optional", "pieces", "affine")
_UNDONE = {"-": ("+", "*", Num(-1)), "/": ("*", "/", Num(1))}
_RANKS = (1, 2)  # dims that a group stands for
_NAMES = "xyzwuv"
_SIZES = "MKNPLH"
_MOST = 24  # operators


class _None(Exception):
    """A record that is not made of pieces."""


@dataclass(frozen=True)
class Value:
    """A graph over some axes, in the order of the result's.

    Attributes:
        axes: one dim each.
    """

    tree: Side
    axes: tuple[str, ...]


def expansions(ops: Sequence[str] = ()) -> Iterator[Sketch]:
    """Every operator of the table with its pieces, as far as its record has them.

    Args:
        ops: these only.
    """
    for op in ops or TABLE:
        yield from _of(op)


def _of(op: str) -> Iterator[Sketch]:
    record = TABLE[op].record
    single = {v for k, v in _functions().items() if not str(k).startswith("mean")}
    if record is None or len(record.outs) != 1:
        return
    if op in single:
        yield from _inverse(op)
        return
    optional = [k for k, (_, _, absent) in enumerate(record.operands) if absent is not None]
    needed = len(record.operands) - len(optional)
    for rank in _RANKS[:1] if pointwise(op) else _RANKS:
        for count in sorted({needed, len(record.operands)}):
            try:
                whole = _whole(op, rank, count)
            except (WhetError, _None):
                continue
            for mode in _MODES:
                try:
                    bare = _whole(op, rank, needed) if count > needed else None
                    right = _Pieces(op, whole.bound, whole.operands).result(mode, bare)
                except (_None, WhetError):
                    continue
                yield Sketch((whole.left,), (right,), whole.shapes)


def _inverse(op: str) -> Iterator[Sketch]:
    """A function of two numbers by the one that it undoes: a - b is a + (-1) * b."""
    record = TABLE[op].record
    if record is None or not pointwise(op) or len(record.operands) != 2:
        return
    whole = _whole(op, 1, 2)
    match whole.bound.lets[-1].body:
        case Call("-" | "/" as fn, (Load() as a, Load() as b)):
            other, inner, number = _UNDONE[fn]
            body = Call(other, (a, Call(inner, (number, b))))
            pieces = _Pieces(op, whole.bound, whole.operands)
            right = pieces.placed(pieces.read(body), whole.bound.lets[-1].axes)
            yield Sketch((whole.left,), (right,), whole.shapes)


@dataclass(frozen=True)
class _Whole:
    left: Tree
    shapes: Mapping[str, tuple[str, ...]]
    bound: Instance
    operands: Mapping[str, str]


def _whole(op: str, rank: int, count: int) -> _Whole:
    """An operator at a rank of its groups, over tensors with sizes of their own."""
    record = TABLE[op].record
    assert record is not None
    sizes: dict[str, Size] = {}
    free = iter(_SIZES)

    def dims(dims_of: Sequence[ast.expr]) -> list[Size]:
        found: list[Size] = []
        for d in dims_of:
            d = d.left if isinstance(d, ast.BinOp) else d
            match d:
                case ast.Starred(ast.Name(name)):
                    keys = [f"{name}{k}" for k in range(rank)]
                case ast.Starred(ast.BinOp(ast.Name(name))):
                    keys = [f"{name}{k}" for k in range(rank)]
                case ast.Name(name):
                    keys = [name]
                case _:
                    raise _None
            for key in keys:
                if key not in sizes:
                    sizes[key] = Poly.symbol(next(free, "Z"))
                found.append(sizes[key])
        return found

    shapes = [tuple(dims(listed(t))) for _, t, _ in record.operands[:count]]
    attrs: dict[str, object] = {}
    for name, pattern in record.patterns.items():
        match pattern:
            case ast.Constant():
                continue
            case ast.Tuple([ast.Starred(ast.Name(group))]) if f"{group}0" in sizes:
                attrs[name] = tuple(sizes[f"{group}{k}"] for k in range(rank))
            case ast.Name(axis) if axis == "axis":
                attrs[name] = len(shapes[0]) - 1
            case ast.Name("dims"):
                attrs[name] = tuple(range(len(shapes[0]) - rank, len(shapes[0])))
            case ast.Name(number) if number.islower():
                attrs[name] = Poly.symbol(number[0])
            case _:
                raise _None
    whole = (*shapes, *[None] * (len(record.operands) - count))
    bound = instance(op, whole, tuple(sorted(attrs.items())))
    if any(g.left != g.right for g in bound.guards):
        raise _None
    names = [n for n, _, _ in record.operands]
    called = dict(zip(names[:count], _NAMES, strict=False))
    args = tuple(called.get(n) for n in names)
    spelled = tuple((k, v) for k, v in sorted(attrs.items()))
    texts = {called[n]: tuple(map(str, s)) for n, s in zip(names, shapes, strict=False)}
    return _Whole(Tree(op, spelled, args), texts, bound, called)


@functools.cache
def _functions() -> Mapping[object, str]:
    """Operators that are one function of their operands, or one reduction of theirs."""
    found: dict[object, str] = {}
    for op, entry in TABLE.items():
        record = entry.record
        if record is None or len(record.operands) not in (1, 2):
            continue
        try:
            if pointwise(op):
                (let,) = instance(op, ((2,),) * len(record.operands), ()).lets
                if isinstance(let.body, Call) and _plain(let.body.args):
                    found.setdefault((let.body.fn, len(let.body.args)), op)
            elif [*record.patterns] == ["dims"]:
                (let,) = instance(op, ((2, 3),), (("dims", (1,)),)).lets
                match let.body:
                    case Reduce(kind, _, Load()):
                        found.setdefault(kind, op)
                    case Call("/", (Reduce(kind, _, Load()), Num(3))):
                        found.setdefault(f"mean {kind}", op)
        except (WhetError, ValueError):
            continue
    return found


def _plain(args: Sequence[Expr]) -> bool:
    """Whether arguments are different tensors' elements, each where the result's stands."""
    loads = [a for a in args if isinstance(a, Load)]
    return len({a.tensor for a in loads}) == len(args)


class _Pieces:
    """Reads an instance as a graph."""

    def __init__(self, own: str, bound: Instance, operands: Mapping[str, str]) -> None:
        self.own, self.bound, self.operands, self.count = own, bound, operands, 0
        self.inner: tuple[Expr, Value] | None = None
        for slots in (*bound.operands.values(), *bound.results.values()):
            if any(len(a) > 1 for a in slots.axes) or [*slots.dims] != sorted(slots.dims):
                raise _None
        self.order = self._order()

    def _order(self) -> tuple[str, ...]:
        """All axes, each result's before those that are summed over, as operands list them."""
        every = [s.flat for s in (*self.bound.results.values(), *self.bound.operands.values())]
        every += [let.axes for let in self.bound.lets]
        longest = max((s.flat for s in self.bound.operands.values()), key=len)
        if any([a for a in longest if a in axes] != [*axes] for axes in every):
            raise _None
        return longest

    def result(self, mode: str, bare: _Whole | None) -> Tree:
        """The last assignment as a graph, in one of `_MODES`. Raises `_None` where it is none.

        Args:
            bare: the operator without the operands that may be left out.
        """
        let = self.bound.lets[-1]
        body = let.body
        first = next(iter(self.operands))
        whole = Load(first, tuple(Index(a) for a in self.bound.operands[first].flat))
        if mode == "optional":
            if bare is None or not _holds(body, bare.bound.lets[-1].body):
                raise _None
            self.inner = (bare.bound.lets[-1].body, Value(bare.left, let.axes))
        elif mode == "affine":
            factor, rest = _linear(body, first)
            if factor is None or rest is None or not self._given(factor, rest):
                raise _None
            body = Call("+", (Call("*", (whole, factor)), rest))
        placed = self.placed(self.read(body), let.axes)
        if not isinstance(placed, Tree):
            raise _None
        return placed

    def _given(self, *es: Expr) -> bool:
        """Whether expressions read operands only, nothing that was made of the first one."""
        return all(
            x.tensor in self.operands for e in es for x in walk(e) if isinstance(x, Load)
        )  # fmt: skip

    def read(self, e: Expr) -> Value:
        if self.inner is not None and e == self.inner[0]:
            return self.inner[1]
        match e:
            case Num(value):
                return Value(_number(value), ())
            case Load(name, index, None) if all(isinstance(i, Index) for i in index):
                axes = tuple(i.name for i in index if isinstance(i, Index))
                if name in self.operands:
                    return Value(self.operands[name], axes)
                let = self.bound.let(name)
                found = self.read(let.body)
                to = dict(zip(let.axes, axes, strict=True))
                return Value(found.tree, tuple(to.get(a, a) for a in found.axes))
            case Call("/", (Reduce(kind, axes, body), Num(n))) if self.is_mean(kind, axes, n):
                return self.reduced(f"mean {kind}", axes, body)
            case Reduce(kind, axes, body):
                return self.reduced(kind, axes, body)
            case Call("**", (base, Num(int(n)))) if 2 <= n <= 3:
                once = self.read(base)
                total = once
                for _ in range(n - 1):
                    total = self.call("*", [total, once])
                return total
            case Call(fn, args):
                return self.call(fn, [self.read(a) for a in args])
        raise _None

    def is_mean(self, kind: str, axes: Sequence[str], count: object) -> bool:
        """Whether a sum over axes, divided by a number, is another operator's record."""
        if self.own == _functions().get(f"mean {kind}"):
            return False
        return count == product(self.bound.extents[a] for a in axes)

    def reduced(self, kind: str, axes: Sequence[str], body: Expr) -> Value:
        inner = self.read(body)
        if kind not in _functions() or not set(axes) <= set(inner.axes):
            raise _None
        dims = tuple(k for k, a in enumerate(inner.axes) if a in axes)
        left = tuple(a for a in inner.axes if a not in axes)
        return Value(self.made(_functions()[kind], (inner.tree,), dims=dims), left)

    def call(self, fn: str, values: Sequence[Value]) -> Value:
        op = _functions().get((fn, len(values)))
        if op is None:
            raise _None
        axes = tuple(a for a in self.order if any(a in v.axes for v in values))
        return Value(self.made(op, tuple(self.placed(v, axes) for v in values)), axes)

    def placed(self, v: Value, axes: Sequence[str]) -> Side:
        """A value so that its dims stand where `axes` do, the last ones aligned."""
        if v.axes == tuple(axes)[len(axes) - len(v.axes) :]:
            return v.tree
        start = axes.index(v.axes[0])
        size = tuple(self.bound.extents[a] if a in v.axes else 1 for a in axes[start:])
        return self.made("reshape", (v.tree,), size=size)

    def made(self, op: str, args: tuple[Side, ...], **attrs: object) -> Tree:
        self.count += 1
        if self.count > _MOST:
            raise _None
        return Tree(op, tuple(sorted(attrs.items())), args)


def _number(value: object) -> str:
    return f"{value}"


def _holds(e: Expr, part: Expr) -> bool:
    return e != part and any(x == part for x in walk(e))


def _has(e: Expr, tensor: str) -> bool:
    return any(isinstance(x, Load) and x.tensor == tensor for x in walk(e))


def _linear(e: Expr, tensor: str) -> tuple[Expr | None, Expr | None]:
    """(factor, rest) of an expression that is factor * element + rest; None where one is 0.

    Raises:
        _None: it is not linear.
    """
    if not _has(e, tensor):
        return None, e
    match e:
        case Load():
            return Num(1), None
        case Call("+" | "-" as fn, (a, b)):
            (p, q), (r, s) = _linear(a, tensor), _linear(b, tensor)
            return _both(fn, p, r), _both(fn, q, s)
        case Call("*", (a, b)):
            if _has(b, tensor):
                a, b = b, a
            if _has(b, tensor):
                raise _None
            p, q = _linear(a, tensor)
            return _scaled(p, b), _scaled(q, b)
    raise _None


def _both(fn: str, a: Expr | None, b: Expr | None) -> Expr | None:
    if b is None:
        return a
    if a is None:
        return b if fn == "+" else Call("*", (Num(-1), b))
    return Call(fn, (a, b))


def _scaled(a: Expr | None, by: Expr) -> Expr | None:
    if a is None:
        return None
    return by if a == Num(1) else Call("*", (a, by))
