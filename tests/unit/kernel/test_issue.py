"""What a processor is said to issue: the order of nests that differ in one thing."""

from __future__ import annotations

import pytest

from whet.kernel.issue import issued
from whet.kernel.text import parse
from whet.kernel.traffic import nests

HEAD = """x: input[f32, 64, 64]
w: input[f32, 64, 64]
y: output[f32, 64, 64]
"""


def cycles(body, head=HEAD, lanes=16, threads=2):
    kernel = parse(head + body)
    return issued(nests(kernel), kernel, lanes, 32, threads)


def over(kind, inner="j"):
    index = {"j": "i, j", "i": "j, i"}[inner]
    return f"""for i in range(64):
    for j in {kind}(64):
        y[{index}] = x[{index}] * 2
"""


def test_lanes_are_faster_than_scalars_and_what_lies_apart_is_slower():
    even, apart = cycles(over("vector")), cycles(over("vector", "i"))
    assert apart.total > 2 * even.total
    assert apart.apart > 0 == even.apart
    assert even.plain == 0


def test_what_the_compiler_makes_lanes_of_is_no_loop_of_scalars():
    assert cycles(over("range")).plain == 0
    total = HEAD.replace("y: output[f32, 64, 64]", "y: output[f32, 64]")
    summed = "for i in range(64):\n    for j in range(64):\n        y[i] += x[i, j]\n"
    found = cycles(summed, total)  # its order may not be changed
    assert found.plain == pytest.approx(found.total, rel=0.5)
    assert found.waiting > 0


def test_a_sum_waits_less_with_more_of_them_side_by_side():
    def product(rows):
        return f"""for o in range({64 // rows}):
    for k in range(64):
        for i in unroll({rows}):
            for j in vector(16):
                y[{rows}*o + i, j] += x[{rows}*o + i, k] * w[k, j]
"""

    one, eight = cycles(product(1)), cycles(product(8))
    assert eight.total < one.total / 2
    assert eight.waiting == 0 < one.waiting


def test_threads_share_a_parallel_loop_and_wait_at_its_end():
    body = over("vector").replace("for i in range", "for i in parallel")
    two, one = cycles(body, threads=2), cycles(body, threads=1)
    assert two.joins > 0 == one.joins
    assert two.total - two.joins == pytest.approx((one.total - one.turns) / 2, rel=0.2)


def test_a_vector_loop_across_blocks_is_a_loop_of_scalars():
    body = "for i in range(64):\n    for j in vector(48):\n        y[i, j + 8] = x[i, j + 8] * 2\n"
    blocked = HEAD.replace("x: input[f32, 64, 64]", 'x: input[f32, 64, 64] @ "1//16:4 0:64 1%16"')
    assert cycles(body).plain == 0
    assert cycles(body, blocked).plain > 0
    assert cycles(over("vector"), blocked).plain == 0  # each vector lies in one block


def test_short_vectors_under_a_mask_stall_where_the_next_begins_beside_them():
    head = HEAD.replace("y: output[f32, 64, 64]", "y: output[f32, 64, 14]")

    def sums(first, second):
        return f"""for k in range(64):
    for {first[0]} in range({first[1]}):
        for {second[0]} in range({second[1]}):
            for j in vector(14):
                y[32*g + o, j] += x[k, j] * w[k, 32*g + o]
"""

    beside, apart = sums(("g", 2), ("o", 32)), sums(("o", 32), ("g", 2))
    assert cycles(beside, head).waiting > cycles(apart, head).waiting
