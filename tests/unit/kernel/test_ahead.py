"""Asking ahead: while a block is used, the next one is asked for, all of it and no more."""

from __future__ import annotations

import itertools
import operator

import numpy as np
import pytest

from whet.ir import expr as ex
from whet.ir.expr import Expr, Num
from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel.ahead import FINE, LINE, Ahead, Asked, asked
from whet.kernel.interpret import run
from whet.kernel.loops import Kernel
from whet.kernel.lower import lower
from whet.kernel.schedule import Illegal
from whet.kernel.schedule import apply as scheduled
from whet.kernel.space import drafts
from whet.kernel.text import parse, show
from whet.machine.target import Target

NEAR = 1 << 20
SIGNS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv,
    "%": operator.mod,
}  # fmt: skip
BLOCKS = """
x: input[f32, {rows}, {depth}]
w: input[f32, {depth}, {width}] @ "1//16:{blocks} 0:{depth} 1%16" @ ahead
y: output[f32, {rows}, {width}]
for o in parallel({blocks}):
    for i in range({rows}):
        for k in range({depth}):
            for v in vector(16):
                y[i, 16*o + v] += x[i, k] * w[k, 16*o + v]
"""


def value(e: Expr, at: dict[str, int]) -> int:
    found = ex.substitute(e, {v: Num(n) for v, n in at.items()})

    def number(e: Expr) -> int:
        match e:
            case Num(int(n)):
                return n
            case ex.Call(fn, (a, b)):
                return SIGNS[fn](number(a), number(b))
        raise AssertionError(e)

    return number(found)


def lines(one: Asked, at: dict[str, int]) -> set[int]:
    """Lines asked for at one iteration, counted from the start of the buffer."""
    first = 4 * value(one.start, at) + value(one.step, at) * one.pace // FINE
    return {(first + LINE * n) // LINE for n in range(one.lines)}


@pytest.mark.parametrize(("rows", "depth"), [(2, 64), (7, 96), (16, 768), (49, 130)])
def test_the_uses_of_a_block_ask_for_the_next_one(rows: int, depth: int) -> None:
    k = parse(BLOCKS.format(rows=rows, depth=depth, width=64, blocks=4))
    (one,) = asked(k, NEAR)
    assert one.loop == "k"
    for o in range(4):
        turns = itertools.product(range(rows), range(depth))
        found = set().union(*(lines(one, {"o": o, "i": i, "k": j}) for i, j in turns))
        block = range(depth * (o + 1), depth * (o + 2))  # a line holds 16 numbers, as a block's row
        missed = set(block) - found
        assert len(missed) <= 0.03 * len(block), (o, len(missed))
        assert found <= {*block, block[-1] + 1}


def test_a_joined_loop_asks_for_the_block_of_its_quotient() -> None:
    k = parse("""
        x: input[f32, 6, 256]
        w: input[f32, 256, 64] @ "1//16:4 0:256 1%16" @ ahead
        y: output[f32, 6, 64]
        for c in parallel(24):
            for k in range(256):
                for v in vector(16):
                    y[c % 6, 16*(c // 6) + v] += x[c % 6, k] * w[k, 16*(c // 6) + v]
    """)
    (one,) = asked(k, NEAR)
    found = set().union(*(lines(one, {"c": c, "k": j}) for c in range(6, 12) for j in range(256)))
    assert found == set(range(512, 768))


UNUSED = {
    "used once, so that it is fetched as any stream is": """
for o in range(4):
    for k in range(256):
        for v in vector(16):
            y[0, 16*o + v] += x[0, k] * w[k, 16*o + v]""",
    "all blocks for each row: none stays": """
for i in range(8):
    for o in range(4):
        for k in range(256):
            for v in vector(16):
                y[i, 16*o + v] += x[i, k] * w[k, 16*o + v]""",
    "holes between what is read": """
for o in range(4):
    for i in range(8):
        for k in range(128):
            for v in vector(16):
                y[i, 16*o + v] += x[i, k] * w[2*k, 16*o + v]""",
    "from the last block to the first": """
for o in range(4):
    for i in range(8):
        for k in range(256):
            for v in vector(16):
                y[i, 16*(3 - o) + v] += x[i, k] * w[k, 16*(3 - o) + v]""",
    "of no fixed length": """
for o in range(4):
    for i in range(8):
        for k in range(minimum(256, 64 + o)):
            for v in vector(16):
                y[i, 16*o + v] += x[i, k] * w[k, 16*o + v]""",
}


@pytest.mark.parametrize("text", UNUSED.values(), ids=UNUSED)
def test_nothing_is_asked_for_without_a_block_that_is_used_again(text: str) -> None:
    head = (
        "x: input[f32, 8, 256]\n"
        'w: input[f32, 256, 64] @ "1//16:4 0:256 1%16" @ ahead\n'
        "y: output[f32, 8, 64]"
    )
    assert list(asked(parse(head + text), NEAR)) == []


def test_a_block_that_does_not_fit_is_not_asked_for() -> None:
    k = parse(BLOCKS.format(rows=16, depth=768, width=64, blocks=4))
    assert list(asked(k, 768 * 16 * 4 - 1)) == []
    assert [one.buffer for one in asked(k, 768 * 16 * 4)] == ["w"]


def test_only_an_input_is_asked_for() -> None:
    k = parse(BLOCKS.format(rows=2, depth=64, width=64, blocks=4))
    made = scheduled(k, (Ahead("y"),))
    assert isinstance(made, Illegal)
    assert (made.kind, made.buffer) == ("role", "y")


def test_the_mark_stands_in_the_text_and_changes_no_result() -> None:
    text = BLOCKS.format(rows=3, depth=64, width=32, blocks=2)
    marked, plain = parse(text), parse(text.replace(" @ ahead", ""))
    assert parse(show(marked)) == marked != plain
    assert marked.digest != plain.digest
    rng = np.random.default_rng(0)
    data = {b.name: rng.standard_normal(b.sizes) for b in plain.inputs}
    np.testing.assert_array_equal(run(marked, data)["y"], run(plain, data)["y"])


def test_drafts_of_products_ask_ahead_for_their_weight_where_blocks_lie_side_by_side() -> None:
    def product(rows: int) -> Kernel:
        x = leaf("input", "x", TensorType(DType.f32, (rows, 256)))
        w = leaf("parameter", "w", TensorType(DType.f32, (512, 256)))
        return lower(Graph((x,), (apply("linear", x, w, None),)))

    target = Target("avx512f", 64, 32, 2)
    found = drafts(product(64), frozenset({"x1"}), target)
    assert any(Ahead("x1") in d.schedule for d in found)
    assert all(Ahead("x1") not in d.schedule for d in drafts(product(64), frozenset(), target))
    assert all(Ahead("x1") not in d.schedule for d in drafts(product(1), frozenset({"x1"}), target))
