"""Records are admitted here: every load is proven to stay inside its operand, for all sizes.

Their derived backward records likewise. A row gives shapes and attributes in symbols; what an
attribute must satisfy is built into the shape (a slice that ends at S + E has an axis S + E + T).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from whet.errors import RecordError
from whet.ir.adjoint import adjoint
from whet.ir.expr import Expr, Load, Num, call, rebuild, show
from whet.ir.ops import TABLE, instance
from whet.ir.record import Instance, Record
from whet.ir.types import DType, Poly, Size
from whet.rewrite.bounds import bounds, in_bounds

SYMBOLS = {c: Poly.symbol(c) for c in "ABCDEGHIJKLMNOPQRSTUVW"}


def conv(rank: int) -> str:
    spatial, kernel = " ".join("IJL"[:rank]), " ".join("RQS"[:rank])
    return f"N G*C {spatial} | G*O C {kernel} | G*O"


def windows(rank: int, **more: str | None) -> str:
    """Attributes in symbols where the solver follows, representative numbers where it does not."""
    text = {"stride": "(2, 3, 1)", "padding": "(P, 2, 1)", "dilation": "(D, 1, 2)", **more}
    return ", ".join(f"{k}={v}[:{rank}]" for k, v in text.items() if v)


PLAIN = "A B C"
ROWS = {
    "leaky_relu": (PLAIN, "slope=0.1"), "elu": (PLAIN, "alpha=1.0"),
    "softplus": (PLAIN, "beta=1.0, threshold=20.0"), "clamp": (PLAIN, "low=0.0, high=6.0"),
    "where": ("A 1 C | B C | A B 1", ""), "cast": (PLAIN, "dtype=DType.f16"),
    "full": ("", "size=(A, B), value=1.0, dtype=DType.f32"),
    "arange": ("", "size=A, start=0, step=1, dtype=DType.i64"),
    "matmul": ("A 1 M K | B K N", ""), "linear": ("A B K | O K | O", ""),
    "attention": ("B H*G I D | B H J D | B H J E | B 1 I J", "scale=1.0, causal=True, group=G"),
    "einsum": ("A B C | C B D", "equation='abc,cbd->da'"),
    "permute": (PLAIN, "dims=(2, 0, 1)"), "expand": ("A 1 C", "size=(N, A, B, C)"),
    "slice": ("A S+E+T", "axis=1, start=S, stop=S+E, step=3"),
    "select": ("A S+T B", "axis=1, index=S"),
    "pad": (PLAIN, "axis=1, before=P, after=Q, value=0.0"), "flip": (PLAIN, "axis=1"),
    "roll": (PLAIN, "axis=1, shift=S"), "tril": (PLAIN, "diagonal=K"),
    "triu": (PLAIN, "diagonal=K"),
    "embedding": ("V E | A B", ""), "gather": ("A I B | A K B", "axis=1"),
    "index_select": ("A I B | K", "axis=1"),
    "slice_scatter": ("A S+3*K+T | A K", "axis=1, start=S, step=3"),
    "interpolate_nearest": ("N C I J", "size=(H, W)"),
    "interpolate_bilinear": ("N C I J", "size=(H, W)"),
    "pixel_shuffle": ("N C*R*Q H W", "factor=(R, Q)"), "rope": ("A B 2*D | B 2*D | B 2*D", ""),
    "concat": ("A I | A J | A K", "axis=1"), "stack": ("A B | A B | A B", "axis=0"),
    "reshape": ("A B*C D", "size=(A*B, C, D)"),
    "sum": (PLAIN, "dims=(0, 2)"), "mean": (PLAIN, "dims=(1,)"),
    "var": (PLAIN, "dims=(1, 2), correction=1"), "amax": (PLAIN, "dims=(1,)"),
    "amin": (PLAIN, "dims=(1,)"), "prod": (PLAIN, "dims=(1,)"),
    **dict.fromkeys(
        ("argmax", "argmin", "cumsum", "cummax", "softmax", "log_softmax", "logsumexp"),
        (PLAIN, "axis=1")),
    "batch_norm": ("N C I J | C | C | C | C", "eps=0.1"),
    "layer_norm": ("A B C | B C | B C", "size=(B, C), eps=0.1"),
    "rms_norm": ("A B C | C", "size=(C,), eps=0.1"),
    "group_norm": ("N G*C I | G*C | G*C", "groups=G, eps=0.1"),
    "local_response_norm": ("N C I", "size=K, before=P, alpha=0.1, beta=0.7, k=1.0"),
    "lstm_cell": ("N K | N D | N D | 4*D K | 4*D D | 4*D", ""),
    "gru_cell": ("N K | N D | 3*D K | 3*D D | 3*D | 3*D", ""),
    **{f"conv{r}d": (conv(r), f"groups=G, {windows(r)}") for r in (1, 2, 3)},
    **{f"conv_transpose{r}d": (
        f"N G*C {' '.join('IJL'[:r])} | G*C O {' '.join('RQS'[:r])} | G*O",
        f"groups=G, {windows(r, output_padding='(1, 0, 0)')}") for r in (1, 2, 3)},
    **{f"max_pool{r}d": (
        f"N C {' '.join('IJL'[:r])}", windows(r, kernel="(3, 2, 2)", extra="(1, 0, 0)"))
        for r in (1, 2, 3)},
    **{f"avg_pool{r}d": (
        f"N C {' '.join('IJL'[:r])}",
        windows(r, dilation=None, kernel="(3, 2, 2)", extra="(1, 0, 0)")
        + ", include_padding=False")
        for r in (1, 2, 3)},
    **{f"adaptive_avg_pool{r}d": (f"N C {' '.join('IJL'[:r])}", f"size=(H, U, T)[:{r}]")
       for r in (1, 2, 3)},
}  # fmt: skip

# Indices that are data: whoever makes them must keep them in range, and evaluation checks it.
DATA = {"embedding": "ids[b0, b1]", "gather": "ids[b0, b1, k]", "index_select": "ids[k]"}


def row(name: str) -> Instance:
    """The operator at symbolic sizes; pointwise records need no row."""
    operands, attrs = ROWS.get(name, ("", ""))
    record = TABLE[name].record
    if name not in ROWS:
        assert record is not None
        operands = " | ".join(["A B C", "B 1"][: len(record.operands)])
    shapes = tuple(map(shape, operands.split("|"))) if operands else ()
    values = eval(f"dict({attrs})", {"DType": DType}, SYMBOLS)
    return instance(name, shapes, tuple(sorted(values.items())))


def shape(text: str) -> tuple[Size, ...]:
    return tuple(eval(word, {}, SYMBOLS) for word in text.split())


@pytest.mark.parametrize("name", TABLE)
def test_every_load_is_in_bounds_for_all_sizes(name):
    i = row(name)
    found = in_bounds(i)
    asked = {r.load.tensor for r in (*found.proven, *found.anywhere, *found.assumed)}
    assert asked >= set(i.operands)
    assert {show(r.index) for r in found.assumed} == ({DATA[name]} if name in DATA else set())


def backwards() -> Iterator[tuple[str, str]]:
    for name in TABLE:
        yield from ((name, operand) for operand in row(name).operands)


@pytest.mark.parametrize(("name", "operand"), list(backwards()))
def test_backward_records_too(name, operand):
    assert not in_bounds(adjoint(row(name), operand)).unproven


@pytest.mark.parametrize("name", TABLE)
def test_no_proof_is_empty(name):
    """A read moved behind its tensor's end is not proven: nothing contradictory was assumed."""
    i = row(name)

    def moved(e: Expr) -> Expr:
        if isinstance(e, Load):
            sizes = i.sizes(e.tensor)
            ends = [call("+", moved(x), Num(n)) for x, n in zip(e.index, sizes, strict=True)]
            return Load(e.tensor, tuple(ends), e.outside)
        return rebuild(e, moved)

    lets = tuple(replace(let, body=moved(let.body)) for let in i.lets)
    assert not bounds(replace(i, lets=lets)).proven


