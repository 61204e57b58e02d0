"""What saturation and extraction find is accepted by a check that searches nothing; what was
tampered with is not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.rewrite.certificate import CertificateError, misfit, verify_certificate
from whet.rewrite.columns import Columns, Offer
from whet.rewrite.conjecture import Conjecture, Form, Statement
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.egraph import EGraph
from whet.rewrite.extract import extract
from whet.rewrite.library import library
from whet.rewrite.match import Match
from whet.rewrite.prove import Prover
from whet.rewrite.region import regions
from whet.rewrite.rule import Rule
from whet.rewrite.solve import Pricing, Solution, saturation, solve
from whet.search import Budget, Cost, Source

PROVER = Prover()
RULES = {n: CONJECTURES[n] for n in (
    "hoist linear over select", "merge linears", "tanh of slice", "fold scale after linear",
    "minus minus",
)}  # fmt: skip


def _leaf(kind: str, name: str, *shape: int) -> Node:
    return leaf(kind, name, TensorType(DType.f32, shape))


def _kernels(cluster: Graph) -> list[Offer]:
    """A second for a product, a tenth for anything else but views; one operator a kernel."""
    working = [
        n for n in cluster.nodes if not n.is_leaf and n.op not in ("slice", "select", "full")
    ]
    if len(working) > 1:
        return []
    seconds = sum(1.0 if n.op == "linear" else 0.1 for n in working)
    return [Offer(Cost(seconds, 0.0, Source.PREDICTED))]


def _whole(graph: Graph) -> Cost:
    cost = Cost(0.0, 0.0, Source.PREDICTED)
    for n in graph.nodes:
        if not n.is_leaf and any(a.op != "parameter" for a in n.operands):
            cost = cost + Cost({"linear": 1.0, "slice": 0.0, "select": 0.0}.get(n.op, 0.1),
                               0.0, Source.PREDICTED)  # fmt: skip
    return cost


PRICING = Pricing(_kernels, _whole)


def _recurrence(blocks: int = 1, steps: int = 3) -> Graph:
    """Blocks of steps that multiply their part of a sequence by one weight, their state by another;
    each block with weights of its own."""
    x = first = _leaf("input", "x", steps, 2, 4)
    for b in range(blocks):
        w, u = _leaf("parameter", f"w{b}", 4, 4), _leaf("parameter", f"u{b}", 4, 4)
        h, states = None, []
        for t in range(steps):
            z = apply("linear", apply("select", x, axis=0, index=t), w, None)
            h = apply("tanh", z if h is None else apply("add", z, apply("linear", h, u, None)))
            states.append(h)
        x = apply("stack", *states, axis=0)
    return Graph((first,), (x,))


def _solved(graph: Graph, **more: Any) -> Solution:
    return solve(graph, RULES, PRICING, PROVER, Budget(), **more)


def test_a_hoist_is_found_and_checks_out() -> None:
    graph = _recurrence()
    found = _solved(graph)
    assert found.seconds("after") < found.seconds("before")
    products = [n for n in found.graph.nodes if n.op == "linear" and n.args[0].op == "input"]
    assert len(products) == 1
    assert verify_certificate(graph, map(str, found.lines), Prover()) == found.graph


def test_repeated_blocks_are_solved_once() -> None:
    graph = _recurrence(blocks=4)
    assert [len(r.places) for r in regions(graph)] == [4]
    found = _solved(graph)
    (line,) = found.lines
    assert len(line.at) == 4
    assert verify_certificate(graph, [str(line)], PROVER) == found.graph
    assert found.seconds("after") == pytest.approx(4 * _solved(_recurrence()).seconds("after"))


def test_what_is_no_parameter_ahead_of_time_stays_in_the_program() -> None:
    x, w, s = _leaf("input", "x", 2, 4), _leaf("parameter", "w", 4, 4), _leaf("parameter", "s")
    graph = Graph((x,), (apply("mul", apply("linear", x, w, None), s),))
    assert _solved(graph).seconds("after") == 1.0  # the scale goes into the weight
    trained = _solved(graph, known=lambda leaf: False)
    assert trained.seconds("after") == trained.seconds("before") == 1.1


def test_a_circle_of_equal_classes_is_no_program() -> None:
    x = _leaf("input", "x", 4)
    graph = Graph((x,), (apply("neg", apply("neg", apply("exp", x))),))
    assert _solved(graph).graph.outputs == (apply("exp", x),)


def test_generated_rules_go_on_from_what_the_others_found() -> None:
    """A hoist by hand, then what only a generated rule, read either way, makes one of."""
    graph = _recurrence(steps=2)
    (states,) = graph.outputs
    parts = [apply("relu", states), apply("relu", graph.inputs[0])]
    whole = Graph(graph.inputs, (apply("exp", apply("concat", *parts, axis=2)),))
    beside = {
        n: c for n, c in library().items() if "relu(concat)" in n and "concat(relu, relu)" in n
    }
    assert beside
    alone, both = _solved(whole), _solved(whole, beside=beside)
    assert both.seconds("first") == alone.seconds("after") < both.seconds("before")
    assert both.seconds("after") == pytest.approx(alone.seconds("after") - 0.1)
    used = {m.rule.name for r in both.regions for m in r.equations}
    assert used & beside.keys()
    assert used & RULES.keys()
    assert verify_certificate(whole, map(str, both.lines), Prover()) == both.graph
    (region,) = both.regions
    again = saturation(region.region.graph, RULES, PROVER, beside=beside)
    again.replay(region.journal)
    assert len(again.classes) == region.nodes


Change = Callable[[dict[str, Any]], None]


def _set(*path: Any, to: Any) -> Change:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return change


def _drop(key: str) -> Change:
    return lambda data: data[key].pop()


TAMPERED: dict[str, Change] = {
    "another start": _set("before", to="0" * 32),
    "another end": _set("after", to="0" * 32),
    "no places": _set("at", to=[]),
    "a place that is none": _set("at", 0, "x0", to="0" * 32),
    "another weight": lambda d: d["at"][0].update(p0=d["at"][0]["p1"]),
    "a leaf left out": lambda d: d["at"][0].pop("p0"),
    "an equation left out": _drop("places"),
    "no equations": _set("places", to=[]),
    "another tensor": lambda d: d["places"][0]["tensors"].update(x=d["places"][0]["tensors"]["w"]),
    "an unknown tensor": lambda d: d["places"][0]["tensors"].update(x="0" * 32),
    "another index": lambda d: d["places"][0]["scope"].update(t=2),
    "an axis that is none": lambda d: d["places"][0]["scope"].update(a=7),
    "read the other way": lambda d: d["places"][0].update(backward=not d["places"][0]["backward"]),
    "another guard": lambda d: d["places"][0].update(guard="0 < t"),
    "another side": lambda d: d["places"][0].update(roots=["0" * 32]),
    "an element type": lambda d: d["places"][0].update(element="f99"),
    "operands flipped": lambda d: d["places"][0].update(flipped=[0]),
    "a false rule": lambda d: d["statements"][0].update(
        conjecture=d["statements"][0]["conjecture"].replace("select(linear(x, w, c), a, t)",
                                                            "select(linear(x, w, c), a, 0)")),
    "a rule that does not parse": lambda d: d["statements"][0].update(conjecture="hoist: =="),
    "another form": lambda d: d["statements"][0]["form"].__setitem__(0, 3),
    "another region": lambda d: d.update(region=d["region"].replace("tanh", "relu")),
    "another answer": lambda d: d.update(becomes=d["becomes"].replace("tanh", "relu")),
    "another order": lambda d: d.update(becomes=d["becomes"].replace("index=1", "index=2")),
    "a result left out": lambda d: d.update(
        becomes=d["becomes"].rsplit("outputs=", 1)[0] + "outputs=(), updates=())\n"),
    "half an answer": lambda d: d.update(becomes=d["becomes"][: len(d["becomes"]) // 2]),
    "a leaf of its own": lambda d: d.update(becomes=d["becomes"].replace("'p0'", "'p7'")),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_derivation_is_refused(name: str) -> None:
    graph = _recurrence()
    (line,) = _solved(graph).lines
    data = json.loads(str(line))
    TAMPERED[name](data)
    assert json.dumps(data) != json.dumps(json.loads(str(line)))
    with pytest.raises(CertificateError):
        verify_certificate(graph, [json.dumps(data)], PROVER)


def _paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value stands that holds no others."""
    inside = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in inside:
        if isinstance(value, (dict, list)) and value:
            yield from _paths(value, (*path, key))
        else:
            yield (*path, key)


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("1" if value[-1:] != "1" else "2")
    return [1] if value == [] else "x"


