"""The e-graph is held against a closure computed by going round until nothing changes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from whet.errors import GraphError
from whet.ir.graph import Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.rewrite.egraph import EGraph

Pairs = Sequence[tuple[Node, Node]]


def _leaf(name: str, *shape: int) -> Node:
    return leaf("input", name, TensorType(DType.f32, shape or (4,)))


def _closure(nodes: Sequence[Node], equal: Pairs) -> dict[Node, int]:
    cls = {n: k for k, n in enumerate(nodes)}

    def merge(a: Node, b: Node) -> bool:
        old, new = cls[a], cls[b]
        for n in nodes:
            if cls[n] == old:
                cls[n] = new
        return old != new

    for a, b in equal:
        merge(a, b)
    while True:
        seen: dict[object, Node] = {}
        inner = [n for n in nodes if n.args]
        keys = [(n.op, n.attrs, tuple(cls[a] for a in n.operands)) for n in inner]
        if not any(merge(n, seen.setdefault(k, n)) for n, k in zip(inner, keys, strict=True)):
            break
    return cls


def _random(seed: int) -> tuple[EGraph, list[Node], list[tuple[Node, Node]]]:
    draw = random.Random(seed)
    pool = [_leaf(n) for n in "abcd"]

    def grow() -> None:
        if draw.random() < 0.5:
            pool.append(apply(draw.choice(["neg", "exp"]), draw.choice(pool)))
        else:
            op = draw.choice(["add", "mul"])
            pool.append(apply(op, draw.choice(pool), draw.choice(pool)))

    for _ in range(25):
        grow()
    classes, equal = EGraph(pool), []
    for k in range(draw.randrange(1, 12)):
        equal.append((draw.choice(pool), draw.choice(pool)))
        classes.union(*equal[-1], k)
        if draw.random() < 0.5:
            grow()
            classes.add(pool[-1])
    return classes, list(dict.fromkeys(pool)), equal


@pytest.mark.parametrize("seed", range(40))
def test_equal_is_what_congruence_closure_says(seed: int) -> None:
    classes, pool, equal = _random(seed)
    want = _closure(pool, equal)
    for a in pool:
        for b in pool:
            assert classes.equal(a, b) == (want[a] == want[b])


@pytest.mark.parametrize("seed", range(40))
def test_what_explains_an_equality_is_enough_for_it(seed: int) -> None:
    classes, pool, equal = _random(seed)
    draw = random.Random(seed)
    for _ in range(30):
        a, b = draw.choice(pool), draw.choice(pool)
        if classes.equal(a, b):
            why = [equal[k] for k in classes.explain(a, b)]
            assert (cls := _closure(pool, why))[a] == cls[b]
        else:
            with pytest.raises(GraphError, match="not known to be equal"):
                classes.explain(a, b)


@pytest.mark.parametrize("seed", range(40))
def test_equal_ways_to_compute_a_class_are_one_enode(seed: int) -> None:
    classes, _, _ = _random(seed)
    keys = [(e.node.op, e.node.attrs, e.args or e.node.type) for _, e in classes.enodes()]
    assert len(set(keys)) == len(keys) == len(classes)


def test_a_class_has_one_type() -> None:
    with pytest.raises(GraphError, match="one type"):
        EGraph().union(_leaf("x"), _leaf("y", 5), 0)


def test_the_representative_is_the_term_that_was_there_first() -> None:
    x, y, z = map(_leaf, "xyz")
    classes = EGraph((x, y, z))
    classes.union(z, y, 0)
    classes.union(y, x, 1)
    assert {classes.find(n) for n in (x, y, z)} == {x}


def test_what_changed_is_told_once_with_its_users() -> None:
    x, y = _leaf("x"), _leaf("y")
    high = apply("exp", apply("neg", y))
    classes = EGraph((x, high))
    assert classes.take_touched(0) == {x, y, high, *high.operands}
    classes.union(x, y, 0)
    assert classes.take_touched(1) == {x, *high.operands}
    assert classes.take_touched(1) == set()


def test_a_class_may_hold_itself() -> None:
    x = _leaf("x")
    twice = apply("neg", apply("neg", x))
    classes = EGraph((twice,))
    classes.union(x, twice, 0)
    assert classes.add(apply("neg", twice)) == apply("neg", x)
    assert len(classes) == 3  # x, and the two signs