@pytest.mark.parametrize("before", [(6, 4), (2, 6, 4), (5, 12)])
@pytest.mark.parametrize("after", [(8, 3), (3, 16), (10, 6), (4, 3, 5)])
def test_a_reshape_without_common_axes_is_proven_at_its_sizes(before, after):
    if math.prod(before) != math.prod(after):
        with pytest.raises(RecordError, match="operator reshape does not take these shapes"):
            instance("reshape", (before,), (("size", after),))
        return
    i = instance("reshape", (before,), (("size", after),))
    in_bounds(i)
    in_bounds(adjoint(i, "x"))


WRONG = [
    # a slice that ends one behind the last element
    ("y = slice(x[*b, i@axis], axis=axis, start=s, stop=e)\ny[*b, k@axis: e - s] = x[*b, s + k]",
     "A L", "axis=1, start=1, stop=L+1", "0 <= 1 + k < L"),
    # a difference that looks behind its end
    ("y = diff(x[i])\ny[i] = x[i + 1] - x[i]", "I", "", "0 <= i + 1 < I"),
    # a guard that lets one too many through
    ("y = shift(x[i], by=s)\ny[i] = x[i - s] if s <= i + 1 else 0", "I", "by=S", "0 <= i - S < I"),
    # a guard in the wrong branch
    ("y = shift(x[i], by=s)\ny[i] = 0 if s <= i else x[i - s]", "I", "by=S", "0 <= i - S < I"),
    # a composite indexed by its whole
    ("y = heads(x[(h, d),], heads=H)\ny[d] = x[(d, d),]", "H*D", "heads=H", "0 <= d < H"),
    # a rotation by an amount that the modulus does not see
    ("y = turn(x[i], by=s)\ny[i] = x[i % I + s]", "I", "by=S", "0 <= i % I + S < I"),
    # a number that no integer arithmetic covers
    ("y = warp(x[i])\ny[i] = x[i * i // 2]", "I", "", "0 <= i * i // 2 < I"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: w[0].split(" = ")[1].split("(")[0])
def test_wrong_records_are_caught(wrong):
    text, operand, attrs, expected = wrong
    i = Record(text).bind([shape(operand)], eval(f"dict({attrs})", {}, SYMBOLS))
    with pytest.raises(RecordError) as fault:
        in_bounds(i)
    assert f"record {i.name}: a read of x may leave it" in str(fault.value)
    assert f"expected: {expected}" in str(fault.value)


def test_the_message_marks_the_index():
    text = "y = diff(x[*b, i])\ny[*b, i] = x[*b, i] - x[*b, i + 1]"
    with pytest.raises(RecordError) as fault:
        in_bounds(Record(text).bind([shape("A I")], {}))
    assert (
        str(fault.value)
        == """\
record diff: a read of x may leave it
  expected: 0 <= i + 1 < I
  got:      no proof for all sizes of b0, i
  where:    y[b0, i] = x[b0, i] - x[b0, i + 1]
                                        ^^^^^
  try:      guard the load, give it a value outside (x[…] or 0), or correct its index"""
    )


def test_what_is_known_of_attributes_can_be_told():
    i = instance("select", ((SYMBOLS["I"],),), (("axis", 0), ("index", SYMBOLS["S"] - 1)))
    assert bounds(i).unproven
    assert not bounds(i, [SYMBOLS["I"] - SYMBOLS["S"]]).unproven


def test_the_whole_table_takes_few_questions():
    """Effort is counted, not timed."""
    assert sum(bounds(row(name)).queries for name in TABLE) < 150
