"""Staging: tiles of an accumulator, packed operands, and what may not be staged."""

from __future__ import annotations

import numpy as np

from whet.kernel.interpret import run
from whet.kernel.loops import Kernel
from whet.kernel.schedule import Illegal, apply, read
from whet.kernel.text import parse

PRODUCT = """
x: input[f32, 10, 12]
w: input[f32, 12, 9]
y: output[f32, 10, 9]
t: memory[f32, 10, 9]
for a in range(10):
    for b in range(9):
        t[a, b] = 0
for m in range(10):
    for n in range(9):
        for k in range(12):
            t[m, n] += x[m, k] * w[k, n]
for i in range(10):
    for j in range(9):
        y[i, j] = t[i, j] / (t[i, 0] + t[i, 8])
"""


def same(k: Kernel, made: Kernel | Illegal) -> Kernel:
    assert not isinstance(made, Illegal), made
    rng = np.random.default_rng(0)
    data = {b.name: rng.uniform(1, 2, b.sizes) for b in k.inputs}
    np.testing.assert_allclose(run(made, data)["y"], run(k, data)["y"], rtol=1e-12)
    return made


def test_a_tile_is_made_in_scratch_and_written_once() -> None:
    """Consumers need whole rows: sums are taken in a tile, which is copied out, never in."""
    k = parse(PRODUCT)
    tiled = """
    tile((a, b,), (5, 4,))
    tile((m, n,), (5, 4,))
    join(a_o, m_o)
    join(b_o, n_o)
    reorder((k, m_i, n_i,))
    stage(t, b_o)
    keep(t_s, register)
    """
    made = same(k, apply(k, read(tiled)))
    assert made.buffer("t_s").sizes == (5, 4)
    text = str(made)
    assert "= t_s[" in text
    assert "t_s[t_s_0, t_s_1] = t[" not in text


def test_a_sum_over_blocks_goes_in_and_out() -> None:
    k = parse(PRODUCT)
    made = same(k, apply(k, read("split(k, 4)\nreorder((k_o, m, n, k_i))\nstage(t, n)")))
    text = str(made)
    assert "t_s[0, 0] = t[m, n]" in text
    assert "t[m, n] = t_s[0, 0]" in text


def test_an_operand_is_packed() -> None:
    k = parse(PRODUCT)
    packed = """
    split(n, 4)
    reorder((n_o, m, k, n_i,))
    stage(w, n_o)
    layout(w_s, '0:12 1:4')
    parallelize(m)
    """
    made = same(k, apply(k, read(packed)))
    assert made.buffer("w_s").sizes == (12, 4)


def test_threads_do_not_copy_back_what_others_write() -> None:
    """The box of a gathered write is the whole buffer: copied back, it would undo others' work."""
    k = parse("""
    x: input[f32, 8]
    y: output[f32, 8]
    for i in parallel(8):
        y[7 - i] = x[7 - i]
    """)
    same(k, apply(k, read("stage(y, i)")))
    collapsed = parse("""
    x: input[f32, 4, 4]
    y: output[f32, 4, 4]
    for f in parallel(16):
        y[f // 4, f % 4] = x[f // 4, f % 4]
    """)
    same(collapsed, apply(collapsed, read("stage(x, f)")))
    other = parse("""
    x: input[f32, 4, 4]
    y: output[f32, 4, 4]
    for i in parallel(4):
        for j in range(4):
            y[i * i - i * i + i, j] = x[i, j]
    """)
    made = apply(other, read("stage(y, i)"))
    assert isinstance(made, Illegal) or same(other, made)
