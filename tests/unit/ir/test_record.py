"""The record grammar: what binds, to which axes and sizes; and what a reader is told of a fault."""

from __future__ import annotations

import pytest

from whet.errors import RecordError
from whet.ir.expr import Num, Reduce
from whet.ir.ops import TABLE, instance
from whet.ir.record import Guard, Record
from whet.ir.types import DType, Poly

C, G, N = (Poly.symbol(s) for s in "CGN")


def lets(text, *shapes, **attrs):
    return [repr(x) for x in Record(text).bind(shapes, attrs).lets]


# -- binding ---------------------------------------------------------------------------------------
def test_axes_groups_and_extents():
    i = instance("matmul", ((2, 3, 4, 5), (3, 5, 6)), ())
    assert i.extents == {"b0": 2, "b1": 3, "m": 4, "k": 5, "n": 6}
    assert i.shape() == (2, 3, 4, 6)
    assert i.operands["z"].flat == ("b1", "k", "n")
    assert repr(i) == (
        "matmul with b0: 2, b1: 3, m: 4, k: 5, n: 6\n"
        "  y[b0, b1, m, n] = sum[k](x[b0, b1, m, k] * z[b1, k, n])"
    )


def test_dims_of_size_one_broadcast_and_vanish_from_indices():
    i = instance("add", ((2, 1, 4), (3, 1)), ())
    assert i.shape() == (2, 3, 4)
    assert repr(i.lets[0]) == "y[b0, b1, b2] = x[b0, b2] + z[b1]"
    assert i.operands["x"].axes == (("b0",), (), ("b2",))
    assert lets("y = f(m[n, +h])\ny[n] = m[n, h]", (2, 1)) == ["y[n] = m[n]"]


def test_a_composite_is_split_by_what_is_known():
    text = "y = f(x[(g, c),], groups=G)\ny[c, g] = x[(g, c),]"
    i = Record(text).bind([(6,)], {"groups": 2})
    assert (i.extents, i.shape()) == ({"g": 2, "c": 3}, (3, 2))
    assert i.operands["x"].axes == (("g", "c"),)
    assert Record(text).bind([(G * C,)], {"groups": G}).extents == {"g": G, "c": C}


def test_a_size_that_may_not_divide_becomes_a_guarded_quotient():
    text = "y = f(x[(g, c),], groups=G)\ny[c, g] = x[(g, c),]"
    i = Record(text).bind([(N,)], {"groups": 2})
    quotient = i.extents["c"]
    assert isinstance(quotient, Poly)
    assert i.guards == (Guard(N, quotient * 2),)
    assert i.shape() == (quotient, 2)


def test_symbolic_sizes_that_must_agree_become_guards():
    i = instance("add", ((N, 3), (C, 3)), ())
    assert i.guards == (Guard(N, C),)
    assert repr(i.guards[0]) == "N == C"
    assert instance("add", ((N, 3), (N, 3)), ()).guards == ()


def test_an_axis_sits_at_its_position():
    for axis in (1, -2):
        i = instance("softmax", ((2, 3, 4),), (("axis", axis),))
        assert i.operands["x"].dims == (0, 2, 1)
        assert i.shape() == (2, 3, 4)
        assert i.extents == {"b0": 2, "b1": 4, "i": 3}
    i = instance("permute", ((2, 3, 4),), (("dims", (2, 0, 1)),))
    assert i.shape() == (4, 2, 3)


def test_operands_that_are_left_out_are_numbers():
    assert repr(instance("linear", ((2, 3), (4, 3), None), ()).lets[0]) == (
        "y[b0, o] = sum[k](x[b0, k] * w[o, k])"
    )
    assert set(instance("linear", ((2, 3), (4, 3), None), ()).operands) == {"x", "w"}


def test_sizes_are_carried_out():
    i = instance(
        "conv2d", ((2, 4, N, 9), (6, 4, 3, 3), None),
        (("dilation", (1, 1)), ("groups", 1), ("padding", (1, 1)), ("stride", (1, 2))),
    )  # fmt: skip
    assert i.shape() == (2, 6, N, 5)
    i = instance("concat", ((2, N), (2, 3), (2, C)), (("axis", 1),))
    assert i.shape() == (2, N + 3 + C)
    assert "k - (3 + N)" in repr(i.lets[0]).replace("N + 3", "3 + N")


