"""Element types, sizes and tensor types.

    Size       = int | Poly                  Poly: a polynomial with integer coefficients
    Poly       = coefficient * atom * ... + ...
    atom       = symbol | (Size // Size)     a quotient that could not be carried out
    TensorType = DType, (Size, ...)

A size is an `int` whenever it can be: arithmetic on polynomials collapses to `int` when nothing
symbolic is left, so code that only ever meets concrete shapes never sees a `Poly`. A symbol stands
for an unknown positive integer other than 1 (broadcasting is decided before sizes are symbolic).
"""

from __future__ import annotations

import builtins
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Union


class DType(enum.Enum):
    """Element type. The value is torch's and numpy's name for it."""

    f64 = "float64"
    f32 = "float32"
    f16 = "float16"
    bf16 = "bfloat16"
    c64 = "complex64"
    i64 = "int64"
    i32 = "int32"
    i16 = "int16"
    i8 = "int8"
    u8 = "uint8"
    bool = "bool"

    @property
    def bits(self) -> int:
        """Bits of one element in memory."""
        return _BITS[self]

    @property
    def is_float(self) -> builtins.bool:
        return self in _FLOATS

    @property
    def is_int(self) -> builtins.bool:
        return not self.is_float and self not in (DType.bool, DType.c64)

    def __repr__(self) -> str:
        return self.name


_FLOATS = frozenset({DType.f64, DType.f32, DType.f16, DType.bf16})
_BITS = {
    DType.f64: 64, DType.f32: 32, DType.f16: 16, DType.bf16: 16, DType.c64: 64,
    DType.i64: 64, DType.i32: 32, DType.i16: 16, DType.i8: 8, DType.u8: 8, DType.bool: 8,
}  # fmt: skip
# Promotion: a later row wins over an earlier one; half and bfloat16 meet in float32.
_RANK = (
    DType.bool, DType.u8, DType.i8, DType.i16, DType.i32, DType.i64,
    DType.f16, DType.bf16, DType.f32, DType.f64, DType.c64,
)  # fmt: skip


def promote(dtypes: Iterable[DType]) -> DType:
    """The element type in which values of the given types meet, as torch promotes tensors.

    Raises:
        ValueError: nothing was given.
    """
    found = set(dtypes)
    if not found:
        raise ValueError("promote needs at least one element type")
    if {DType.f16, DType.bf16} <= found:
        found.add(DType.f32)
    if DType.u8 in found and DType.i8 in found:
        found.add(DType.i16)
    return max(found, key=_RANK.index)


Atom = Union[str, "Quotient"]
Monomial = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Quotient:
    """`floor(top / bottom)` of sizes where neither is known to divide the other."""

    top: Size
    bottom: Size

    def __repr__(self) -> str:
        return f"({self.top!r})//({self.bottom!r})"


