"""How one sharding becomes another."""

from __future__ import annotations

import pytest

from whet.parallel.sharding import WHOLE, Sharding, ShardingError, reshard

MESH = (("a", 2), ("b", 4))


def cut(*cuts, partial=()):
    return Sharding(tuple(cuts), tuple(partial))


CASES = [
    (cut((0, 1, "a")), WHOLE, [("all_gather", 800)]),
    (WHOLE, cut((0, 1, "a")), [("slice", 800)]),
    (cut(partial=[("b", "sum")]), WHOLE, [("all_reduce", 800)]),
    (cut(partial=[("b", "max")]), WHOLE, [("all_reduce", 800)]),
    (cut(partial=[("b", "sum")]), cut((1, 1, "b")), [("reduce_scatter", 800)]),
    (cut((0, 1, "b")), cut((1, 1, "b")), [("all_to_all", 200)]),
    (cut((0, 1, "a"), partial=[("b", "sum")]), cut((0, 1, "a")), [("all_reduce", 400)]),
    (cut((0, 1, "a"), (0, 1, "b")), cut((0, 1, "a")), [("all_gather", 400)]),
    (cut((0, 1, "a"), (0, 1, "b")), cut((0, 1, "b")),
     [("all_gather", 400), ("all_gather", 800), ("slice", 800)]),
    (cut(partial=[("a", "sum"), ("b", "sum")]), WHOLE, [("all_reduce", 800)]),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target", "moves"), CASES)
def test_moves(source, target, moves):
    assert [(m.kind, m.bytes) for m in reshard(source, target, 800, MESH)] == moves


def test_nothing_becomes_a_part_of_a_maximum():
    with pytest.raises(ShardingError, match="does not become parts of a max"):
        reshard(WHOLE, cut(partial=[("a", "max")]), 800, MESH)


def test_a_sum_is_dropped_on_all_devices_but_one():
    (move,) = reshard(WHOLE, cut(partial=[("a", "sum")]), 800, MESH)
    assert move.kind == "drop"
