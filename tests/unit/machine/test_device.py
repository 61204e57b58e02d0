"""What kernels get of a device: by form, and by measured points."""

from __future__ import annotations

import pytest

from whet.errors import WhetError
from whet.machine import Curve, Device, topology

A100 = topology("a100x8").device(0)


def tflops(device, m, n, k, batch=1, dtype="bfloat16"):
    flops = 2 * batch * m * n * k
    return flops / device.seconds("contraction", flops, 0, (batch, m, n, k), dtype) / 1e12


def test_large_contractions_reach_what_was_published():
    assert tflops(A100, 8192, 8192, 8192) == pytest.approx(257, rel=0.02)


def test_small_and_thin_ones_get_less():
    large = tflops(A100, 8192, 8192, 8192)
    assert tflops(A100, 512, 512, 512) < 0.6 * large
    assert tflops(A100, 8192, 8192, 64) < 0.6 * large
    assert tflops(A100, 8, 8192, 8192) < 0.1 * large


def test_a_wave_that_is_not_full_costs_a_whole_one():
    """One more tile than units: nearly half of the device idles in the second wave."""
    curve = Curve("contraction", 1.0, (128, 128))
    full, over = (1, 128 * 10, 128 * 10, 4096), (1, 128 * 10, 128 * 10 + 128, 4096)
    assert curve.share(full, 100) == 1.0
    assert 0.5 < curve.share(over, 100) < 0.9


def test_memory_bound_kernels_take_the_bandwidth():
    bytes = 2_039_000_000
    assert A100.seconds("stream", 0, bytes) == pytest.approx(1e-3 / 0.85 + A100.launch)
    assert A100.seconds("gather", 0, bytes) > A100.seconds("stream", 0, bytes)


def test_points_are_met_and_between_them_it_is_in_between():
    corners = tuple(((m, n, k), 1e9 * m * n * k) for m in (1, 4) for n in (1, 4) for k in (1, 4))
    curve = Curve("contraction", points=corners)
    assert curve.rate((1, 4, 4, 1)) == pytest.approx(16e9)
    assert curve.rate((1, 2, 2, 2)) == pytest.approx(8e9)
    assert curve.rate((1, 99, 99, 99)) == pytest.approx(64e9)  # no further than was measured


def test_points_that_are_no_grid_fall_back_on_the_nearest():
    curve = Curve("window", points=(((10, 4, 36), 1e9), ((100, 64, 576), 5e9)))
    assert curve.rate((1, 90, 30, 500)) == pytest.approx(5e9, rel=0.01)


def test_rounding():
    assert A100.rounded(1) == 512
    assert A100.rounded(512) == 512
    assert A100.rounded((10 << 20) + 1) == 12 << 20


def test_an_unknown_type_is_computed_in_float32_or_refused():
    assert A100.flops_s("float64") == A100.flops_s("float32")
    with pytest.raises(WhetError, match="no peak for bfloat16"):
        Device("bare", 1, 1.0, (("int8", 1.0),)).flops_s("bfloat16")