class Poly:
    """A polynomial over named sizes; immutable and hashable. Build with `Poly.symbol`."""

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        kept = sorted(((m, c) for m, c in terms.items() if c), key=_term_order)
        self.terms = tuple(kept)
        self._hash = hash(self.terms)

    @staticmethod
    def symbol(name: str) -> Poly:
        """The size called `name`."""
        return Poly({(name,): 1})

    @staticmethod
    def of(value: Size) -> Poly:
        """`value` as a polynomial, constant or not."""
        return value if isinstance(value, Poly) else Poly({(): int(value)})

    def symbols(self) -> frozenset[str]:
        """Every symbol that occurs, inside quotients too."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                if isinstance(atom, str):
                    found.add(atom)
                else:
                    found |= Poly.of(atom.top).symbols() | Poly.of(atom.bottom).symbols()
        return frozenset(found)

    def substitute(self, values: Mapping[str, Size]) -> Size:
        """This polynomial with symbols replaced; an `int` once nothing symbolic is left."""
        total: Size = 0
        for monomial, coefficient in self.terms:
            product: Size = coefficient
            for atom in monomial:
                if isinstance(atom, str):
                    product = product * values.get(atom, Poly({(atom,): 1}))
                else:
                    top = substitute(atom.top, values)
                    product = product * floordiv(top, substitute(atom.bottom, values))
            total = total + product
        return total

    def collapse(self) -> Size:
        """An `int` when the polynomial is constant, else the polynomial itself."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and self.terms[0][0] == ():
            return self.terms[0][1]
        return self

    def __add__(self, other: Size) -> Size:
        total = dict(self.terms)
        for monomial, coefficient in Poly.of(other).terms:
            total[monomial] = total.get(monomial, 0) + coefficient
        return Poly(total).collapse()

    def __mul__(self, other: Size) -> Size:
        total: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in Poly.of(other).terms:
                monomial = tuple(sorted(left + right, key=_atom_order))
                total[monomial] = total.get(monomial, 0) + a * b
        return Poly(total).collapse()

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + Poly.of(other) * -1

    def __rsub__(self, other: Size) -> Size:
        return Poly.of(other) + self * -1

    def __floordiv__(self, other: Size) -> Size:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Size) -> Size:
        return floordiv(other, self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return " + ".join(_term_text(m, c) for m, c in self.terms).replace("+ -", "- ") or "0"


Size = Union[int, Poly]  # noqa: UP007  (Poly is defined above, Size is used in it)


def substitute(size: Size, values: Mapping[str, Size]) -> Size:
    """`size` with its symbols replaced by `values`."""
    return size.substitute(values) if isinstance(size, Poly) else size


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes; 1 for none."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def floordiv(top: Size, bottom: Size) -> Size:
    """`floor(top / bottom)`, carried out where that is possible."""
    if isinstance(top, int) and isinstance(bottom, int):
        return top // bottom
    exact = divide(top, bottom)
    return exact if exact is not None else Poly({(Quotient(top, bottom),): 1})


def divide(top: Size, bottom: Size) -> Size | None:
    """The quotient where `bottom` divides `top` as polynomials, else None.

    Long division by the leading term; exact for the monomials and the sums of monomials that
    sizes of tensors are made of.
    """
    if isinstance(top, int) and isinstance(bottom, int):
        return top // bottom if bottom and top % bottom == 0 else None
    divisor, rest, total = Poly.of(bottom), Poly.of(top), Poly({})
    if not divisor.terms:
        return None
    lead, scale = max(divisor.terms, key=_term_order)
    for _ in range(64):
        if not rest.terms:
            return total.collapse()
        monomial, coefficient = max(rest.terms, key=_term_order)
        left = _without(monomial, lead)
        if left is None or coefficient % scale:
            return None
        step = Poly({left: coefficient // scale})
        total = Poly.of(total + step)
        rest = Poly.of(rest - step * divisor)
    return None


def _without(monomial: Monomial, factor: Monomial) -> Monomial | None:
    rest = list(monomial)
    for atom in factor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _atom_order(atom: Atom) -> str:
    return atom if isinstance(atom, str) else repr(atom)


def _term_order(term: tuple[Monomial, int]) -> tuple[int, tuple[str, ...]]:
    return len(term[0]), tuple(map(_atom_order, term[0]))


def _term_text(monomial: Monomial, coefficient: int) -> str:
    names = [a if isinstance(a, str) else f"({a!r})" for a in monomial]
    if coefficient == 1 and names:
        return "*".join(names)
    if coefficient == -1 and names:
        return "-" + "*".join(names)
    return "*".join([str(coefficient), *names])


@dataclass(frozen=True, slots=True)
class TensorType:
    """What is known of a tensor before it exists: element type and sizes."""

    dtype: DType
    shape: tuple[Size, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> Size:
        """Number of elements."""
        return product(self.shape)

    @property
    def nbytes(self) -> Size:
        """Bytes of a dense tensor of this type."""
        return self.numel * (self.dtype.bits // 8)

    def __repr__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"
