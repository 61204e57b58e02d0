"""Convolutions with fewer products: m results of a kernel of r elements from m + r - 1 products.

    y = A ((G g) * (B d))        d: m + r - 1 elements, g: the kernel, y: m results

Both are polynomials, taken at m + r - 2 points and at infinity, multiplied there, and read back
(Toom, 1963; Cook, 1966; Winograd, "Arithmetic Complexity of Computations", 1980, ch. V). Along both
axes of an image, with the products over all channels as one product of matrices for each point
(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, section 4). What is
written here is a conjecture like any other: the prover decides.

>>> A, G, B = matrices(2, 3)
>>> for row in G:
...     print(*row)
1 0 0
1/2 1/2 1/2
1/2 -1/2 1/2
0 0 1
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from whet.rewrite.conjecture import Conjecture

Matrix = tuple[tuple[Fraction, ...], ...]
_ZERO = Fraction(0)
POINTS = (0, 1, -1, 2, -2)
"""Where polynomials are taken: small numbers, so that little is lost to rounding."""


def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """A [m, n], G [n, r] and B [n, n] of n = m + r - 1 products, exactly.

    Raises:
        ValueError: there are not as many points.
    """
    n = m + r - 1
    if n - 1 > len(POINTS):
        raise ValueError(f"{n - 1} points are needed, and there are {len(POINTS)}")
    points = [Fraction(p) for p in POINTS[: n - 1]]
    a = tuple((*(p**k for p in points), Fraction(k == m - 1)) for k in range(m))
    g: list[tuple[Fraction, ...]] = []
    b: list[tuple[Fraction, ...]] = []
    for p in points:
        others = [q for q in points if q != p]
        scale = functools.reduce(Fraction.__mul__, (p - q for q in others), Fraction(1))
        sign = -1 if scale < 0 else 1
        g.append(tuple(p**k / abs(scale) for k in range(r)))
        b.append(tuple(sign * c for c in (*_product(others), Fraction(0))))
    g.append(tuple(Fraction(k == r - 1) for k in range(r)))
    b.append(tuple(_product(points)))
    return a, tuple(g), tuple(b)


def _product(roots: Iterable[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), the constant one first."""
    found = [Fraction(1)]
    for root in roots:
        found = [a - root * b for a, b in zip([_ZERO, *found], [*found, _ZERO], strict=True)]
    return found


def convolution(m: int, r: int, *, bias: bool) -> Conjecture:
    """A convolution of images by r x r kernels, m x m results at a time, in (m + r - 1)^2 products
    of matrices where the direct one has (m r)^2: without margins, and coming out even."""
    name = f"convolution in blocks of {m}" + (" with bias" if bias else "")
    b = ", b[O]" if bias else ""
    attrs = "groups=1, stride=(1, 1), padding=(0, 0), dilation=(1, 1)"
    left = f"conv2d(x[N, C, {m}*P + {r - 1}, {m}*Q + {r - 1}], w[O, C, {r}, {r}]{b}, {attrs})"
    return Conjecture(f"{name}: {left} == {_Spelled(m, r).right(bias)}")


