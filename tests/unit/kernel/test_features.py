"""Features: what they say of a kernel, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel.features import NAMES, features
from whet.kernel.lower import lower
from whet.kernel.text import parse
from whet.machine import Cache, Machine, Rate

WIDE = Machine(
    "wide", "a processor", ("avx512f",), 512, 2, 2, 1 << 34,
    (Cache(1, 32 << 10, 2), Cache(2, 1 << 20, 2), Cache(3, 16 << 20, 1)),
)  # fmt: skip
SUM = """
    x: input[f32, 64, 1024]
    y: output[f32, 64]
    for i in {}(64):
        y[i] = 0
        for j in {}({}):
            y[i] += x[i, j]{}
"""


def seen(text, machine=WIDE, threads=None):
    return dict(zip(NAMES, features(parse(text), machine, threads), strict=True))


def test_every_kernel_has_the_same_finite_numbers():
    x = leaf("input", "x", TensorType(DType.f32, (7, 33)))
    for node in (apply("softmax", x, axis=1), apply("permute", x, dims=(1, 0)), apply("gelu", x)):
        found = features(lower(Graph((x,), (node,))), WIDE)
        assert found.shape == (len(NAMES),)
        assert np.isfinite(found).all()


def test_names_do_not_matter():
    text = SUM.format("parallel", "vector", 1024, "")
    other = text.replace("x", "left").replace("y", "right").replace("j", "inner")
    np.testing.assert_array_equal(features(parse(text), WIDE), features(parse(other), WIDE))


def test_what_marks_say():
    plain, marked = (
        seen(SUM.format("range", "range", 1024, "")),
        seen(SUM.format("parallel", "vector", 1024, "")),
    )
    assert (plain["vector share"], plain["serial share"]) == (0, 1)
    assert marked["vector share"] > 0.99
    assert marked["serial share"] == 0
    assert marked["fold share"] > 0.99
    assert marked["parallel turns"] == 6
    assert marked["seconds compute"] < plain["seconds compute"] - 3
    assert marked["operations"] == plain["operations"] == 16


def test_vectors_that_are_not_filled():
    assert seen(SUM.format("range", "vector", 1024, ""))["vector fill"] == 1
    assert seen(SUM.format("range", "vector", 17, ""))["vector fill"] == pytest.approx(17 / 32)


def test_costs_of_functions():
    cheap = seen(SUM.format("range", "range", 1024, " * 2"))
    dear = seen(SUM.format("range", "range", 1024, " * exp(x[i, j])"))
    assert cheap["costly share"] == 0
    assert dear["costly share"] > 0.8
    assert dear["seconds compute"] > cheap["seconds compute"]


def test_access_along_vectors():
    text = """
        x: input[f32, 64, 64]
        w: input[f32, 64]
        y: output[f32, 64, 64]
        for i in range(64):
            for j in vector(64):
                y[i, j] = x[j, i] * w[i]
    """
    found = seen(text)
    shares = [found[f"{k} share"] for k in ("contiguous", "gather")]
    assert shares[0] == pytest.approx(shares[1])
    assert 0 < found["broadcast share"] < shares[0]  # it is loaded once for all lanes


def test_machines_are_features():
    text = SUM.format("parallel", "vector", 1024, "")
    narrow = Machine("n", "a processor", ("avx2",), 256, 8, 8, 1 << 34)
    assert seen(text)["vector bytes"] == seen(text, narrow)["vector bytes"] + 1
    assert seen(text, narrow)["threads"] == 3
    assert seen(text, narrow)["parallel balance"] == 1
    fast = Machine(
        "f", "a processor", ("avx512f",), 512, 2, 2, 1 << 34,
        rates=(Rate("read", "DRAM", 2, 1e9), Rate("flops", "float32", 2, 1e13)),
    )  # fmt: skip
    assert seen(text, fast)["bound by memory"] == 1
    assert seen(text, fast)["balance"] > seen(text)["balance"]


def test_pressure():
    text = """
        x: input[f32, 512]
        y: output[f32, 512]
        t: register[f32, {0}]
        for j in vector({0}):
            t[j] = x[j]
        for j2 in vector({0}):
            y[j2] = t[j2]
    """
    assert seen(text.format(128))["accumulator pressure"] == 0.25
    assert seen(text.format(512))["accumulator pressure"] == 1
