"""Index arithmetic: what indices, extents and conditions are, simplified, and how large they get.

    simplify(e, domain)      the same value wherever the domain's variables can be
    bounds(e, domain)        (least, greatest) that it can be
    Domain = {variable: extent}, outer loops first; an extent may use variables before it

An index expression is a linear form over atoms: loop variables, and what is not linear (quotients,
remainders, extrema, elements of integer buffers). Quotients and remainders by constants are taken
apart: what divides goes outside, what lies below the divisor goes. An extent `minimum(a, b)` bounds
its variable by a and by b, so that `16*o + i` with i below `minimum(16, 100 - 16*o)` is below 100.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from whet.ir import expr as ex
from whet.ir.expr import COMPARISON, LOGIC, Call, Expr, Index, Load, Num, Select
from whet.kernel.loops import Extent, bound

Domain = Mapping[str, Extent]
LANE, CHUNK = "lane@", "chunk@"
"""Of a vector loop, whose variable is lanes * chunk + lane; no variable of a kernel is named so."""

_EXTREMA = ("minimum", "maximum")
_INDEX = frozenset({"+", "-", "*", "//", "%", *_EXTREMA})


@dataclass(frozen=True, slots=True)
class Form:
    """The sum of coefficient * atom, and a constant."""

    terms: Mapping[Expr, int]
    constant: int

    def plus(self, other: Form, scale: int = 1) -> Form:
        if not other.terms:
            return Form(self.terms, self.constant + scale * other.constant)
        total = dict(self.terms)
        for atom, c in other.terms.items():
            total[atom] = total.get(atom, 0) + scale * c
        kept = {a: c for a, c in total.items() if c}
        return Form(kept, self.constant + scale * other.constant)

    def coefficient(self, var: str) -> int:
        """Of a variable that stands alone."""
        return self.terms.get(Index(var), 0)

    def without(self, var: str) -> Form:
        """The form with that variable at 0."""
        return Form({a: c for a, c in self.terms.items() if a != Index(var)}, self.constant)


def is_index(e: Expr) -> bool:
    """Is it integer arithmetic over variables and whole numbers alone?"""
    if isinstance(e, Call):
        return e.fn in _INDEX and all(map(is_index, e.args))
    return isinstance(e, Index) or (isinstance(e, Num) and isinstance(e.value, int))


def form(e: Expr, domain: Domain) -> Form:
    """A linear form of an integer expression; what is not linear in it is an atom, simplified."""
    if isinstance(e, Index):
        return Form({e: 1}, 0) if domain.get(e.name) != 1 else Form({}, 0)
    if isinstance(e, Num) and isinstance(e.value, int):
        return Form({}, e.value)
    if isinstance(e, Call) and e.fn in _INDEX and len(e.args) == 2:
        return _combined(e, e.fn, form(e.args[0], domain), form(e.args[1], domain), domain)
    return Form({ex.rebuild(e, lambda x: simplify(x, domain)): 1}, 0)


def _combined(e: Call, fn: str, left: Form, right: Form, domain: Domain) -> Form:
    if fn == "+" or fn == "-":
        return _joined(left.plus(right, 1 if fn == "+" else -1), domain)
    if fn == "*":
        if not left.terms:
            return Form({}, 0).plus(right, left.constant)
        if not right.terms:
            return Form({}, 0).plus(left, right.constant)
    elif fn == "//" or fn == "%":
        if not right.terms and right.constant > 0:
            part = _quotient if fn == "//" else _remainder
            return part(left, right.constant, domain)
    else:
        low, high = _range(left.plus(right, -1), domain)
        if high <= 0 or low >= 0:
            smaller = high <= 0
            return left if smaller == (fn == "minimum") else right
        return Form({Call(fn, (build(left, domain), build(right, domain))): 1}, 0)
    return Form({ex.rebuild(e, lambda x: simplify(x, domain)): 1}, 0)


def by_value(f: Form, var: str, count: int) -> tuple[Form, tuple[int, ...]] | None:
    """A form without a variable, and what each of its values (0 to `count` - 1) adds to that; None
    where other variables decide what it adds."""
    rest, own = dict(f.terms), dict[Expr, int]()
    for atom in f.terms:
        if var in ex.free(atom):
            own[atom] = rest.pop(atom)
            if ex.free(atom) != {var} or any(ex.loads(atom)):
                return None
    values = [
        sum(n * form(ex.substitute(a, {var: Num(v)}), {}).constant for a, n in own.items())
        for v in range(count)
    ]
    return Form(rest, f.constant), tuple(values)


def build(f: Form, domain: Domain) -> Expr:
    """The expression of a form: outer variables first, other atoms after, the constant last."""
    atoms = list(f.terms)
    if len(atoms) > 1:
        order: dict[Expr, int] = {Index(v): k for k, v in enumerate(domain)}
        last = len(order)
        atoms.sort(key=lambda a: (order[a], "") if a in order else (last, ex.show(a)))
    total: Expr | None = None
    rest = f.constant
    for sign in (1, -1):
        if sign < 0 and total is None and rest > 0:
            total, rest = Num(rest), 0
        for a in atoms:
            c = f.terms[a]
            if (c > 0) != (sign > 0):
                continue
            part = a if abs(c) == 1 else Call("*", (Num(abs(c)), a))
            if total is None:
                total = part if c > 0 else Call("*", (Num(c), a))
            else:
                total = Call("+" if c > 0 else "-", (total, part))
    if total is None:
        return Num(rest)
    if rest:
        total = Call("+" if rest > 0 else "-", (total, Num(abs(rest))))
    return total


def simplify(e: Expr, domain: Domain) -> Expr:
    """`e` with index arithmetic in it simplified and decided conditions gone."""
    if isinstance(e, Num):
        return e
    if is_index(e):
        return build(form(e, domain), domain)
    match e:
        case Call(fn, (a, b)) if fn in COMPARISON and is_index(a) and is_index(b):
            return _compared(fn, form(a, domain), form(b, domain), domain)
        case Load(tensor, index, outside):
            return Load(tensor, tuple(_whole(i, domain) for i in index), outside)
        case Call(fn, args) if fn in LOGIC:
            return ex.call(fn, *(simplify(a, domain) for a in args))
        case Select(test, then, other):
            known = simplify(test, domain)
            if isinstance(known, Num):
                return simplify(then if known.value else other, domain)
            return Select(known, simplify(then, domain), simplify(other, domain))
        case Call(fn, args):
            return Call(fn, tuple(simplify(a, domain) for a in args))
    return e


def _whole(e: Expr, domain: Domain) -> Expr:
    """An index, which may read integer buffers."""
    return build(form(e, domain), domain)


def bounds(e: Expr, domain: Domain) -> tuple[float, float]:
    """Least and greatest value of an integer expression; infinite where nothing is known."""
    return _range(form(e, domain), domain)


def limits(f: Form, domain: Domain) -> tuple[float, float]:
    """Least and greatest value of a form."""
    return _range(f, domain)


def holds(test: Expr, domain: Domain) -> bool:
    """Is the condition true everywhere in the domain?"""
    known = simplify(test, domain)
    return isinstance(known, Num) and bool(known.value)


def inside(index: Expr, size: int, domain: Domain) -> bool:
    """Is the index from 0 to size - 1 everywhere in the domain?"""
    low, high = bounds(index, domain)
    return low >= 0 and high < size


# -- parts -----------------------------------------------------------------------------------------
def _compared(fn: str, a: Form, b: Form, domain: Domain) -> Expr:
    low, high = _range(a.plus(b, -1), domain)
    true = {"<": high < 0, "<=": high <= 0, "==": low == high == 0}[fn]
    false = {"<": low >= 0, "<=": low > 0, "==": low > 0 or high < 0}[fn]
    if true or false:
        return Num(int(true))
    return Call(fn, (build(a, domain), build(b, domain)))


def _quotient(f: Form, c: int, domain: Domain) -> Form:
    outside = {a: k // c for a, k in f.terms.items() if k % c == 0}
    rest = Form({a: k for a, k in f.terms.items() if k % c}, f.constant % c)
    whole = Form(outside, f.constant // c)
    low, high = _range(rest, domain)
    if low >= 0 and high < c:
        return whole
    g = math.gcd(c, *rest.terms.values())
    if g > 1:
        rest = Form({a: k // g for a, k in rest.terms.items()}, rest.constant // g)
        return whole.plus(_quotient(rest, c // g, domain))
    if len(rest.terms) == 1 and not rest.constant:
        ((atom, k),) = rest.terms.items()
        match atom:
            case Call("//", (inner, Num(int(d)))) if k == 1:  # x // d // c is x // (d*c)
                return whole.plus(_quotient(form(inner, domain), c * d, domain))
            case Call("%", (inner, Num(int(d)))) if k == 1 and d % c == 0:
                part = _quotient(form(inner, domain), c, domain)
                return whole.plus(_remainder(part, d // c, domain))
    for atom, k in rest.terms.items():
        match atom:
            case Call("//", (inner, Num(int(d)))) if (
                k == 1
            ):  # (y + x // d) // c is (d*y + x) // (c*d)
                other = Form({a: n for a, n in rest.terms.items() if a != atom}, rest.constant)
                scaled = form(inner, domain).plus(other, d)
                return whole.plus(_quotient(scaled, c * d, domain))
    return whole.plus(Form({Call("//", (build(rest, domain), Num(c))): 1}, 0))


def _remainder(f: Form, c: int, domain: Domain) -> Form:
    for atom, k in f.terms.items():
        if isinstance(atom, Call) and atom.fn == "%" and isinstance(atom.args[1], Num):
            if k * int(str(atom.args[1].value)) % c == 0:  # x % 80 % 10 is x % 10
                rest = Form({a: n for a, n in f.terms.items() if a != atom}, f.constant)
                return _remainder(rest.plus(form(atom.args[0], domain), k), c, domain)
    rest = Form({a: k for a, k in f.terms.items() if k % c}, f.constant % c)
    for same in (
        rest,
        Form(rest.terms, f.constant),
        Form({a: k % c for a, k in rest.terms.items()}, rest.constant),
    ):
        low, high = _range(same, domain)
        if low >= 0 and high < c:
            return same
    g = math.gcd(c, *rest.terms.values())
    if g > 1:
        inner = Form({a: k // g for a, k in rest.terms.items()}, rest.constant // g)
        return Form({}, rest.constant % g).plus(_remainder(inner, c // g, domain), g)
    return Form({Call("%", (build(rest, domain), Num(c))): 1}, 0)


def _joined(f: Form, domain: Domain) -> Form:
    """`k*c*(x // c) + k*(x % c)` is `k*x`."""
    for atom, k in f.terms.items():
        if not (isinstance(atom, Call) and atom.fn == "%" and isinstance(atom.args[1], Num)):
            continue
        x, c = atom.args[0], int(str(atom.args[1].value))
        quotient = _quotient(form(x, domain), c, domain)
        if all(f.terms.get(a) == k * c * q for a, q in quotient.terms.items()) and quotient.terms:
            rest = Form({a: v for a, v in f.terms.items() if a != atom}, f.constant)
            rest = rest.plus(quotient, -k * c)
            return _joined(rest.plus(form(x, domain), k), domain)
    return f


def _range(f: Form, domain: Domain) -> tuple[float, float]:
    low = high = f.constant
    for atom, c in f.terms.items():
        extent = domain.get(atom.name) if isinstance(atom, Index) else None
        if not isinstance(extent, int):
            break
        low, high = (low + c * (extent - 1), high) if c < 0 else (low, high + c * (extent - 1))
    else:  # nearly always: variables that do not depend on each other
        return low, high
    negated = Form({a: -c for a, c in f.terms.items()}, -f.constant)
    return -_greatest(negated, domain), _greatest(f, domain)


def _greatest(f: Form, domain: Domain) -> float:
    """Inner variables go first: an extent may depend on outer ones."""
    for atom, c in f.terms.items():
        if not isinstance(atom, Index):
            low, high = _atom(atom, domain)
            rest = Form({a: k for a, k in f.terms.items() if a != atom}, f.constant)
            return c * (high if c > 0 else low) + _greatest(rest, domain)
    for var in reversed(list(domain)):
        c = f.coefficient(var)
        if not c:
            continue
        rest = f.without(var)
        if c < 0:
            return _greatest(rest, domain)
        choices = (form(bound(n), domain) for n in _choices(domain[var]))
        return min(_greatest(rest.plus(n, c).plus(Form({}, c), -1), domain) for n in choices)
    return math.inf if f.terms else f.constant


def _choices(extent: Extent) -> Iterator[Extent]:
    if isinstance(extent, Call) and extent.fn == "minimum":
        for a in extent.args:
            yield from _choices(a)
    else:
        yield extent


def _atom(e: Expr, domain: Domain) -> tuple[float, float]:
    match e:
        case Call("//", (a, Num(int(c)))) if c > 0:
            low, high = bounds(a, domain)
            return _floor(low, c), _floor(high, c)
        case Call("%", (_, Num(int(c)))) if c > 0:
            return 0, c - 1
        case Call("minimum" | "maximum" as fn, (a, b)):
            (la, ha), (lb, hb) = bounds(a, domain), bounds(b, domain)
            pick = min if fn == "minimum" else max
            return pick(la, lb), pick(ha, hb)
        case Call("*", (a, b)):
            ends = [x * y for x in bounds(a, domain) for y in bounds(b, domain)]
            return (-math.inf, math.inf) if any(map(math.isnan, ends)) else (min(ends), max(ends))
    return -math.inf, math.inf


def _floor(value: float, c: int) -> float:
    return value if math.isinf(value) else value // c