def test_scalars_and_empty_tensors():
    assert instance("exp", ((),), ()).shape() == ()
    value = (("dtype", DType.f32), ("size", ()), ("value", 1.5))
    assert instance("full", (), value).lets[0].body == Num(1.5)
    assert instance("sum", ((0, 3),), (("dims", (0,)),)).shape() == (3,)


def test_reductions_bind_what_they_declare():
    i = Record("y = f(x[i])\ny[i] = sum[j: I, k: 3]([j <= i])").bind([(5,)], {})
    body = i.let("y").body
    assert isinstance(body, Reduce)
    assert body.axes == ("j", "k")
    assert (i.extents["j"], i.extents["k"]) == (5, 3)


def test_tests_are_chained_and_known_ones_decided():
    text = "y = f(x[i], low=a, flag=flag)\ny[i] = x[i] if a <= i < I and not flag else 0"
    assert lets(text, (5,), low=1, flag=False) == ["y[i] = (x[i] if 1 <= i and i < 5 else 0)"]
    assert lets(text, (5,), low=1, flag=True) == ["y[i] = 0"]


def test_reshape_is_a_refinement_where_there_is_one():
    assert repr(instance("reshape", ((N, 6),), (("size", (N * 2, 3)),)).lets[0]) == (
        "y[a0, a1, a2] = x[a0, a1, a2]"
    )
    flat = instance("reshape", ((6, 4),), (("size", (8, 3)),))
    assert repr(flat.lets[0]) == "y[o0, o1] = x[(o0 * 3 + o1) // 4, (o0 * 3 + o1) % 4]"


def test_every_record_of_the_table_is_short():
    """An operator is a few lines of text; the longest is attention."""
    for op in TABLE.values():
        if op.record is not None:
            assert len(op.record.text.splitlines()) <= 7, op.name


# -- faults ----------------------------------------------------------------------------------------
def told(text, *shapes, **attrs):
    with pytest.raises(RecordError) as fault:
        Record(text).bind(shapes, attrs)
    return str(fault.value).splitlines()


def test_an_unknown_index_is_marked():
    assert told("y = rev(x[i])\ny[i] = x[I - 1 - j]", (3,)) == [
        "record rev: unknown name j",
        "  expected: one of i, I",
        "  where:    y = rev(x[i])",
        "            y[i] = x[I - 1 - j]",
        "                             ^",
    ]


def test_two_sizes_for_one_axis():
    assert told("y = plus(x[i], z[i])\ny[i] = x[i] + z[i]", (3,), (4,)) == [
        "record plus: axis i has two sizes",
        "  expected: 3",
        "  got:      4",
        "  where:    y = plus(x[i], z[i])",
        "                             ^",
        "            y[i] = x[i] + z[i]",
    ]


def test_a_missing_comma_in_a_lone_composite():
    assert told("y = heads(x[(h, d)], heads=H)\ny[d] = sum[h](x[(h, d),])", (6,), heads=2) == [
        "record heads: operand x has another rank",
        "  expected: x[h, d]",
        "  got:      [6]",
        "  where:    y = heads(x[(h, d)], heads=H)",
        "                      ^",
        "            y[d] = sum[h](x[(h, d),])",
        "  try:      a single composite axis needs a comma: x[(h, d),]",
    ]


def test_a_misspelt_function():
    assert told("y = gate(x[i])\ny[i] = x[i] * sigmod(x[i])", (3,)) == [
        "record gate: unknown function sigmod",
        "  where:    y = gate(x[i])",
        "            y[i] = x[i] * sigmod(x[i])",
        "                          ^",
        "  try:      sigmoid, sign, fmod",
    ]


