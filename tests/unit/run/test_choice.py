"""Kernels by measured time: exact hits, failures on record, nothing that fails is ever taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from whet.backend.cluster import Cluster, clusters
from whet.backend.lowered import body_nodes
from whet.backend.packed import Kernel, Pack, kernels
from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, TensorType
from whet.machine import Machine
from whet.run import choice
from whet.run.choice import KIND, Chooser
from whet.run.measure import interleaved
from whet.store import Store


def cluster(rows: int = 3, *, dtype: DType = DType.f32, ending: str = "relu") -> Cluster:
    x = leaf("input", "x", TensorType(dtype, (rows, 5)))
    w = leaf("parameter", "w", TensorType(dtype, (4, 5)))
    graph = Graph((x,), (apply(ending, apply("linear", x, w, None)),))
    (found,) = clusters(graph, body_nodes(graph)).values()
    return found


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little measuring: what is chosen is told by kernels that sleep."""
    monkeypatch.setattr(choice, "BUDGET_S", 0.0)

    def timed(calls: dict[str, Callable[[], object]], **_: Any) -> Any:
        return interleaved(calls, budget_s=0.0, min_rounds=9, warmup=1, settle=lambda: None)

    monkeypatch.setattr(choice, "interleaved", timed)


def sleeping(name: str, seconds: float, calls: list[str] | None = None) -> Kernel:
    def call(x: Tensor, w: Tensor, *_: Any) -> Tensor:
        if calls is not None:
            calls.append(name)
        time.sleep(seconds)
        return x @ w.t()

    return Kernel(name, (), call, 1)


def failing(name: str, fault: BaseException) -> Kernel:
    def call(*_: Any) -> Tensor:
        raise fault

    return Kernel(name, (), call, 1)


def chooser(store: Store, **named: Any) -> Chooser:
    return Chooser(store, Machine.detect(), **named)


def rows(store: Store) -> list[dict[str, Any]]:
    return [store.get(KIND, key) for key in store.keys(KIND)]


def test_the_fastest_is_taken_and_remembered() -> None:
    store, calls = Store.memory(), list[str]()
    ways = [sleeping("slow", 3e-3), sleeping("quick", 1e-5, calls), sleeping("middle", 1e-3)]
    first = chooser(store)
    assert first(cluster(), ways).name == "quick"
    assert (first.measured, first.hits) == (1, 0)
    assert calls
    calls.clear()
    assert first(cluster(), ways).name == "quick"
    second = chooser(store)
    assert second(cluster(), ways).name == "quick"
    assert (second.measured, second.hits) == (0, 1)
    assert not calls
    (row,) = rows(store)
    assert row["choice"] == "quick"
    assert row["failed"] == {}
    assert set(row["seconds"]) == {"slow", "quick", "middle"}
    assert row["cluster"].startswith("linear+relu(f32[3, 5]")


def test_the_plain_one_is_kept_unless_surely_beaten() -> None:
    ways = [sleeping("aten", 1e-3), sleeping("same", 1e-3 + 2e-5)]
    assert chooser(Store.memory())(cluster(), ways).name == "aten"


FAULTS = [
    RuntimeError("could not create a primitive"), NotImplementedError("no kernel"),
    TypeError("not these"), ValueError("nor these"), AttributeError("mkl has no such thing"),
    IndexError(""), MemoryError(), AssertionError(),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: type(f).__name__)
def test_what_fails_is_on_record_and_not_taken(fault: Exception) -> None:
    store = Store.memory()
    made = chooser(store)
    assert made(cluster(), [sleeping("aten", 1e-4), failing("bad", fault)]).name == "aten"
    (row,) = rows(store)
    assert set(row["failed"]) == {"bad"}
    assert row["failed"]["bad"]
    assert made.failures.total() == 1
    again = chooser(store)
    assert again(cluster(), [sleeping("aten", 1e-4), failing("bad", fault)]).name == "aten"
    assert again.hits == 1


def test_a_failure_beyond_the_first_call() -> None:
    count = iter(range(100))

    def tired(x: Tensor, w: Tensor, *_: Any) -> Tensor:
        if next(count) > 2:
            raise RuntimeError("worn out")
        return x @ w.t()

    ways = [sleeping("aten", 1e-3), Kernel("tired", (), tired, 1), sleeping("quick", 1e-5)]
    made = chooser(Store.memory())
    assert made(cluster(), ways).name == "quick"
    assert list(made.failures) == ["tired: RuntimeError: worn out"]


