"""Footprints and traffic of nests whose numbers can be counted by hand."""

from __future__ import annotations

import itertools

import pytest

from whet.kernel.text import parse
from whet.kernel.traffic import LINE, nests

MATMUL = """
a: input[f32, 64, 128]
b: input[f32, 128, 32]
c: output[f32, 64, 32]
for i in range(64):
    for j in range(32):
        for k in range(128):
            c[i, j] += a[i, k] * b[k, j]
"""
CONV = """
x: input[f32, 1, 34]
w: input[f32, 3]
y: output[f32, 32]
for i in range(32):
    for r in range(3):
        y[i] += x[0, i + r] * w[r]
"""


def inner(nest, *path):
    for k in path:
        nest = nest.inner[k]
    return nest


def test_strides_are_read_off_addresses():
    leaf = inner(nests(parse(MATMUL)), 0, 0, 0, 0)
    found = {t.buffer.name: dict(t.strides) for t in leaf.touches}
    assert found == {"a": {"i": 128, "k": 1}, "b": {"k": 32, "j": 1}, "c": {"i": 32, "j": 1}}
    assert [t.write for t in leaf.touches] == [False, False, True]


def test_the_whole_touches_everything_once():
    whole = nests(parse(MATMUL))
    assert whole.footprint == 4 * (64 * 128 + 128 * 32 + 64 * 32)


def test_a_row():
    """One i and one j: a row of a, a column of b (a line each), one element of c."""
    row = inner(nests(parse(MATMUL)), 0, 0, 0)
    assert row.footprint == 4 * 128 + 128 * LINE + 4


def test_windows_overlap():
    whole = nests(parse(CONV))
    x = next(t for t in whole.all_touches if t.buffer.name == "x")
    assert x.footprint({"i": 32, "r": 3}) == 4 * 34
    assert x.footprint({"r": 3}) == 4 * 3


def test_traffic_without_a_cache_that_holds_anything():
    """Where all fits, all is loaded once; where only a row fits, b comes again for each i."""
    whole = nests(parse(MATMUL))
    assert whole.traffic(1 << 20) == whole.footprint
    b = 4 * 128 * 32
    small = whole.traffic(b + 4 * 128 + 4 * 32 + 512)
    assert small == 64 * (b + 4 * 128 + 4 * 32)
    sizes = [whole.traffic(1 << k) for k in range(6, 20)]
    assert all(b <= a for a, b in itertools.pairwise(sizes))


def test_tiling_saves_traffic():
    tiled = parse("""
        a: input[f32, 512, 512]
        b: input[f32, 512, 512]
        c: output[f32, 512, 512]
        for i in range(8):
            for j in range(8):
                for k in range(8):
                    for ii in range(64):
                        for jj in range(64):
                            for kk in range(64):
                                c[64*i + ii, 64*j + jj] += a[64*i + ii, 64*k + kk] \
                                    * b[64*k + kk, 64*j + jj]
    """)
    plain = parse("""
        a: input[f32, 512, 512]
        b: input[f32, 512, 512]
        c: output[f32, 512, 512]
        for i in range(512):
            for j in range(512):
                for k in range(512):
                    c[i, j] += a[i, k] * b[k, j]
    """)
    assert nests(tiled).footprint == nests(plain).footprint
    assert nests(tiled).traffic(1 << 16) < nests(plain).traffic(1 << 16) / 10


def test_threads_share_what_a_parallel_loop_touches():
    text = "x: input[f32, 4, 4096]\ny: output[f32, 4, 4096]\nfor i in {}(4):\n"
    text += (
        "    for r in range(9):\n        for j in range(4096):\n            y[i, j] += x[i, j]\n"
    )
    serial, parallel = (nests(parse(text.format(kind))) for kind in ("range", "parallel"))
    assert serial.traffic(1 << 15) == parallel.traffic(1 << 15, threads=2)
    assert parallel.traffic(1 << 16, threads=2) == parallel.footprint


def test_registers_are_no_memory():
    kernel = parse("""
        x: input[f32, 64]
        y: output[f32, 1]
        t: register[f32, 16]
        for i in range(4):
            for j in vector(16):
                t[j] += x[16*i + j]
        for k in range(16):
            y[0] += t[k]
    """)
    assert nests(kernel).footprint == 4 * 64 + 4


@pytest.mark.parametrize("extent", ["minimum(16, 100 - 16*o)", "16"])
def test_tails_count_with_their_largest_extent(extent):
    kernel = parse(f"""
        x: output[f32, 112]
        for o in range(7):
            for i in range({extent}):
                x[16*o + i] = 0
    """)
    assert inner(nests(kernel), 0, 0).trips == 16