FAULTS = [
    # text, shapes, attributes, the first line, what is marked
    ("y = f(x[i])\ny[i] = x[i] + w[i]", [(3,)], {}, "unknown tensor w", "w[i]"),
    ("y = f(x[i, j])\ny[i] = x[i]", [(3, 4)], {}, "x has 2 dims", "x[i]"),
    ("y = f(x[i, j])\ny[i] = sum[i](x[i, j])", [(3, 4)], {}, "axis i is bound twice", "i](x"),
    ("y = f(x[i])\ny[i] = sum[k](x[k])", [(3,)], {}, "axis k has no extent", "k](x"),
    ("y = f(x[i])\ny[h] = x[h]", [(3,)], {}, "axis h has no extent", "h] ="),
    ("y = f(x[(g, c),], groups=G)\ny[c] = sum[g](x[(g, c),])", [(6,)], {"groups": 4},
     "(g, c): 4 does not divide 6", "(g, c),]"),
    ("y = f(x[(g, c),])\ny[c] = sum[g](x[(g, c),])", [(6,)], {},
     "(g, c): more than one factor is unknown", "(g, c),]"),
    ("y = f(x[i@axis], axis=axis)\ny[i] = x[i]", [(3,)], {"axis": 1},
     "operand x: axis out of range", "x[i@axis]"),
    ("y = f(x[i, 1])\ny[i] = x[i]", [(3, 2)], {}, "a dim has another size", "1])"),
    ("y = f(x[i])\ny[i] = x[i", [(3,)], {}, "not an expression: '[' was never closed", "[i"),
    ("y = f(x[i])\ny[i] = x[i] & 1", [(3,)], {},
     "not part of the record grammar: x[i] & 1", "x[i] & 1"),
    ("y = f(x[i])\ny[i] = x[i] in x[i]", [(3,)], {},
     "not a comparison of the record grammar", "x[i] in"),
    ("y = f(x[i])\nz[i] = x[i]", [(3,)], {}, "result y is never assigned", "y = f"),
    ("y = f(x[i])\nreturn x", [(3,)], {}, "a statement must read  name[axis, …] = ", "return"),
    ("y = f(x)\ny[i] = x[i]", [(3,)], {}, "an operand must read  T[axis, …]", "x)"),
    ("f(x[i])\ny[i] = x[i]", [(3,)], {}, "the first line must read  out = name(", "f(x[i])"),
    ("y = f(x[i + 1])\ny[i] = x[i]", [(3,)], {}, "an axis or attribute is a plain name", "i + 1"),
    ("y = f(x[i])\ny[i] = maximum(x[i])", [(3,)], {},
     "maximum takes another number of arguments", "maximum"),
    ("y = f(x[i])\ny[h: X] = x[h]", [(3,)], {}, "unknown name X", "X]"),
    ("y = f(x[i])\ny[h: 1.5] = x[h]", [(3,)], {},
     "a size must be made of extents and attributes", "1.5"),
    ("y = f(x[i])\ny[*b, i] = x[i]", [(3,)], {}, "unknown group *b", "b, i]"),
    ("y = f(x[i])\ny[i] = x[i]", [None], {}, "operand x may not be left out", "x[i])"),
    ("y = f(x[i])\ny[i] = x[i]", [(3, 2)], {}, "operand x has another rank", "x[i])"),
    ("y = f(x[i])\ny[i] = sum[*b](x[i])", [(3,)], {}, "unknown group *b", "b](x"),
    ("y = f(x[i])\ny[i] = x[*b]", [(3,)], {}, "unknown group *b", "b]"),
    ("y = f(x[*b], z[*b])\ny[*b] = x[*b]", [(3, 2), (3,)], {}, "*b: sizes do not broadcast", "z["),
    ("y = f(x[*b], pads=(p, q))\ny[*b] = x[*b]", [(3,)], {"pads": (1,)},
     "attribute of another length", "(p, q)"),
]  # fmt: skip


@pytest.mark.parametrize("row", FAULTS, ids=lambda r: r[3])
def test_faults_show_the_line_and_the_place(row):
    text, shapes, attrs, summary, marked = row
    lines = told(text, *shapes, **attrs)
    assert lines[0].partition(": ")[2].startswith(summary)
    caret = next(k for k, line in enumerate(lines) if line.strip() == "^")
    column = lines[caret].index("^")
    assert lines[caret - 1][column:].startswith(marked)


def test_faults_of_the_call_have_no_place_but_the_record():
    text = "y = f(x[i], scale=s)\ny[i] = x[i] * s"
    assert told(text, (3,))[:2] == ["record f: attribute scale is missing", "  expected: scale"]
    assert told(text, (3,), scale=2, shift=1)[0] == "record f: unknown attribute shift"
    assert told(text, (3,), (4,), scale=2)[0] == "record f: another number of operands"
    with pytest.raises(RecordError, match="the first line must read"):
        Record("")


def test_an_unknown_operator_offers_its_neighbours():
    with pytest.raises(RecordError, match="there is no operator matmult\n  try:      matmul"):
        instance("matmult", ((2, 3), (3, 4)), ())


def test_structural_operators_say_what_they_were_given():
    with pytest.raises(RecordError) as fault:
        instance("reshape", ((6, 4),), (("size", (5, 5)),))
    assert "operator reshape does not take these shapes or attributes" in str(fault.value)
    assert "[6, 4] and [5, 5] have as many elements" in str(fault.value)
