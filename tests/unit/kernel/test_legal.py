"""What is refused, and what the refusal says."""

from __future__ import annotations

import pytest

from whet.kernel.loops import KernelError
from whet.kernel.schedule import Illegal, attempt, read
from whet.kernel.text import parse

HEAD = """
x: input[f32, 8, 8]
y: output[f32, 8, 8]
t: memory[f32, 8, 8]
"""
CHAIN = """
for i in range(8):
    for j in range(8):
        t[i, j] = x[i, j] + 1
for a in range(8):
    for b in range(8):
        y[a, b] = t[a, b] * 2
"""
SHIFTED = """
for i in range(8):
    for j in range(8):
        t[i, j] = x[i, j]
for a in range(8):
    for b in range(8):
        y[a, b] = t[7 - a, b]
"""
SCAN = """
for i in range(7):
    for j in range(8):
        y[i + 1, j] = y[i, j] + x[i, j]
"""
WAVE = """
for i in range(7):
    for j in range(7):
        y[i + 1, j] = y[i, j + 1] + x[i, j]
"""
SUM = """
for a in range(8):
    y[a, 0] = 0
for i in range(8):
    for j in range(8):
        y[i, 0] += x[i, j]
"""
OVER = """
for i in range(8):
    for j in range(8):
        t[i, j] = y[i, j]
for c in range(8):
    for d in range(8):
        y[c, d] = x[c, d]
for a in range(8):
    for b in range(8):
        y[a, b] = t[a, b]
"""


@pytest.mark.parametrize(
    ("body", "move", "said"),
    [
        (CHAIN, "split(k, 4)", "missing (loop k)"),
        (CHAIN, "inline(z)", "missing (buffer z)"),
        (CHAIN, "split(i, 8)", "extent (loop i, extent 8, factor 8)"),
        (CHAIN, "reorder((i, a))", "perfect (loop i)"),
        (CHAIN, "collapse(i, b)", "perfect (loop i)"),
        (CHAIN, "vectorize(i)", "perfect (loop j)"),
        (CHAIN, "join(a, i)", "order (loop a)"),
        (CHAIN, "keep(x, register)", "role (buffer x)"),
        (CHAIN, "inline(y)", "role (buffer y)"),
        (CHAIN, "layout(x, '0:8 1:7')", "layout (buffer x)"),  # one place too few
        (CHAIN, "layout(x, '0:8 1:8 by 7 1')", "layout (buffer x)"),  # rows overlap
        (CHAIN, "compute_at(t, i)", "uses (loop i, buffer t, used 1)"),
        (CHAIN, "stage(x, b)", "uses (loop b, buffer x, used 0)"),
        (SHIFTED, "join(i, a)", "dependence (loop a, buffer t)"),
        (SCAN, "parallelize(i)", "dependence (loop i, buffer y)"),
        (SCAN, "vectorize(i)", "perfect (loop j)"),
        (WAVE, "reorder((j, i))", "dependence (loop j, buffer y)"),
        (SUM, "parallelize(j)", "dependence (loop j, buffer y)"),
        (SUM, "split_reduction(i)", "algebra (loop i, buffer y)"),
        (OVER, "inline(t)", "order (buffer y)"),
        (OVER, "compute_at(t, a)", "order (loop a, buffer y)"),
    ],
)
def test_a_refusal_says_what_stands_in_the_way(body: str, move: str, said: str) -> None:
    k = parse(HEAD + body)
    (made,) = read(move)
    refused = attempt(k, made)
    assert isinstance(refused, Illegal)
    assert str(refused) == f"{made}: {said}"
    assert refused.kind == said.partition(" ")[0]


@pytest.mark.parametrize(
    "move", ["parallelize(i)", "parallelize(j)", "reorder((j, i))", "vectorize(j)"]
)
def test_what_is_independent_is_not_refused(move: str) -> None:
    assert not isinstance(attempt(parse(HEAD + CHAIN), read(move)[0]), Illegal)
    if "i)" not in move:
        assert not isinstance(attempt(parse(HEAD + SCAN), read(move)[0]), Illegal)


DIGITS = """
for i in range(16):
    for j in range(4):
        y[i // 2, j + {step} * (i % 2)] = x[i // 2, j]
"""


def test_a_loop_over_digits_is_independent_where_each_of_them_is() -> None:
    (made,) = read("parallelize(i)")
    assert not isinstance(attempt(parse(HEAD + DIGITS.format(step=4)), made), Illegal)
    refused = attempt(parse(HEAD + DIGITS.format(step=3)), made)  # columns 3 are written twice
    assert isinstance(refused, Illegal)
    assert refused.kind == "dependence"
    lost = parse(HEAD + DIGITS.format(step=4).replace("y[i // 2,", "y[i // 4,"))
    assert isinstance(attempt(lost, made), Illegal)  # two rows in one


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("for i in range(8):\n    y[i, z] = 0", "z is no variable here"),
        ("for i in range(8):\n    y[i] = 0", "y is indexed with another rank"),
        ("for i in range(8):\n    x[i, i] = 0", "an input is written"),
        ("for i in range(8):\n    for i in range(8):\n        y[i, i] = 0", "one variable"),
        ("y[0, 0] = q[0]", "no buffer is called q"),
        ("for i in upwards(8):\n    y[i, i] = 0", "not a kernel"),
        ("y[0, 0] =", "not a kernel"),
    ],
)
def test_a_kernel_that_is_not_well_formed(body: str, said: str) -> None:
    with pytest.raises(KernelError, match=said):
        parse(HEAD + body)


@pytest.mark.parametrize(("old", "new", "kind"), [
    ("p[0] = exp((x[i, j] if j <= i else -inf) - s[0])", "p[0] = exp(x[i, j] - s[0])", "uses"),
    ("z[i] += p[0] * v[j]", "z[i] += v[j]", "uses"),
    ("z[i] *= c[0]", "z[i] *= p[0]", "uses"),
    ("b[0] = m[i]", "b[0] = 0", "uses"),
    ("s[0] = (0 if m[i] == -inf else m[i])", "s[0] = m[i]", "uses"),
    ("m[i] = max(m[i], (x[i, j] if j <= i else -inf))", "m[i] = max(m[i], x[i, j])", "uses"),
    ("(x[i, j] if j <= i else -inf) - s[0]", "(x[i, j] if j <= 3 else -inf) - s[0]", "uses"),
    ("y[i] = z[i]", "y[i] = z[i] + c[0]", "uses"),
])  # fmt: skip
def test_a_loop_ends_only_where_nothing_is_left_to_do(old: str, new: str, kind: str) -> None:
    """Whatever else an iteration leaves behind, or scales by, keeps the loop as long as it is."""
    from tests.unit.kernel.test_schedule import shown
    from whet.kernel.schedule import apply, moves
    from whet.kernel.text import parse

    before, move, _ = shown(moves()["cease"])
    text = str(before)
    assert text.count(old) == 1
    refused = apply(parse(text.replace(old, new)), (move,))
    assert isinstance(refused, Illegal)
    assert refused.kind == kind, refused
