"""The memory plan: values that live at once lie apart, nobody overwrites what is still read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.unit.run.making import packed, plain
from whet.backend.cut import cut
from whet.backend.naive import naive
from whet.backend.piece import Body, Library, Piece, Value
from whet.capture import zoo
from whet.capture.torch import capture
from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.run.memory import NEAR, Plan, Storage, plan


def vector(n: int) -> Node:
    return leaf("input", "x", TensorType(DType.f32, (n,)))


def chain(*nodes: Node) -> Body:
    """Nodes one after another, each over its operands' dense values."""
    pieces = tuple(naive(n, tuple(map(Value, n.operands)), Value(n)) for n in nodes)
    (x,) = {a for n in nodes for a in n.operands if a.is_leaf}
    return Body((Value(x),), pieces, (Value(nodes[-1]),))


def alive(body: Body, planned: Plan) -> Iterator[list[tuple[Storage, set[Value]]]]:
    """Storages in use at each step, with the values in them that are still read or just made."""
    last: dict[Value, int] = {}
    for k, piece in enumerate(body.pieces):
        for v in (*piece.operands, *piece.results):
            if isinstance(v, Value):
                last[v] = k
    first = {v: k for k, p in reversed(list(enumerate(body.pieces))) for v in p.results}
    for v in body.results:
        if isinstance(v, Value):
            last[v] = len(body.pieces)
    for k in range(len(body.pieces)):
        found: dict[int, tuple[Storage, set[Value]]] = {}
        for v, (storage, _) in planned.places.items():
            # What no piece makes as a whole, its parts make: from its storage's first step on.
            if first.get(v, storage.first) <= k <= last.get(v, -1):
                found.setdefault(id(storage), (storage, set()))[1].add(v)
        yield list(found.values())


def ranges(planned: Plan, values: set[Value]) -> Iterator[tuple[int, int, Value]]:
    for v in values:
        storage, offset = planned.places[v]
        if storage.kind == "arena":
            yield storage.offset + offset, storage.offset + offset + v.bytes, v


def check(body: Body) -> Plan:
    """No two values that live at one step overlap, unless they were meant to."""
    planned = plan(body)
    for step, found in enumerate(alive(body, planned)):
        spans = [(s.offset, s.offset + s.bytes) for s, _ in found if s.kind == "arena"]
        spans.sort()
        for (_, stop), (start, _) in itertools.pairwise(spans):
            assert stop <= start, f"step {step}"
    assert planned.bound <= planned.peak
    return planned


def test_a_chain_lives_in_one_place() -> None:
    x = vector(1000)
    a = apply("exp", x)
    b = apply("neg", a)
    c = apply("tanh", b)
    planned = check(chain(a, b, c))
    # a and b are one storage of 4,000 bytes, rounded to cache lines; c is the output itself.
    assert planned.arena == 4032 == planned.bound
    assert planned.places[Value(a)] == planned.places[Value(b)]
    assert planned.places[Value(c)][0].kind == "output"


def test_what_is_read_later_is_not_overwritten() -> None:
    x = vector(64)
    a = apply("exp", x)
    b = apply("neg", a)
    c = apply("mul", a, b)
    planned = check(chain(a, b, c))
    assert planned.places[Value(a)] != planned.places[Value(b)]


def test_a_reduction_is_not_computed_in_place() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (8, 8)))
    a = apply("exp", x)
    b = apply("permute", a, dims=(1, 0))
    c = apply("neg", b)
    planned = check(chain(a, b, c))
    assert planned.places[Value(a)] != planned.places[Value(b)]


def test_the_same_result_twice_is_copied() -> None:
    a = apply("exp", vector(8))
    body = chain(a)
    planned = plan(Body(body.inputs, body.pieces, (*body.results, *body.results)))
    assert planned.copies == ((1, Value(a)),)


def test_an_input_as_result_is_copied() -> None:
    body = chain(apply("exp", vector(8)))
    planned = plan(Body(body.inputs, body.pieces, (*body.results, *body.inputs)))
    assert planned.copies == ((1, body.inputs[0]),)


@pytest.mark.parametrize("name", ["squeezenet", "bert_base", "nasnet_a", "lstm", "memchain"])
def test_models_of_the_zoo(name: str) -> None:
    model = zoo.load(name, scale="small")
    graph: Graph = capture(model.module, model.inputs).graph
    body = cut(graph, packed)
    planned = check(body)
    for p in body.pieces:
        assert isinstance(p, Piece)
        own = isinstance(p.call, Library) and p.call.gives
        kinds = {planned.places[v][0].kind for v in p.results}
        assert kinds <= ({"given"} if own else {"arena", "output"})


@pytest.mark.parametrize("name", zoo.names())
def test_no_plan_takes_much_more_than_lives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.run.memory.SMALL", 0)
    model = zoo.load(name, scale="small")
    planned = plan(cut(capture(model.module, model.inputs).graph, packed))
    assert planned.bound <= planned.peak <= NEAR * planned.bound


def test_operands_of_a_concatenation_are_written_in_place() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (4, 3)))
    a, b = apply("exp", x), apply("neg", x)
    whole = apply("concat", a, b, axis=1)
    body = cut(Graph((x,), (apply("tanh", whole),)), plain)
    assert [n.op for p in body.pieces for n in p.nodes] == ["exp", "neg", "tanh"]
    assert {v.strides for p in body.pieces[:2] for v in p.results} == {(6, 1)}
    planned = check(body)
    places = [planned.places[p.results[0]] for p in body.pieces[:2]]
    assert [offset for _, offset in places] == [0, 12]
