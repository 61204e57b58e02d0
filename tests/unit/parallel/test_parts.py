"""Where parts lie: boxes of flat ranges cover each element once."""

from __future__ import annotations

import itertools
import math
import random

import torch

from whet.parallel.parts import boxes, rows, starts
from whet.parallel.sharding import Sharding
from whet.run.parallel.exchange import part

MESH = (("micro", 1), ("data", 2), ("tensor", 2))
CASES = [
    ((6, 8), ((1,), (1,)), ()),
    ((6, 8), ((1,), (1,)), ((0, 1, "data"), (1, 1, "tensor"))),
    ((24, 4), ((1, 4, 8), (1,)), ((0, 4, "tensor"),)),
    ((24, 4), ((1, 2), (1, 2)), ((0, 1, "data"), (1, 1, "tensor"))),
    ((8,), ((1,),), ((0, 1, "data"), (0, 1, "tensor"))),
    ((), (), ()),
]


def test_boxes_are_the_elements_of_a_flat_range():
    draw = random.Random(0)
    for shape, marks, cuts in CASES:
        whole = torch.arange(math.prod(shape)).reshape(shape)
        rows_ = rows(shape, marks, Sharding(cuts), MESH)
        for d, t in itertools.product(range(2), range(2)):
            first = starts(rows_, {"micro": 0, "data": d, "tensor": t}, MESH)
            flat = part(whole, rows_, first).reshape(-1)
            for _ in range(12):
                low = draw.randint(0, flat.numel() - 1)
                high = draw.randint(low + 1, flat.numel())
                got = torch.full((high - low,), -1)
                for box in boxes(rows_, first, len(shape), low, high):
                    there = whole
                    for k, (a, n) in enumerate(zip(box.start, box.shape, strict=True)):
                        there = there.narrow(k, a, n)
                    count = math.prod(box.shape)
                    assert bool((got[box.offset : box.offset + count] == -1).all())
                    got[box.offset : box.offset + count] = there.reshape(-1)
                assert torch.equal(got, flat[low:high])