def test_a_pack_that_fails() -> None:
    def refuse(_: Tensor) -> Tensor:
        raise RuntimeError("no such layout")

    bad = Kernel("bad", (Pack(1, refuse),), lambda x, w, *_: x, 1)
    made = chooser(Store.memory())
    assert made(cluster(), [sleeping("aten", 1e-4), bad]).name == "aten"


def test_a_wrong_answer_is_a_failure() -> None:
    """A kernel that is quick because it computes something else is none."""
    wrong = Kernel("wrong", (), lambda x, w, *_: torch.zeros(3, 4), 1)
    shape = Kernel("shape", (), lambda x, w, *_: torch.zeros(4, 3), 1)
    dtype = Kernel("dtype", (), lambda x, w, *_: (x @ w.t()).double(), 1)
    made = chooser(Store.memory())
    ways = [sleeping("aten", 1e-3), wrong, shape, dtype]
    assert made(cluster(), ways).name == "aten"
    assert len(made.failures) == 3


def test_when_even_the_plain_one_fails_it_is_kept() -> None:
    """It says so itself when it runs; a kernel in its place would hide that."""
    ways = [failing("aten", RuntimeError("out of order")), sleeping("other", 1e-4)]
    made = chooser(Store.memory())
    assert made(cluster(), ways).name == "aten"
    assert list(made.failures) == ["aten: RuntimeError: out of order"]


def test_interruptions_pass() -> None:
    ways = [sleeping("aten", 1e-4), failing("bad", KeyboardInterrupt())]
    store = Store.memory()
    with pytest.raises(KeyboardInterrupt):
        chooser(store)(cluster(), ways)
    assert not rows(store)


def test_hits_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.memory()
    ways = [sleeping("a", 1e-4), sleeping("b", 2e-3)]  # far apart: close calls are not kept
    chooser(store)(cluster(), ways)

    def misses(c: Cluster, given: list[Kernel] = ways, **named: Any) -> bool:
        made = chooser(store, **named)
        made(c, given)
        return made.hits == 0

    assert not misses(cluster())
    assert misses(cluster(4))
    assert misses(cluster(dtype=DType.f64))
    assert misses(cluster(ending="gelu"))
    assert misses(cluster(), [*ways, sleeping("c", 1e-4)])  # another kernel might be faster
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert misses(cluster())
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert misses(cluster())


@pytest.mark.parametrize(
    "row",
    [
        b"bytes", [1], {}, {"choice": "a"}, {"choice": "gone", "kernels": ["a", "b"]},
        {"choice": None, "kernels": ["a", "b"]}, {"kernels": ["a", "b"]},
        {"choice": "b", "kernels": ["a", "b"], "failed": {"b": "RuntimeError"}},
    ],
)  # fmt: skip
def test_strange_rows_are_measured_again(row: Any) -> None:
    store = Store.memory()
    ways = [sleeping("a", 1e-5), sleeping("b", 2e-3)]
    made = chooser(store)
    store.put(KIND, made._place(made.key(cluster())), row)
    assert made(cluster(), ways).name == "a"
    assert (made.hits, made.measured) == (0, 1)


def test_without_libraries_or_alternatives_nothing_is_measured() -> None:
    store = Store.memory()
    ways = [sleeping("a", 1e-2), sleeping("b", 1e-5)]
    assert chooser(store, libraries=False)(cluster(), ways).name == "a"
    assert chooser(store)(cluster(), ways[:1]).name == "a"
    assert not rows(store)


def test_inside_a_region_a_row_is_decided_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.memory()
    made = chooser(store, region=True)
    assert made.key(cluster(1)).startswith("region-")
    assert made.key(cluster(3)) == cluster(3).key
    compiled: list[str] = []

    def pretend(c: Cluster, kernel: Kernel, operands: Any) -> Callable[[], object]:
        compiled.append(kernel.name)
        return choice.prepared(c, kernel, operands)

    monkeypatch.setattr(choice, "compiled_call", pretend)
    made(cluster(1), [sleeping("a", 1e-4), sleeping("b", 1e-4)])
    assert compiled == ["a", "b"]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_real_kernels_run_as_they_are_prepared() -> None:
    c = cluster(6)
    operands: list[Tensor | None] = [torch.randn(6, 5), torch.randn(4, 5), None]
    want = torch.relu(operands[0] @ operands[1].t())  # type: ignore[union-attr,operator]
    for kernel in kernels(c):
        torch.testing.assert_close(choice.prepared(c, kernel, operands)(), want)
    got = choice.compiled_call(c, kernels(c)[1], operands)()
    torch.testing.assert_close(got, [want])
