"""Element types, and sizes that may be symbolic."""

from __future__ import annotations

import itertools

import pytest
import torch

from whet.ir.types import (
    DType,
    Poly,
    Quotient,
    TensorType,
    divide,
    floordiv,
    product,
    promote,
    substitute,
)

N, C, H = (Poly.symbol(s) for s in "NCH")


@pytest.mark.parametrize(
    "pair", list(itertools.product(DType, DType)), ids=lambda p: f"{p[0].name}-{p[1].name}"
)
def test_promotion_is_torchs(pair):
    a, b = pair
    want = torch.promote_types(getattr(torch, a.value), getattr(torch, b.value))
    if DType.c64 in pair and DType.f64 in pair:
        assert promote(pair) is DType.c64  # there is no complex128
    else:
        assert getattr(torch, promote(pair).value) == want


def test_promotion_of_nothing():
    with pytest.raises(ValueError, match="at least one element type"):
        promote(())


@pytest.mark.parametrize("dtype", DType)
def test_bits(dtype):
    t = getattr(torch, dtype.value)
    assert dtype.bits == 8 * t.itemsize
    assert dtype.is_float == t.is_floating_point
    assert dtype.is_int == (not t.is_floating_point and not t.is_complex and t != torch.bool)


def test_polynomials_collapse_to_numbers():
    assert N - N == 0
    assert type((N + 3) - N) is int
    assert N * 0 == 0
    assert N + 0 == N
    assert 2 + N * 3 - N == 2 * N + 2


def test_polynomials_are_normal_forms():
    assert (N + C) * (N - C) == N * N - C * C
    assert hash(N * C) == hash(C * N)
    assert len({N * C, C * N, N + C, C + N}) == 2
    assert N != C
    assert N != 1


def test_quotients():
    assert floordiv(7, 2) == 3
    assert floordiv(N * C, C) == N
    assert floordiv(N * N + N, N + 1) == N
    assert (N * 2) // 2 == N
    assert 6 // (Poly.of(2) + N - N) == 3
    q = floordiv(N + 1, 2)
    assert isinstance(q, Poly)
    assert q.terms == (((Quotient(N + 1, 2),), 1),)
    assert q.symbols() == {"N"}
    assert repr(q) == "((1 + N)//(2))"


def test_division():
    assert divide(12, 4) == 3
    assert divide(12, 5) is None
    assert divide(12, 0) is None
    assert divide(N * C + C, C) == N + 1
    assert divide(N + 1, 2) is None
    assert divide(N, C) is None
    assert divide(0 * N, C) == 0


def test_substitution():
    assert substitute(5, {"N": 2}) == 5
    assert substitute(N * C + 1, {"N": 3}) == 3 * C + 1
    assert substitute(N * C + 1, {"N": 3, "C": 4}) == 13
    assert substitute(floordiv(N + 1, 2), {"N": 4}) == 2
    assert substitute(floordiv(N + 1, C), {"C": N + 1}) == 1
    assert substitute(N, {"N": C + 1}) == C + 1


def test_text():
    assert str(N * C * 2 - H + 1) == "1 - H + 2*C*N"
    assert str(Poly({})) == "0"
    assert str(N * -1) == "-N"


def test_tensor_types():
    t = TensorType(DType.f16, (N, 3, 4))
    assert (t.rank, t.numel, t.nbytes) == (3, 12 * N, 24 * N)
    assert repr(t) == "f16[N, 3, 4]"
    assert TensorType(DType.i64, ()).nbytes == 8
    assert product(()) == 1
