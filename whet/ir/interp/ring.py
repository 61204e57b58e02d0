"""Where values live while a record is evaluated: floats of some width, or a finite field.

    exact    int64 and bool tensors: indices, truth values, integer data
    numbers  what the ring adds and multiplies: float tensors, or residues modulo `PRIME`

A residue is held in a float64 tensor (an integer of 31 bits is exact there), so a tensor's own
element type says which of the two it is, and every line of the evaluator serves all rings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from whet.errors import UnsupportedError
from whet.ir.types import DType, TensorType

PRIME = 2**31 - 1


class Ring(Protocol):
    """Arithmetic on tensors of numbers; the two operands of a method broadcast."""

    def compute(self, dtypes: Sequence[torch.dtype]) -> torch.dtype:
        """Element type in which an instance with such operands computes its numbers."""
        ...

    def storage(self, dtype: DType) -> torch.dtype:
        """Element type of a tensor that holds values of type `dtype`."""
        ...

    def number(self, value: float, like: torch.dtype) -> Tensor: ...
    def lift(self, t: Tensor, like: torch.dtype) -> Tensor:
        """`t`, exact or not, as numbers."""
        ...

    def store(self, t: Tensor, dtype: DType) -> Tensor:
        """`t` as an element type of the graph: rounds, truncates or tests against zero."""
        ...

    def arithmetic(self, fn: str, a: Tensor, b: Tensor) -> Tensor: ...
    def power(self, a: Tensor, exponent: int) -> Tensor: ...
    def function(self, name: str, args: Sequence[Tensor]) -> Tensor: ...
    def total(self, t: Tensor, dims: Sequence[int]) -> Tensor: ...
    def product(self, t: Tensor, dims: Sequence[int]) -> Tensor: ...
    def extreme(self, kind: str, t: Tensor, dims: Sequence[int]) -> Tensor:
        """The max or min along dims."""
        ...

    def running(self, kind: str, t: Tensor, dim: int) -> Tensor:
        """Running sum, prod, max or min along `dim`."""
        ...

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Batched product of [B, M, K] and [B, K, N]."""
        ...

    def reduce_sums(self, t: Tensor) -> Tensor:
        """Sums of at most 2**20 numbers, brought back into the ring."""
        ...

    def finite(self, t: Tensor) -> bool:
        """Whether zero times every element is zero."""
        ...


_TORCH: Mapping[DType, torch.dtype] = {d: getattr(torch, d.value) for d in DType}


class Floats:
    """Floating point.

    Args:
        name: for messages.
        dtype: every float type becomes this one; None keeps each value's own type: computation is
            then in float32 (float64 where an operand is, or none is a float), rounded once for
            each assignment.
    """

    def __init__(self, name: str, dtype: torch.dtype | None) -> None:
        self.name, self.dtype = name, dtype

    def __repr__(self) -> str:
        return self.name

    def compute(self, dtypes: Sequence[torch.dtype]) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        floats = [d for d in dtypes if d.is_floating_point]
        return torch.float32 if floats and torch.float64 not in floats else torch.float64

    def storage(self, dtype: DType) -> torch.dtype:
        if dtype is DType.c64:
            raise UnsupportedError("the interpreter has no complex numbers", got=dtype)
        return self.dtype if self.dtype is not None and dtype.is_float else _TORCH[dtype]

    def number(self, value: float, like: torch.dtype) -> Tensor:
        return torch.tensor(value, dtype=like)

    def lift(self, t: Tensor, like: torch.dtype) -> Tensor:
        return t if t.dtype == like else t.to(like)

    def store(self, t: Tensor, dtype: DType) -> Tensor:
        if dtype is DType.c64:  # between two library calls: nothing here computes with it
            return t
        want = self.storage(dtype)
        if t.dtype == want:
            return t
        return t != 0 if want == torch.bool else t.to(want)

    def arithmetic(self, fn: str, a: Tensor, b: Tensor) -> Tensor:
        return exact_arithmetic(fn, a, b)

    def power(self, a: Tensor, exponent: int) -> Tensor:
        return a * a if exponent == 2 else torch.pow(a, exponent)

    def function(self, name: str, args: Sequence[Tensor]) -> Tensor:
        return torch_function(name)(*args)

    def total(self, t: Tensor, dims: Sequence[int]) -> Tensor:
        return t.sum(list(dims))

    def product(self, t: Tensor, dims: Sequence[int]) -> Tensor:
        for d in sorted(dims, reverse=True):
            t = t.prod(d)
        return t

    def extreme(self, kind: str, t: Tensor, dims: Sequence[int]) -> Tensor:
        return extreme(kind, t, dims)

    def running(self, kind: str, t: Tensor, dim: int) -> Tensor:
        return running(kind, t, dim)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a, b)

    def reduce_sums(self, t: Tensor) -> Tensor:
        return t

    def finite(self, t: Tensor) -> bool:
        # One pass: a sum of zeros is NaN exactly when some element is not finite.
        return bool((t * 0).sum() == 0)


