"""Records are admitted here: every load is proven to stay inside its operand, for all sizes.

Their derived backward records likewise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.unit.ir.symbolic import SYMBOLS, row, shape
from whet.errors import RecordError
from whet.ir.adjoint import adjoint
from whet.ir.expr import Expr, Load, Num, call, rebuild, show
from whet.ir.ops import TABLE, instance
from whet.ir.record import Record
from whet.rewrite.bounds import bounds, in_bounds

# Indices that are data: whoever makes them must keep them in range, and evaluation checks it.
DATA = {"embedding": "ids[b0, b1]", "gather": "ids[b0, b1, k]", "index_select": "ids[k]"}


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
