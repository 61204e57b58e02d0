"""Turning an index around: which iterations of a consumer read a given element.

A forward body reads `u[E0, E1, …]` somewhere inside its loops. Its adjoint asks the converse: for
a given element of `u`, which iterations read it? That is a system of equations `Ek == tk` between
index expressions over the loops' axes and the element's own axes t, solved one at a time:

    v            == t       v := t
    c*v + rest   == t       v := (t - rest)//c where c divides it       v: the longest such axis
    (v + c) % V  == t       v := (t - c) % V
    e // c       == t       e == c*t, where e is known to be a multiple of c
    e//c == t, e%c == s     e == c*t + s, a row-major number put together
    v*W + w      == e       v := e//W, w := e % W, a row-major number taken apart

What cannot be solved stays as a guard `E == t` (a loaded index is a scatter), what is solved leaves
its loop, and every loop that is left is summed. A solution is guarded to lie inside its axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.ir.expr import ZERO, Call, Expr, Index, Num, affine, call, loads, substitute
from whet.ir.types import Poly, Size, product

_SYMBOLIC = 1 << 62  # a size that is not known counts as long


@dataclass(frozen=True, slots=True)
class Term:
    """A contribution to the gradient of `tensor[index]`: `value` where all guards hold.

    `axes` are the loops that it stands in, and that are summed over: those of the consumer's
    result first, then those of its sums.
    """

    tensor: str
    index: tuple[Expr, ...]
    value: Expr
    guards: tuple[Expr, ...]
    axes: tuple[str, ...]


def invert(term: Term, targets: Sequence[str], extents: dict[str, Size]) -> Term:
    """The same contribution seen from element `targets`; its axes are those still summed over.

    Args:
        term: a contribution; its value holds no reduction.
        targets: the element's axes, one for each entry of the term's index.
        extents: size of every axis; names for summed axes that clash with a target are added.
    """
    inner = {a: f"{a}'" for a in term.axes}  # apart from the targets while both are in play
    sizes = {**extents, **{new: extents[old] for old, new in inner.items()}}
    system = _System(_renamed(term, inner), targets, sizes)
    system.solve()
    outer = {inner[a]: _free_name(a, (*targets, *extents), targets) for a in term.axes}
    extents |= {name: sizes[old] for old, name in outer.items() if old in system.axes}
    left = [*system.guards, *(call("==", e, t) for e, t in system.equations)]
    left = [g for g in left if decided(g, sizes) is not True]
    left.sort(key=lambda g: any(loads(g)))  # what is loaded may be there only under the others
    solved = Term(
        term.tensor,
        tuple(map(Index, targets)),
        system.value,
        tuple(dict.fromkeys(left)),
        tuple(system.axes),
    )
    return _renamed(solved, outer)


def conjuncts(test: Expr) -> Iterator[Expr]:
    """The parts of a conjunction."""
    if isinstance(test, Call) and test.fn == "and":
        for part in test.args:
            yield from conjuncts(part)
    else:
        yield test


def interval(e: Expr, extents: Mapping[str, Size]) -> tuple[int, int] | None:
    """Least and greatest value of an integer expression over known extents, else None."""
    match e:
        case Num(int(value)):
            return value, value
        case Index(name):
            size = extents[name]
            return (0, size - 1) if isinstance(size, int) else None
        case Call("+" | "-" | "*" | "//" | "%" as fn, (left, right)):
            a, b = interval(left, extents), interval(right, extents)
            if a is None or b is None:
                return None
            match fn:
                case "+":
                    return a[0] + b[0], a[1] + b[1]
                case "-":
                    return a[0] - b[1], a[1] - b[0]
                case "*":
                    corners = [x * y for x in a for y in b]
                    return min(corners), max(corners)
                case "//" if b[0] == b[1] > 0:
                    return a[0] // b[0], a[1] // b[0]
                case "%" if b[0] == b[1] > 0:
                    return a if a[0] >= 0 and a[1] < b[0] else (0, b[0] - 1)
    return None


def decided(test: Expr, extents: Mapping[str, Size]) -> bool | None:
    """Whether a test holds everywhere (True), nowhere (False), or cannot be told apart (None)."""
    match test:
        case Num(value):
            return bool(value)
        case Call("not", (inner,)):
            known = decided(inner, extents)
            return None if known is None else not known
        case Call("<" | "<=" as fn, (left, right)):
            gap = interval(call("-", right, left), extents)
            if gap is None:
                return None
            least = 1 if fn == "<" else 0
            return True if gap[0] >= least else False if gap[1] < least else None
    return None


def linear(coefficients: Mapping[str, Size], constant: Size) -> Expr:
    """`sum of coefficient * index + constant` as an expression, positive parts first."""
    total: Expr = ZERO
    parts = [(c, call("*", Index(v), Num(abs_size(c)))) for v, c in coefficients.items()]
    parts.append((constant, Num(abs_size(constant))))
    for c, part in sorted(parts, key=lambda p: is_negative(p[0])):
        total = call("-" if is_negative(c) else "+", total, part)
    return total


def is_negative(size: Size) -> bool:
    """Is this size written with a minus: an integer, or a polynomial with no positive term."""
    return size < 0 if isinstance(size, int) else all(c < 0 for _, c in size.terms)


def abs_size(size: Size) -> Size:
    """`size` without its minus."""
    return -size if is_negative(size) else size


class _System:
    """Equations between a term's index and its targets, solved in place."""

    def __init__(self, term: Term, targets: Sequence[str], extents: Mapping[str, Size]) -> None:
        self.extents = extents
        self.axes = list(term.axes)
        self.value = term.value
        self.guards = [part for g in term.guards for part in conjuncts(g)]
        self.equations: list[tuple[Expr, Expr]] = [
            (e, Index(t)) for e, t in zip(term.index, targets, strict=True)
        ]

    def solve(self) -> None:
        """Apply the rules of the module's docstring until none fits."""
        rules = (self._plain, self._multiple, self._number, self._digits, self._cyclic, self._line)
        while any(rule() for rule in rules):
            pass

    def _plain(self) -> bool:
        for e, t in self.equations:
            if isinstance(e, Index) and e.name in self.axes:
                return self._assign(e.name, t, (e, t))
        return False

    def _line(self) -> bool:
        """c*v + rest == t, for the longest axis v that occurs."""
        for e, t in self.equations:
            form, right = affine(e), affine(t)
            if form is None or right is None:
                continue
            found = [v for v in self.axes if v in form[0]]
            if not found:
                continue
            v = max(found, key=self._length)
            scale = form[0][v]
            rest = dict(right[0])
            for name, c in form[0].items():
                if name != v:
                    rest[name] = rest.get(name, 0) - c
            constant = right[1] - form[1]
            if is_negative(scale):
                scale, constant = -scale, -constant
                rest = {name: -c for name, c in rest.items()}
            number = linear({k: c for k, c in rest.items() if c != 0}, constant)
            if scale != 1:
                self.guards.append(call("==", call("%", number, Num(scale)), ZERO))
            return self._assign(v, call("//", number, Num(scale)), (e, t))
        return False

    def _cyclic(self) -> bool:
        """(v + c) % V == t: a rotation of the whole axis."""
        for e, t in self.equations:
            match e:
                case Call("%", (inner, Num(modulus))) if isinstance(modulus, (int, Poly)):
                    form = affine(inner)
                    if form is None or len(form[0]) != 1:
                        continue
                    [(v, c)] = form[0].items()
                    if v not in self.axes or c != 1 or self.extents[v] != modulus:
                        continue
                    back = call("%", call("+", t, Num(-form[1])), Num(modulus))
                    return self._assign(v, back, (e, t))
        return False

    def _multiple(self) -> bool:
        """e // c == t under the guard e % c == 0."""
        for e, t in self.equations:
            match e:
                case Call("//", (inner, Num() as c)):
                    test = call("==", call("%", inner, c), ZERO)
                    if test in self.guards:
                        self.guards.remove(test)
                        self._replace([(e, t)], (inner, call("*", t, c)))
                        return True
        return False

    def _number(self) -> bool:
        """e//c0 == t0, e//c1 % m1 == t1, …: all digits of e are known, so e is."""
        digits: dict[Expr, list[tuple[int, int | None, tuple[Expr, Expr]]]] = {}
        for e, t in self.equations:
            digit = _digit(e)
            if digit is not None:
                number, place, base = digit
                digits.setdefault(number, []).append((place, base, (e, t)))
        for number, found in digits.items():
            found.sort(key=lambda d: -d[0])
            places = [(place, base) for place, base, _ in found]
            steps = itertools.pairwise(places)
            whole = places[0][1] is None and places[-1][0] == 1
            if whole and len(places) > 1 and all(p == q * (m or 0) for (p, _), (q, m) in steps):
                total: Expr = ZERO
                for place, _, (_, t) in found:
                    total = call("+", total, call("*", t, Num(place)))
                self._replace([equation for _, _, equation in found], (number, total))
                return True
        return False

    def _digits(self) -> bool:
        """v*W + w == e over whole axes: the axes are e's digits."""
        for e, t in self.equations:
            form = affine(e)
            if form is None or len(form[0]) < 2 or form[1] != 0:
                continue
            if not all(v in self.axes and isinstance(c, int) for v, c in form[0].items()):
                continue
            order = sorted(form[0], key=lambda v: form[0][v])  # type: ignore[arg-type,return-value]
            places = [product(self.extents[v] for v in order[:k]) for k in range(len(order))]
            if places != [form[0][v] for v in order]:
                continue
            self.equations.remove((e, t))
            for v, place in zip(order, places, strict=True):
                digit = call("//", t, Num(place))
                if v != order[-1]:
                    digit = call("%", digit, Num(self.extents[v]))
                self._assign(v, digit, None)
            return True
        return False

    def _assign(self, v: str, value: Expr, equation: tuple[Expr, Expr] | None) -> bool:
        """Leave loop `v` for its only iteration, guarded to be one of the loop's."""
        if equation is not None:
            self.equations.remove(equation)
        self.axes.remove(v)
        size = self.extents[v]
        if not (isinstance(value, Index) and self.extents[value.name] == size):
            self.guards += [call("<=", ZERO, value), call("<", value, Num(size))]
        where = {v: value}
        self.value = substitute(self.value, where)
        self.guards = [substitute(g, where) for g in self.guards]
        self.equations = [(substitute(e, where), t) for e, t in self.equations]
        return True

    def _replace(self, old: Iterable[tuple[Expr, Expr]], new: tuple[Expr, Expr]) -> None:
        for equation in old:
            self.equations.remove(equation)
        self.equations.append(new)

    def _length(self, axis: str) -> int:
        size = self.extents[axis]
        return size if isinstance(size, int) else _SYMBOLIC


def _digit(e: Expr) -> tuple[Expr, int, int | None] | None:
    """(number, place, base) of `number // place % base`; the base of a leading digit is None."""
    base: int | None = None
    match e:
        case Call("%", (inner, Num(int(value)))):
            e, base = inner, value
    match e:
        case Call("//", (number, Num(int(place)))):
            return number, place, base
    return None if base is None else (e, 1, base)


def _renamed(term: Term, names: Mapping[str, str]) -> Term:
    where = {old: Index(new) for old, new in names.items()}
    return Term(
        term.tensor,
        tuple(substitute(e, where) for e in term.index),
        substitute(term.value, where),
        tuple(substitute(g, where) for g in term.guards),
        tuple(names.get(a, a) for a in term.axes),
    )


def _free_name(name: str, taken: Sequence[str], targets: Sequence[str]) -> str:
    """`name` where no target is called so, else a longer one that nothing is."""
    if name not in targets:
        return name
    while name in taken:
        name += "_"
    return name