class _Spelled:
    """The right side as text; a value that is used again has a name where it stands first."""

    def __init__(self, m: int, r: int) -> None:
        self.m, self.n, self.r = m, m + r - 1, r
        self.a, self.g, self.b = matrices(m, r)
        self._named: set[str] = set()

    def right(self, bias: bool) -> str:
        m = self.m
        rows = (_stack((self._result(i, j) for j in range(m)), 3) for i in range(m))
        whole = _stack((_reshape(row, f"N, P, {m}*Q, O") for row in rows), 2)
        whole = _reshape(whole, f"N, {m}*P, {m}*Q, O") + (" + b" if bias else "")
        return f"permute({whole}, dims=(0, 3, 1, 2))"

    def _use(self, name: str, make: Callable[[], str]) -> str:
        if name in self._named:
            return name
        text = make()
        self._named.add(name)
        return f"({name} := {text})"

    # -- results, from the last step back ----------------------------------------------------------
    def _result(self, i: int, j: int) -> str:
        return _sum(self.a[i], lambda k: self._across(k, j))

    def _across(self, k: int, j: int) -> str:
        return self._use(f"z{k}_{j}", lambda: _sum(self.a[j], lambda q: self._point(k, q)))

    def _point(self, k: int, q: int) -> str:
        where = k * self.n + q
        return self._use(
            f"m{k}_{q}",
            lambda: _reshape(f"select({self._use('y', self._products)}, 0, {where})", "N, P, Q, O"),
        )

    def _products(self) -> str:
        points = [(i, j) for i in range(self.n) for j in range(self.n)]
        near = _stack((_reshape(self._image(i, j), "N*P*Q, C") for i, j in points), 0)
        kernels = _stack((f"permute({self._kernel(i, j)}, dims=(1, 0))" for i, j in points), 0)
        return f"matmul({near}, {kernels})"

    # -- the image, with its channels last ---------------------------------------------------------
    def _image(self, i: int, j: int) -> str:
        return _sum(self.b[j], lambda k: self._column(i, k))

    def _column(self, i: int, k: int) -> str:
        return self._use(f"d{i}_{k}", lambda: self._slice(self._row(i), 2, k, "Q"))

    def _row(self, i: int) -> str:
        return self._use(f"r{i}", lambda: _sum(self.b[i], self._line))

    def _line(self, k: int) -> str:
        return self._use(f"s{k}", lambda: self._slice(self._use("t", _turned), 1, k, "P"))

    def _slice(self, x: str, axis: int, start: int, count: str) -> str:
        return f"slice({x}, {axis}, {start}, {self.m}*{count} + {start - self.m + 1}, {self.m})"

    # -- the kernel --------------------------------------------------------------------------------
    def _kernel(self, i: int, j: int) -> str:
        return _sum(self.g[j], lambda k: self._entry(i, k))

    def _entry(self, i: int, k: int) -> str:
        return self._use(f"h{i}_{k}", lambda: f"select({self._half(i)}, 2, {k})")

    def _half(self, i: int) -> str:
        return self._use(f"g{i}", lambda: _sum(self.g[i], self._taps))

    def _taps(self, k: int) -> str:
        return self._use(f"w{k}", lambda: f"select(w, 2, {k})")


def _turned() -> str:
    return "permute(x, dims=(0, 2, 3, 1))"


def _reshape(x: str, size: str) -> str:
    return f"reshape({x}, size=({size}))"


def _stack(xs: Iterable[str], axis: int) -> str:
    return f"stack({', '.join(xs)}, axis={axis})"


def _sum(row: Sequence[Fraction], term: Callable[[int], str]) -> str:
    """The terms that a row of numbers asks for, those with a plus first."""
    found = ""
    for k in sorted((k for k, c in enumerate(row) if c), key=lambda k: row[k] < 0):
        size = abs(row[k])
        exact = size.denominator & (size.denominator - 1) == 0
        factor, divisor = (float(size), 1) if exact else (size.numerator, size.denominator)
        text = term(k) if factor == 1 else f"{term(k)} * {factor:g}"
        text = text if divisor == 1 else f"{text} / {divisor}"
        sign = " - " if row[k] < 0 else " + "
        found = found + sign + text if found else ("-" if row[k] < 0 else "") + text
    return f"({found})"


_CONV = "groups=1, stride=(1, 1), padding=(0, 0), dilation=(1, 1)"
_X = "x[N, C, H, W], w[O, C, R, S], b[O] or None"
MARGINS = Conjecture(
    f"margins before the convolution: conv2d({_X}, groups=1, stride=(1, 1), padding=(A, E), "
    f"dilation=(1, 1)) == conv2d(pad(pad(x, 2, A, A, 0.0), 3, E, E, 0.0), w, b, {_CONV}) "
    "if 1 <= A + E"
)
ROW = Conjecture(
    f"one more row of a convolution: conv2d({_X}, {_CONV}) == "
    f"slice(conv2d(pad(x, 2, 0, 1, 0.0), w, b, {_CONV}), 2, 0, H - R + 1, 1)"
)
COLUMN = Conjecture(
    f"one more column of a convolution: conv2d({_X}, {_CONV}) == "
    f"slice(conv2d(pad(x, 3, 0, 1, 0.0), w, b, {_CONV}), 3, 0, W - S + 1, 1)"
)
BLOCK, KERNEL = 2, 3
"""Results, along each axis, that a block has, and the kernels that are taken so."""

BLOCKS = tuple(convolution(BLOCK, KERNEL, bias=bias) for bias in (False, True))
RECASTS: Mapping[str, Conjecture] = {c.name: c for c in (MARGINS, ROW, COLUMN, *BLOCKS)}
"""What computes a convolution another way: used where kernels were measured to be faster."""
