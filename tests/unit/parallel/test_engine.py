"""The engine: streams, sharing of links, slowdown, and states that come again."""

from __future__ import annotations

import pytest

from whet.machine import Mesh, topology
from whet.parallel.engine import EMPTY, Memo, StuckError, advance
from whet.parallel.price import FULL, Op, Priced
from whet.parallel.symmetry import classes

HALF = ((FULL // 2, FULL // 2),)
NONE = ((FULL, FULL),)


def op(name, ticks, stream=0, *, after=(), drain=(), claims=(), kernel=None, fenced=None):
    kernel = stream == 0 if kernel is None else kernel
    fenced = stream == 0 if fenced is None else fenced
    work = ticks * FULL
    return Op(
        (stream,), work, tuple(after), tuple(drain), fenced, kernel, (0,), tuple(claims), name
    )


def run(*ops, slowdown=NONE, state=EMPTY, drain=True):
    found = {}
    ticks, busy, rest = advance(
        state, ops, slowdown, drain=drain, log=lambda o, a, b: found.update({o.name: (a, b)})
    )
    return ticks, busy, rest, found


def test_a_stream_runs_in_order_and_streams_run_side_by_side():
    ticks, busy, _, found = run(op("a", 10), op("b", 10), op("c", 15, stream=1))
    assert (ticks, busy) == (20, 20)
    assert found == {"a": (0, 10), "b": (10, 20), "c": (0, 15)}


def test_an_op_waits_for_what_it_needs():
    *_, found = run(op("move", 10, stream=1), op("a", 5), op("b", 5, after=(0,)))
    assert found["b"] == (10, 15)


def test_two_on_a_link_get_half_of_it_each():
    link = ((1, 0),)
    *_, found = run(op("a", 10, 1, claims=link), op("b", 30, 2, claims=link))
    assert found == {"a": (0, 20), "b": (0, 40)}


def test_kernels_and_collectives_slow_each_other_down():
    """Both at half speed until the shorter is done, the rest at full speed."""
    *_, found = run(op("kernel", 10), op("move", 20, 1), slowdown=HALF)
    assert found == {"kernel": (0, 20), "move": (0, 30)}


def test_what_outlasts_a_segment_goes_on_in_the_next():
    ticks, _, rest, _ = run(op("kernel", 10), op("move", 25, 1), drain=False)
    assert ticks == 10
    assert [o.work for o in rest] == [15 * FULL]
    ticks, _, rest, found = run(op("next", 5, drain=(1,)), state=rest, drain=False)
    assert found["next"] == (15, 20)
    assert rest == EMPTY


def test_a_circle_is_an_error():
    with pytest.raises(StuckError, match="wait for each other"):
        run(op("a", 1, 1, after=(1,)), op("b", 1, 0, after=(0,)))


def test_equal_blocks_are_run_until_their_state_repeats():
    """A thousand blocks whose collectives lag behind: a few are run, and all are counted."""
    ops = (op("kernel", 10), op("move", 9, 1, after=(0,)))
    segment = Priced(0, ops, (0,), (0,), ())
    memo = Memo(NONE)
    ticks, busy = memo.run([(segment, 1000)])
    assert (ticks, busy) == (10 * 1000 + 9, 10 * 1000)
    assert memo.misses < 5


def test_classes_of_a_mixed_mesh():
    of = topology("a100-t4")
    mesh = Mesh.of((("data", 4), ("tensor", 4)))
    found = classes(of, mesh, (), (("data",), ("tensor",)))
    assert found.count == 2
    assert dict(found.groups) == {("data",): ((0, 1),), ("tensor",): ((0,), (1,))}


def test_classes_are_refined_by_the_company_they_keep():
    """One group has a slow member: its fast members are not like those of the other groups."""
    of = topology("a100-t4")
    mesh = Mesh((("data", 3), ("tensor", 2)), (0, 1, 2, 3, 4, 8))
    found = classes(of, mesh, (), (("tensor",),))
    assert found.count == 3
    assert found.of == (0, 0, 0, 0, 1, 2)


def test_equal_devices_are_one_class():
    found = classes(topology("h100x8:4"), Mesh.of((("data", 32),)), (), (("data",),))
    assert found.count == 1