def test_each_field_counts() -> None:
    """Also what could be found out again: the form, the sizes, the proof."""
    graph = _recurrence()
    (line,) = _solved(graph).lines
    seen = Counter[tuple[Any, ...]]()
    for path in _paths(json.loads(str(line))):
        kind = tuple("#" if isinstance(k, int) else k for k in path)
        seen[kind] += 1
        if seen[kind] > 2:
            continue
        data = value = json.loads(str(line))
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = _other(value[path[-1]])
        with pytest.raises(CertificateError):
            verify_certificate(graph, [json.dumps(data)], PROVER)
    assert len(seen) > 20


def test_a_proof_at_another_rank_is_none_here() -> None:
    """What is true of matrices alone is not believed of what is no matrix, nor is an operand that
    changes places where that changes the value."""
    x, y = _leaf("input", "x", 2, 3), _leaf("input", "y", 2, 3)
    less = apply("sub", x, y)
    conjecture = Conjecture("less: sub(x[*B], y[*B]) == add(x, neg(y))")
    rule = PROVER.prove(Statement(conjecture, Form(0, (("B", 2),))))
    assert isinstance(rule, Rule)
    tensors = {"x": x, "y": y}
    found = Match(rule, tensors, {"B": (2, 3)}, (less,))
    assert misfit(found) is None
    (left,) = rule.statement.sides.left
    for wrong, said in (
        (replace(found, flipped=frozenset({left})), "cannot be turned"),
        (replace(found, scope={"B": (2, 3, 1)}), "the rank of B is 2"),
        (replace(found, scope={"B": (3, 2)}), "x is"),
        (replace(found, scope={"B": (2, 0)}), "B is no size"),
        (replace(found, scope={"B": (2, 3), "K": 3}), "K"),
        (replace(found, tensors={"x": x, "y": None}), "y is"),
    ):
        assert said in str(misfit(wrong))


def test_each_digit_of_a_digest_counts() -> None:
    graph = _recurrence()
    (line,) = _solved(graph).lines
    for key in ("before", "after"):
        digest = getattr(line, key)
        for k in range(0, len(digest), 5):
            other = digest[:k] + ("1" if digest[k] != "1" else "2") + digest[k + 1 :]
            with pytest.raises(CertificateError):
                verify_certificate(graph, [str(line).replace(digest, other)], PROVER)


def test_a_way_that_needs_itself_is_none() -> None:
    x = _leaf("input", "x", 4)
    once = apply("neg", x)
    twice = apply("neg", once)
    classes = EGraph((twice,))
    classes.union(once, twice, 0)  # not that it were true
    columns = Columns(classes, _kernels, lambda leaf: False, (twice,))
    (found,) = extract(columns, [(x, once, twice)], (twice,))
    assert found.made == (once,)
    assert (found.cost.seconds, found.gap) == (0.1, 0.0)
