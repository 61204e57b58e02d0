"""From an equality at fixed ranks and shared sizes to the most general rule that is provable.

    tensors     add(x, x) where add(x, y) does too
    sizes       x[M, K], y[M, K] where x[M, K], y[N, K] does too: what need not be equal differs
    atoms       x[G*C] as x[C] where the product alone occurs
    numbers     index=0 where any index does, step=1 where any step does
    ranks       x[M, K] where x[*B, K] does too, axes behind the group counted from the end
    axes        axis=0 where any axis does: x[*B], axis=a

Each step is tried and proven, at several ranks and axes; one that is not proven is not taken.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from whet.errors import WhetError
from whet.ir.graph import topological
from whet.ir.types import Poly, Size, product, substitute
from whet.rewrite.conjecture import Conjecture, Form, Statement, build
from whet.rewrite.grouping import grouped, polynomials
from whet.rewrite.sketch import Side, Sketch, Text, Tree, leaves, replaced, spelled, trees
from whet.rewrite.turning import turned

Proven = Callable[[Conjecture, Form], bool]
_MOST = 64
_RANKS = (2, 1, 3)
_PERMUTED = (1, 2, 0)
_AGAIN = ((2, 0, 1), (0, 2, 1))


def lifted(sketch: Sketch, proven: Proven) -> Sketch:
    """The sketch as general as it can be made; it is proven itself."""
    for step in (
        _tensors, _atoms, _sizes, _numbers, _composed, _unmoved, _resized, _turned, _axes, _groups
    ):  # fmt: skip
        sketch = step(sketch, proven)
    return sketch


def forms_of(conjecture: Conjecture) -> Iterator[Form]:
    """Forms that stand for all: ranks of groups, and axes in them."""
    sides = conjecture.sides(2 if conjecture.width_name else 0)
    width = 3 if conjecture.width_name else 0
    if not (sides.groups or sides.structural):
        yield Form(width)
        return
    for rank in _RANKS if sides.groups else (0,):
        ranks = tuple((g, rank) for g in sides.groups)
        if "s" in sides.structural:
            dims = [Poly.symbol(f"B{k}") for k in range(rank)]
            shapes: list[tuple[Size, ...]] = [(*dims, 1), _folded(dims), (1, *dims)]
            for s, t in itertools.pairwise(shapes):
                named = (("s", s), ("t", t)) if "t" in sides.structural else (("s", s),)
                yield Form(width, ranks, named)
            continue
        if "p" in sides.structural:
            if rank == len(_PERMUTED) and "a" in sides.structural:
                for p, axis in itertools.product((_PERMUTED, _AGAIN[1]), range(rank)):
                    yield Form(width, ranks, (("p", p), ("a", axis)))
            elif rank == len(_PERMUTED) and "q" in sides.structural:
                yield from (Form(width, ranks, (("p", _PERMUTED), ("q", q))) for q in _AGAIN)
            elif rank == len(_PERMUTED):
                yield from (Form(width, ranks, (("p", p),)) for p in (_PERMUTED, _AGAIN[1]))
            continue
        for axis in range(rank) if "a" in sides.structural else (0,):
            yield Form(width, ranks, tuple((n, axis) for n in sides.structural))


def _folded(dims: Sequence[Poly]) -> tuple[Size, ...]:
    """Sizes with the last two made one."""
    return (*dims[:-2], product(dims[-2:]))


def holds(sketch: Sketch, proven: Proven) -> bool:
    """Whether it is proven at all its forms."""
    try:
        conjecture = Conjecture(f"lifted: {sketch.text}")
        return all(proven(conjecture, form) for form in forms_of(conjecture))
    except WhetError:
        return False


# -- tensors -------------------------------------------------------------------------------------
def _tensors(sketch: Sketch, proven: Proven) -> Sketch:
    """One tensor that stands in several places taken apart into two."""
    again = True
    while again:
        again = False
        for finer in _finer(sketch):
            if _is_applicable(finer) and holds(finer, proven):
                sketch, again = finer, True
                break
    return sketch


def _is_applicable(sketch: Sketch) -> bool:
    """Whether one side names all tensors of the other: x - x == y - y leads nowhere."""
    left, right = (
        {n for s in x for n in leaves(s) if n in sketch.shapes} for x in (sketch.left, sketch.right)
    )
    return left <= right or right <= left


def _finer(sketch: Sketch) -> Iterator[Sketch]:
    lefts = [n for s in sketch.left for n in leaves(s)]
    rights = [n for s in sketch.right for n in leaves(s)]
    for name in sketch.shapes:
        at = [k for k, n in enumerate(lefts) if n == name]
        other = [k for k, n in enumerate(rights) if n == name]
        if len(at) < 2 or not other or len(other) > 4 or len(at) > 4:
            continue
        fresh = next(n for n in (f"{name}{k}" for k in range(9)) if n not in sketch.shapes)
        for size, count in itertools.product(range(1, len(at)), range(len(other) + 1)):
            for some in itertools.combinations(at[1:], size):
                for more in itertools.combinations(other, count):
                    yield replace(
                        sketch,
                        left=_renamed(sketch.left, lefts, some, fresh),
                        right=_renamed(sketch.right, rights, more, fresh),
                        shapes={**sketch.shapes, fresh: sketch.shapes[name]},
                    )


def _renamed(
    sides: Sequence[Side], names: Sequence[str], places: Sequence[int], fresh: str
) -> tuple[Side, ...]:
    new = iter([fresh if k in places else n for k, n in enumerate(names)])
    found = []
    for s in sides:
        count = sum(1 for _ in leaves(s))
        found.append(replaced(s, [next(new) for _ in range(count)]))
    return tuple(found)


# -- atoms and numbers ---------------------------------------------------------------------------
def _atoms(sketch: Sketch, proven: Proven) -> Sketch:
    """A product of sizes as one size, where its factors occur nowhere else."""
    dims = [d for shape in sketch.shapes.values() for d in shape]
    for composite in dict.fromkeys(d for d in dims if "*" in d and not d.startswith("*")):
        factors = composite.split("*")
        if not all(f.isalpha() for f in factors):
            continue
        whole = factors[-1]
        symbol, old = Poly.symbol(whole), Poly.symbol(factors[0])
        for f in factors[1:]:
            old = old * Poly.symbol(f)  # type: ignore[assignment]

        def value(v: object, old: Poly = old, symbol: Poly = symbol) -> object:
            if isinstance(v, tuple):
                return tuple(map(value, v))
            return symbol if v == old else v

        coarser = replace(
            _with_values(sketch, value),
            shapes={n: tuple(whole if d == composite else d for d in shape)
                    for n, shape in sketch.shapes.items()},
        )  # fmt: skip
        if any(f in re.findall(r"[A-Z]\w*", d) for f in factors[:-1]
               for shape in coarser.shapes.values() for d in shape):  # fmt: skip
            continue
        if holds(coarser, proven):
            sketch = coarser
    return sketch


# Attributes that are the same number everywhere, and the letters that may take its place.
_LETTERS = (
    ("index", 0, "i"), ("index", 1, "i"), ("step", 1, "T"),
    ("before", 1, "b"), ("after", 1, "c"), ("value", 0.0, "v"),
)  # fmt: skip


def _numbers(sketch: Sketch, proven: Proven) -> Sketch:
    """A position along an axis as any position, then steps of one as steps of any length, margins
    as any margins, and what they hold as anything."""
    for name, number, letter in _LETTERS:

        def free(s: Side, name: str = name, number: object = number, letter: str = letter) -> Side:
            if not isinstance(s, Tree):
                return s
            attrs = tuple(
                (k, Text(letter) if k == name and s.args and v == number else v) for k, v in s.attrs
            )
            return Tree(s.op, attrs, tuple(None if a is None else free(a) for a in s.args))

        wider = replace(
            sketch, left=tuple(map(free, sketch.left)), right=tuple(map(free, sketch.right))
        )
        if wider != sketch and holds(wider, proven):
            sketch = wider
    return sketch


def _resized(sketch: Sketch, proven: Proven) -> Sketch:
    """Tensors of one shape that are given others, as tensors of any that are given any."""
    shapes = set(sketch.shapes.values())
    if len(shapes) != 1 or not any("size" in dict(t.attrs) for t in _all(sketch)):
        return sketch
    (own,) = shapes
    names: dict[str, Text] = {f"({', '.join(own)}{',' * (len(own) == 1)})": Text("(*B,)")}

    def side(s: Side) -> Side:
        if not isinstance(s, Tree):
            return s
        inner = tuple(None if a is None else side(a) for a in s.args)
        attrs = []
        for k, v in s.attrs:
            if k == "size" and s.args:
                v = names.setdefault(spelled(v), Text("stuv"[min(len(names) - 1, 3)]))
            attrs.append((k, v))
        return Tree(s.op, tuple(attrs), inner)

    wider = replace(
        sketch, left=tuple(map(side, sketch.left)), right=tuple(map(side, sketch.right)),
        shapes=dict.fromkeys(sketch.shapes, ("*B",)),
    )  # fmt: skip
    return wider if len(names) <= 3 and holds(wider, proven) else sketch


def _unmoved(sketch: Sketch, proven: Proven) -> Sketch:
    """Dims that stay in their order, however many there are."""
    (left,), right = sketch.left[:1], sketch.right[:1]
    if not isinstance(left, Tree) or right != left.args or not isinstance(right[0], str):
        return sketch
    if dict(left.attrs) != {"dims": tuple(range(len(sketch.shapes[right[0]])))}:
        return sketch
    attrs = (("dims", Text("tuple(range(len(B)))")),)
    wider = replace(sketch, left=(Tree(left.op, attrs, left.args),), shapes={right[0]: ("*B",)})
    return wider if holds(wider, proven) else sketch


def _all(sketch: Sketch) -> Iterator[Tree]:
    for s in (*sketch.left, *sketch.right):
        yield from trees(s)


def _composed(sketch: Sketch, proven: Proven) -> Sketch:
    """Two permutations, one after the other, as any two."""
    (left,), (right,) = sketch.left[:1], sketch.right[:1]
    if not (isinstance(left, Tree) and isinstance(right, Tree) and left.op == right.op):
        return sketch
    inner = left.args[0]
    if not (isinstance(inner, Tree) and inner.op == left.op and isinstance(inner.args[0], str)):
        return sketch
    if [*dict(left.attrs)] != ["dims"] or right.args != inner.args:
        return sketch
    name = inner.args[0]
    first = Tree(left.op, (("dims", Text("p")),), (name,))
    wider = replace(
        sketch,
        left=(Tree(left.op, (("dims", Text("q")),), (first,)),),
        right=(Tree(left.op, (("dims", Text("tuple(p[j] for j in q)")),), (name,)),),
        shapes={name: ("*B",)},
    )
    return wider if holds(wider, proven) else sketch


def _with_values(sketch: Sketch, value: Callable[[object], object]) -> Sketch:
    def side(s: Side) -> Side:
        if not isinstance(s, Tree):
            return s
        attrs = tuple((k, value(v)) for k, v in s.attrs)
        return Tree(s.op, attrs, tuple(None if a is None else side(a) for a in s.args))

    return replace(sketch, left=tuple(map(side, sketch.left)), right=tuple(map(side, sketch.right)))


# -- sizes ---------------------------------------------------------------------------------------
def _sizes(sketch: Sketch, proven: Proven) -> Sketch:
    """Every dim of every tensor with a size of its own, but for what the operators force."""
    used = {n for s in (*sketch.left, *sketch.right) for n in leaves(s)}
    fresh: dict[str, str] = {}

    def new(match: re.Match[str]) -> str:
        fresh[f"{match[0]}{len(fresh)}"] = match[0]
        return next(reversed(fresh))

    shapes = {
        name: tuple(re.sub(r"[A-Z]\w*", new, d) for d in sketch.shapes[name])
        for name in sketch.shapes if name in used
    }  # fmt: skip
    found: list[Sketch] = []
    for sides in itertools.islice(_attributes(sketch, fresh), _MOST):
        finer = _unified(replace(sketch, left=sides[0], right=sides[1], shapes=shapes), fresh)
        if finer is not None and finer not in found:
            found.append(finer)
    found.sort(key=lambda s: -len({d for dims in s.shapes.values() for d in dims}))
    return next((s for s in found if holds(s, proven)), sketch)


def _attributes(
    sketch: Sketch, fresh: Mapping[str, str]
) -> Iterator[tuple[tuple[Side, ...], tuple[Side, ...]]]:
    """Both sides with each size in an attribute replaced by one of those that it stood for."""
    choices: list[list[str]] = []

    def open_(s: Side | None) -> None:
        if isinstance(s, Tree):
            for _, v in s.attrs:
                for p in polynomials(v):
                    for monomial, count in Poly.of(p).terms:
                        for symbol in [str(x) for x in monomial for _ in range(max(count, 1))]:
                            known = [n for n, old in fresh.items() if old == symbol]
                            choices.append(known or [symbol])
            for a in s.args:
                open_(a)

    for s in (*sketch.left, *sketch.right):
        open_(s)
    for choice in itertools.product(*choices):
        rest = iter(choice)

        def again(value: object, rest: Iterator[str] = rest) -> object:
            if isinstance(value, tuple):
                return tuple(again(v) for v in value)
            if not isinstance(value, Poly):
                return value
            total: Size = 0
            for monomial, count in value.terms:
                if not monomial:
                    total = total + count
                    continue
                for _ in range(max(count, 1)):
                    part: Size = 1 if count > 0 else count
                    for _x in monomial:
                        part = part * Poly.symbol(next(rest))
                    total = total + part
            return total

        def side(s: Side | None, again: Callable[[object], object] = again) -> Side | None:
            if not isinstance(s, Tree):
                return s
            attrs = tuple((k, again(v)) for k, v in s.attrs)
            return Tree(s.op, attrs, tuple(side(a, again) for a in s.args))

        yield (
            tuple(x for x in [side(s) for s in sketch.left] if x is not None),
            tuple(x for x in [side(s) for s in sketch.right] if x is not None),
        )


def _unified(sketch: Sketch, fresh: Mapping[str, str]) -> Sketch | None:
    """With sizes identified until both sides can be built and have equal types: those that must be
    equal, and where formulas of several must be, those that stood for the same one.

    Args:
        fresh: what each size stood for.
    """
    to: dict[str, str] = {}
    for _ in range(len(fresh)):
        now = _with_sizes(sketch, to)
        try:
            statement = Statement(Conjecture(f"unified: {now.text}"))
            scope = statement.symbols
            tensors = statement.leaves(scope)
            left = build(statement.sides.left, tensors, scope)
            right = build(statement.sides.right, tensors, scope)
        except WhetError:
            return None
        pairs = [(g.left, g.right) for n in topological((*left, *right)) if not n.is_leaf
                 for g in n.instance.guards]  # fmt: skip
        for a, b in zip(left, right, strict=True):
            if len(a.shape) != len(b.shape):
                return None
            pairs += zip(a.shape, b.shape, strict=True)
        open_ = [(a, b) for a, b in pairs if a != b]
        if not open_:
            return now
        more = next((m for a, b in open_ if (m := _solution(a, b)) is not None), None)
        more = more or next((m for a, b in open_ if (m := _counterparts(a, b, fresh))), None)
        if more is None:
            return None
        old, new = more
        to = {k: new if v == old else v for k, v in to.items()}
        to[old] = new
    return None


def _solution(a: object, b: object) -> tuple[str, str] | None:
    """(name, name) where one symbol is another."""
    gap = Poly.of(a - b) if isinstance(a, (int, Poly)) and isinstance(b, (int, Poly)) else None
    if gap is None or len(gap.terms) != 2:
        return None
    (m, c), (n, d) = gap.terms
    if not all(isinstance(atom, str) for atom in (*m, *n)):  # quotients
        return None
    if len(m) == len(n) == 1 and c == -d:
        return str(max(m[0], n[0], key=str)), str(min(m[0], n[0], key=str))
    if m and n and len(m) == len(n) == 2 and c == -d:
        left = [x for x in m if x not in n]
        right = [x for x in n if x not in m]
        if len(left) == len(right) == 1:
            return str(max(left[0], right[0], key=str)), str(min(left[0], right[0], key=str))
    return None


def _counterparts(a: object, b: object, fresh: Mapping[str, str]) -> tuple[str, str] | None:
    """(name, name) of two sizes, each in one of two formulas, that stood for the same size."""
    first, second = (v.symbols() if isinstance(v, Poly) else frozenset() for v in (a, b))
    ones, others = ([n for n in fresh if n in s] for s in (first - second, second - first))
    return next(((y, x) for x in ones for y in others if fresh[x] == fresh[y]), None)


def _with_sizes(sketch: Sketch, to: Mapping[str, str]) -> Sketch:
    symbols = {k: Poly.symbol(v) for k, v in to.items()}

    def value(v: object) -> object:
        if isinstance(v, tuple):
            return tuple(map(value, v))
        return substitute(v, symbols) if isinstance(v, Poly) else v

    def renamed(d: str) -> str:
        return re.sub(r"[A-Z]\w*", lambda m: to.get(m[0], m[0]), d)

    shapes = {n: tuple(map(renamed, dims)) for n, dims in sketch.shapes.items()}
    return replace(_with_values(sketch, value), shapes=shapes)


# -- ranks and axes ------------------------------------------------------------------------------
def _groups(sketch: Sketch, proven: Proven) -> Sketch:
    """Neighbouring dims that nothing addresses as any number of dims, as many as can be."""
    if any("*" in d for dims in sketch.shapes.values() for d in dims):
        return sketch
    runs = dict.fromkeys(
        dims[i:j] for dims in sketch.shapes.values()
        for i in range(len(dims)) for j in range(i + 1, len(dims) + 1)
    )  # fmt: skip
    for run in sorted(runs, key=len, reverse=True):
        if len(set(run)) == len(run) and all(d.isalnum() and not d.isdigit() for d in run):
            wider = grouped(sketch, run)
            if wider is not None and not _addressed(wider) and holds(wider, proven):
                return wider
    return sketch


def _turned(sketch: Sketch, proven: Proven) -> Sketch:
    """Dims that are moved, with an axis of them, as any dims and any axis."""
    wider = turned(sketch)
    return wider if wider is not None and holds(wider, proven) else sketch


def _axes(sketch: Sketch, proven: Proven) -> Sketch:
    """Neighbouring dims, one of which is addressed, as any number of dims of which any is."""
    runs = {
        dims[i:j] for dims in sketch.shapes.values()
        for i in range(len(dims)) for j in range(i + 2, len(dims) + 1)
    }  # fmt: skip
    for run in sorted(runs, key=lambda r: (-len(r), r)):
        if len(set(run)) == len(run) and all(d.isalnum() and not d.isdigit() for d in run):
            wider = grouped(sketch, run)
            if wider is not None and _addressed(wider) and holds(wider, proven):
                return wider
    return sketch


def _addressed(sketch: Sketch) -> bool:
    """Whether an axis is any axis of a group now."""
    return any(
        isinstance(v, Text) and v.text in ("a", "p")
        for s in (*sketch.left, *sketch.right) for t in trees(s) for _, v in t.attrs
    )  # fmt: skip