class Field:
    """The integers modulo `PRIME`: exact, so that equal polynomials agree and others hardly ever.

    A function that is not a polynomial is a random map fixed by its name: laws of addition and
    multiplication hold, no law of its own does. Residues compare as the integers 0 … PRIME-1, with
    -inf as 0 and inf as PRIME-1, so that max and min are a lattice (but do not commute with +).
    """

    name = "field"

    def __repr__(self) -> str:
        return self.name

    def compute(self, dtypes: Sequence[torch.dtype]) -> torch.dtype:
        return torch.float64

    def storage(self, dtype: DType) -> torch.dtype:
        return torch.float64 if dtype.is_float else FLOAT64.storage(dtype)

    def number(self, value: float, like: torch.dtype) -> Tensor:
        if math.isinf(value):
            return torch.tensor(0.0 if value < 0 else PRIME - 1.0, dtype=like)
        ratio = Fraction(str(value))
        residue = ratio.numerator * pow(ratio.denominator, -1, PRIME) % PRIME
        return torch.tensor(float(residue), dtype=like)

    def lift(self, t: Tensor, like: torch.dtype) -> Tensor:
        return t if t.dtype == like else torch.remainder(t.to(torch.int64), PRIME).to(like)

    def store(self, t: Tensor, dtype: DType) -> Tensor:
        want = self.storage(dtype)
        if t.dtype == want:
            return t
        if want == torch.float64:
            return self.lift(t, want)
        return t != 0 if want == torch.bool else t.to(want)

    def arithmetic(self, fn: str, a: Tensor, b: Tensor) -> Tensor:
        match fn:
            case "+":
                total = a + b
                return total - PRIME * (total >= PRIME)
            case "-":
                total = a - b
                return total + PRIME * (total < 0)
            case "*":
                return _times(a, b)
            case "/":
                return _times(a, self.power(b, PRIME - 2))
        return self.function(fn, (a, b))

    def power(self, a: Tensor, exponent: int) -> Tensor:
        exponent %= PRIME - 1
        base, total = a.to(torch.int64), torch.ones_like(a, dtype=torch.int64)
        while exponent:
            if exponent & 1:
                total = total * base % PRIME
            base = base * base % PRIME
            exponent >>= 1
        return total.to(a.dtype)

    def function(self, name: str, args: Sequence[Tensor]) -> Tensor:
        if name in ("maximum", "minimum"):
            return torch_function(name)(*args)
        if name in ("isnan", "isinf"):
            return torch.zeros_like(args[0], dtype=torch.bool)
        key = 0
        for letter in name.encode():
            key = (key * 7919 + letter) % PRIME
        h = torch.tensor(key)
        for x in args:
            h = h ^ x.to(torch.int64)
            for factor in (48271, 69621, 16807):
                h = (h * factor + (h >> 13) + 1) % PRIME
        return h.to(torch.float64)

    def total(self, t: Tensor, dims: Sequence[int]) -> Tensor:
        return (t.to(torch.int64).sum(list(dims)) % PRIME).to(t.dtype)

    def product(self, t: Tensor, dims: Sequence[int]) -> Tensor:
        for d in sorted(dims, reverse=True):
            total = torch.ones_like(t.select(d, 0)) if t.shape[d] else t.new_ones(_less(t, d))
            for part in t.unbind(d):
                total = _times(total, part)
            t = total
        return t

    def extreme(self, kind: str, t: Tensor, dims: Sequence[int]) -> Tensor:
        return extreme(kind, t, dims)

    def running(self, kind: str, t: Tensor, dim: int) -> Tensor:
        if kind == "prod":
            parts = list(t.unbind(dim))
            for k in range(1, len(parts)):
                parts[k] = _times(parts[k - 1], parts[k])
            return torch.stack(parts, dim) if parts else t
        if kind == "sum":
            return (t.to(torch.int64).cumsum(dim) % PRIME).to(t.dtype)
        return running(kind, t, dim)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Exact through float64 BLAS: limbs of 16 bits, so that sums stay below 2**53."""
        total: Tensor | None = None
        step = 1 << 20
        for k in range(0, max(a.shape[-1], 1), step):
            part = self._limbs(a[..., k : k + step], b[..., k : k + step, :])
            total = part if total is None else (total + part) % PRIME
        assert total is not None
        return total.to(torch.float64)

    def _limbs(self, a: Tensor, b: Tensor) -> Tensor:
        def mod(t: Tensor) -> Tensor:
            return t.to(torch.int64) % PRIME

        a1, b1 = torch.floor(a / 65536), torch.floor(b / 65536)
        a0, b0 = a - a1 * 65536, b - b1 * 65536
        high, low = mod(torch.bmm(a1, b1)), mod(torch.bmm(a0, b0))
        middle = (mod(torch.bmm(a0, b1)) + mod(torch.bmm(a1, b0))) % PRIME
        return (low + (middle << 16) + ((high << 16) % PRIME << 16)) % PRIME

    def reduce_sums(self, t: Tensor) -> Tensor:
        return torch.remainder(t, PRIME)

    def finite(self, t: Tensor) -> bool:
        return True


class Keyed(Field):
    """The field with numbers ordered at random: max and min are a lattice that knows no zero.

    In `Field` zero is the least number, so that relu would be the identity; here it is some number
    like any other. Infinities are residues of their own, the least and the greatest.
    """

    name = "keyed field"

    def number(self, value: float, like: torch.dtype) -> Tensor:
        if math.isinf(value):
            return torch.tensor(PRIME - (1.0 if value > 0 else 2.0), dtype=like)
        return super().number(value, like)

    def function(self, name: str, args: Sequence[Tensor]) -> Tensor:
        if name in ("maximum", "minimum"):
            a, b = args
            first = self._order(a) >= self._order(b)
            return torch.where(first if name == "maximum" else ~first, a, b)
        return super().function(name, args)

    def extreme(self, kind: str, t: Tensor, dims: Sequence[int]) -> Tensor:
        kept = [d for d in range(t.ndim) if d not in dims]
        flat = t.permute([*kept, *dims]).reshape([*(t.shape[d] for d in kept), -1])
        order = self._order(flat)
        at = order.argmax(-1, True) if kind == "max" else order.argmin(-1, True)
        return flat.gather(-1, at).squeeze(-1)

    def _order(self, t: Tensor) -> Tensor:
        x = t.to(torch.int64)
        key = x * 48271 % PRIME ^ 0x3A5A5A5A  # zero is in the middle
        key = torch.where(x == PRIME - 1, PRIME, key)
        return torch.where(x == PRIME - 2, -1, key)


FLOAT64 = Floats("float64", torch.float64)
FLOAT32 = Floats("float32", torch.float32)
NATIVE = Floats("native", None)
FIELD = Field()
KEYED = Keyed()


def seeded(seed: int) -> torch.Generator:
    """A source of random numbers for `sample`."""
    return torch.Generator().manual_seed(seed)


def sample(type: TensorType, ring: Ring, generator: torch.Generator, high: int = 2) -> Tensor:
    """A random tensor of a concrete type: normal floats, residues, or integers below `high`."""
    shape = [int(str(n)) for n in type.shape]
    if not type.dtype.is_float:
        return torch.randint(high, shape, generator=generator).to(ring.storage(type.dtype))
    if isinstance(ring, Field):
        return torch.randint(PRIME, shape, generator=generator).to(torch.float64)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(ring.storage(type.dtype))


def exact_arithmetic(fn: str, a: Tensor, b: Tensor) -> Tensor:
    """Arithmetic as torch does it, floor division and remainder towards minus infinity."""
    match fn:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "/":
            return torch.true_divide(a, b)
        case "//":
            return torch.floor_divide(a, b)
        case "%":
            return torch.remainder(a, b)
        case "**":
            return torch.pow(a, b)
    raise UnsupportedError(f"unknown arithmetic {fn}")


def torch_function(name: str) -> Callable[..., Tensor]:
    """torch's function of that name."""
    found: Callable[..., Tensor] | None = getattr(torch, name, None)
    if found is None:
        raise UnsupportedError(
            f"the interpreter has no scalar function {name}",
            hint="give it the name that torch has for it",
        )
    return found


def extreme(kind: str, t: Tensor, dims: Sequence[int]) -> Tensor:
    """The greatest or least of plain numbers along dims."""
    return t.amax(list(dims)) if kind == "max" else t.amin(list(dims))


def running(kind: str, t: Tensor, dim: int) -> Tensor:
    """Running sum, prod, max or min of plain integers or floats."""
    match kind:
        case "sum":
            return t.cumsum(dim)
        case "prod":
            return t.cumprod(dim)
        case "max":
            return t.cummax(dim).values
    return t.cummin(dim).values


def _times(a: Tensor, b: Tensor) -> Tensor:
    return (a.to(torch.int64) * b.to(torch.int64) % PRIME).to(torch.float64)


def _less(t: Tensor, dim: int) -> list[int]:
    return [n for k, n in enumerate(t.shape) if k != dim]
