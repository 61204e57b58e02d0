"""What the records say about cutting an operator over devices."""

from __future__ import annotations

import pytest

from whet.ir.graph import apply, leaf
from whet.ir.types import DType, TensorType
from whet.parallel.choice import Choices, Factors, cuts_of, instance_of
from whet.parallel.cut import analyse

F = DType.f32


def value(*shape, dtype=F, name="x"):
    return leaf("input", name + "x".join(map(str, shape)), TensorType(dtype, shape))


def test_products_are_cut_along_rows_columns_and_the_sum():
    n = apply("matmul", value(6, 8), value(8, 4))
    cuts = cuts_of(n)
    assert (cuts["m"].result, cuts["m"].operands) == ("cut", {"x"})
    assert (cuts["n"].result, cuts["n"].operands) == ("cut", {"z"})
    assert (cuts["k"].result, cuts["k"].combine) == ("partial", "sum")


def test_sums_inside_are_combined_before_they_are_used():
    cut = cuts_of(apply("softmax", value(4, 16), axis=1))["i"]
    assert cut.inner == (("m", "max"), ("s", "sum"))
    assert cut.result == "cut"


def test_a_table_cut_by_rows_answers_in_parts():
    cut = cuts_of(apply("embedding", value(50, 16), value(4, 8, dtype=DType.i64)))["v"]
    assert (cut.result, cut.combine, cut.offset) == ("partial", "sum", True)


def test_bias_is_added_once():
    cut = cuts_of(apply("linear", value(4, 8), value(6, 8), value(6)))["k"]
    assert cut.once == ("v",)


def test_what_is_read_through_a_window_is_not_cut_there():
    n = apply("max_pool2d", value(2, 4, 8, 8), kernel=(2, 2), stride=(2, 2), padding=(0, 0),
              dilation=(1, 1), extra=(0, 0))  # fmt: skip
    assert "i" not in cuts_of(n)
    assert "read along it" in str(analyse(instance_of(n), "i", "y"))


@pytest.mark.parametrize("start", [0, 8, 16])
def test_equal_parts_of_a_dim_are_told_apart(start):
    x = value(4, 24)
    n = apply("slice", x, axis=1, start=start, stop=start + 8, step=1)
    cut = cuts_of(n)["k"]
    assert cut.result == "cut"
    assert not cut.offset
    factors = Factors([n])
    assert factors.dims[x][1] == {1, 8}


def test_factors_pass_through_reshapes_and_refuse_what_does_not_nest():
    x = value(4, 12)
    heads = apply("reshape", x, size=(4, 3, 4))
    other = apply("reshape", x, size=(4, 2, 6))
    assert Factors([heads]).dims[x][1] == {1, 4}
    both = Factors([heads, other]).dims[x][1]
    assert 1 in both
    assert not {4, 6} <= both


def test_choices_divide():
    n = apply("matmul", value(6, 8), value(8, 4))
    found = {str(c) for c in Choices(Factors([n]), (("a", 4),)).of(n)}
    assert found == {"-", "a: k", "a: n"}
