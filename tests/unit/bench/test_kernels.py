"""The suite of products: its list, and one of each kind measured."""

from __future__ import annotations

import torch

from bench.kernels import SHAPES, page, prepared, ratio, timed
from whet.machine import Machine
from whet.machine.target import Target
from whet.store import Store


def test_sixty_shapes_in_five_classes():
    assert list(SHAPES) == ["square", "tall", "flat", "batched", "row"]
    assert [len(set(s)) for s in SHAPES.values()] == [12] * 5
    assert all(m == n == k for _, m, n, k in SHAPES["square"])
    assert all(m >= 4 * n for _, m, n, _ in SHAPES["tall"])
    assert all(1 < m <= 200 and n >= 2 * m for _, m, n, _ in SHAPES["flat"])
    assert all(b > 1 for b, *_ in SHAPES["batched"])
    assert all(m == 1 for _, m, _, _ in SHAPES["row"])


def test_a_product_of_each_system():
    target = Target.of(Machine.detect(), 1)
    with torch.no_grad():
        case = prepared((1, 24, 32, 16), target, Store.memory())
        found = timed(case.calls, 0.0, 3)
    assert list(found) == ["whet", "onednn", "mkl"]
    records = [
        {"model": "square 24x32x16", "system": s, "median_s": t, "spread": e, "gflops": 1.0,
         "schedule": case.schedule}
        for s, (t, e) in found.items()
    ]  # fmt: skip
    text = page({"records": records, "threads": 1})
    assert f"square   geometric mean {ratio(found):.3f}" in text
