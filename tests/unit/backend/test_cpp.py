"""Kernels in C compute what the interpreter of kernels does, however they are scheduled."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.property.test_schedule import clusters, data, scheduled
from tests.unit.backend.compiled import (
    AVX512,
    NEON,
    Array,
    called,
    memory,
    missing,
    native,
    places,
    run,
    run_alone,
)  # fmt: skip
from tests.unit.ir.cases import case, every
from whet.backend.build import compile_kernels
from whet.backend.cpp import function
from whet.ir.graph import Graph
from whet.ir.interp import evaluate
from whet.kernel import interpret
from whet.kernel.legal import conflicts
from whet.kernel.loops import If, Kernel, Loop, Stmt
from whet.kernel.lower import lower, operands
from whet.kernel.text import parse

TARGETS = native()
BEST = TARGETS[0]


def values(k: Kernel, seed: int = 0) -> dict[str, Array]:
    """Inputs as the buffers hold them: what a narrow type rounds away is gone for all."""
    rng = np.random.default_rng(seed)
    found = {}
    for b in k.inputs:
        x = rng.uniform(-2, 2, b.sizes) if b.dtype.is_float else rng.integers(0, 2, b.sizes)
        x = x.astype(np.float32) if b.dtype.is_float else x
        if b.dtype.value == "bfloat16":
            x = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        if b.dtype.value == "float16":
            x = x.astype(np.float16)
        found[b.name] = x
    return found


def close(got: dict[str, Array], want: dict[str, Array], rtol: float = 2e-5) -> None:
    assert got.keys() == want.keys()
    for name, x in got.items():
        np.testing.assert_allclose(
            x.astype(np.float64), want[name].astype(np.float64), rtol=rtol, atol=rtol, err_msg=name
        )


# -- every operator --------------------------------------------------------------------------------
def rows_agree(rows: list[tuple[str, int]], dtype: torch.dtype, rtol: float) -> None:
    kernels, graphs = {}, {}
    for j, row in enumerate(rows):
        node = case(*row).node(dtype)
        graph = Graph(tuple(dict.fromkeys(node.operands)), (node,))
        kernels[f"k{j}"], graphs[f"k{j}"] = lower(graph), graph
    built = compile_kernels(kernels, BEST, flags=("-O1",))
    for j, row in enumerate(rows):
        k, graph, feeds = kernels[f"k{j}"], graphs[f"k{j}"], case(*row).feeds(dtype)
        arrays = {f"x{i}": feeds[n.name].numpy() for i, n in enumerate(operands(graph))}
        (got,) = called(built, f"k{j}", k, arrays).values()
        (want,) = evaluate(graph, feeds)
        tolerance = rtol if k.outputs[0].dtype.value == "float64" else 2e-5
        np.testing.assert_allclose(
            got.astype(np.float64), want.double().numpy(), rtol=tolerance, atol=tolerance,
            err_msg=str(row),
        )  # fmt: skip


def test_some_operators_from_their_naive_nests():
    rows = every()[3::23]
    rows_agree(rows, torch.float32, 2e-5)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_operator_from_its_naive_nest(dtype):
    rows_agree(every(), dtype, 1e-9)


# -- lanes ---------------------------------------------------------------------------------------
PICKS = """
x: input[f32, 5, 45]
h: input[bf16, 5, 45]
y: output[f32, 5, 45]
for i in range(5):
    for j in vector(45):
        y[i, j] = x[i, 4 * (j // 4)] - h[i, 2 * (j // 2)] * x[i, 44 - j // 2]
"""


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
def test_what_lies_within_a_vector_is_read_once(target):
    k = parse(PICKS)
    built = compile_kernels({"f": k}, target, flags=("-O1",))
    arrays = values(k)
    close(called(built, "f", k, arrays), interpret.run(k, arrays))
    text = function("f", k, target).text
    assert text.count("__builtin_shuffle") >= 6  # three in a chunk, and in the rest


# -- schedules -------------------------------------------------------------------------------------
FOLDS = """
x: input[f32, 7, {n}]
w: input[{dtype}, {n}]
s: output[f32, 7]
m: output[f32, 7]
p: output[f32, 7]
t: {role}[f32, 1]
for i in parallel(7):
    t[0] = 0
    m[i] = -inf
    p[i] = 1
    for j in vector({n}):
        t[0] += exp(x[i, j]) * w[j]
        m[i] = max(m[i], x[i, j])
        p[i] *= (1.25 if x[i, j] < 0 else 0.8)
    s[i] = sqrt(t[0])
"""


@pytest.mark.parametrize("n", [1, 5, 16, 100, 133])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("role", ["register"])
def test_folds(n, dtype, role):
    k = parse(FOLDS.format(n=n, dtype=dtype, role=role))
    arrays = values(k)
    arrays["w"] = abs(arrays["w"])
    close(run(k, arrays, BEST), interpret.run(k, arrays))


TILE = """
a: input[f32, 23, 50]
b: input[f32, 50, 77] @ "1//40:2 0:50 1%40"
y: output[f32, 23, 77]
acc: register[f32, 6, 40]
pack: memory[f32, 50, 6]
for o in parallel(4):
    for p in range(50):
        for q in vector(minimum(6, 23 - 6*o)):
            pack[p, q] = a[6*o + q, p]
    for n in range(2):
        for i in unroll(6):
            for j in vector(40):
                acc[i, j] = 0
        for k in range(50):
            for i2 in unroll(6):
                for j2 in vector(minimum(40, 77 - 40*n)):
                    acc[i2, j2] += (pack[k, i2] if 6*o + i2 < 23 else 0) * b[k, 40*n + j2]
        for i3 in unroll(6):
            if 6*o + i3 < 23:
                for j3 in vector(minimum(40, 77 - 40*n)):
                    y[6*o + i3, 40*n + j3] = tanh(acc[i3, j3])
"""


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
def test_a_packed_tile_with_tails(target):
    k = parse(TILE)
    text = function("f", k, target).text
    assert "vf acc_0, acc_" in text  # accumulators are variables
    arrays = values(k)
    close(run(k, arrays, target), interpret.run(k, arrays))


MASKS = """
x: input[f32, 9, 40]
c: input[bool, 9, 40]
h: input[f16, 40]
y: output[f32, 9, 40]
z: output[bool, 9, 40]
n: output[bf16, 9, 40]
t: memory[f32, 1]
for i in range(9):
    for j in vector(40):
        t[0] = (x[i, j - 3] if 3 <= j and j < 30 else -inf) + (h[j] if c[i, j] else 0)
        y[i, j] = maximum(t[0], (j if j <= i else -1))
        if x[i, j] < 0:
            y[i, j] += 1
        z[i, j] = t[0] < 0 or isnan(x[i, j])
        n[i, j] = x[i, 39 - j] * 0.5
"""


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
def test_masks_and_narrow_types(target):
    k = parse(MASKS)
    assert "for (i64 j = " not in function("f", k, target).text  # it is vectors
    arrays = values(k)
    arrays["x"][2, 7] = np.nan
    got, want = run(k, arrays, target), interpret.run(k, arrays)
    close({n: got[n] for n in "yz"}, {n: want[n] for n in "yz"})
    close({"n": got["n"]}, {"n": want["n"]}, rtol=4e-3)


def test_what_is_hidden_is_not_read():
    """A guard hides memory that is not there: the last page is followed by nothing."""
    import ctypes
    import mmap

    k = parse("""
        x: input[f32, 10]
        y: output[f32, 40]
        for j in vector(40):
            y[j] = (x[j - 5] if 5 <= j and j < 15 else 0)
    """)
    region = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0)
    end = np.frombuffer(region, np.float32, 10, mmap.PAGESIZE - 40)
    end[:] = np.arange(10)
    y = memory(k.outputs[0], None)
    compile_kernels({"f": k}, BEST).load().call("f", end.ctypes.data, y.ctypes.data)
    want = np.zeros(40)
    want[5:15] = np.arange(10)
    np.testing.assert_array_equal(y[places(k.outputs[0])], want)


def races(k: Kernel, body: Iterable[Stmt], path: tuple[Loop | If, ...] = ()) -> bool:
    """Do iterations of a parallel loop meet in one place?"""
    for s in body:
        if isinstance(s, Loop) and s.kind == "parallel" and any(conflicts(k, s, path)):
            return True
        if isinstance(s, (Loop, If)) and races(k, s.body, (*path, s)):
            return True
    return False


def random_kernels(count: int, seed: int) -> dict[str, tuple[Kernel, dict[str, Array]]]:
    """Clusters after random legal moves, and inputs."""
    found = {}
    graphs = list(clusters().items())
    for j in range(count):
        name, graph = graphs[j % len(graphs)]
        k = lower(graph)
        for _, new in scheduled(k, random.Random(seed + j), 40):
            k = new
        assert not races(k, k.body), (name, seed + j)
        label = f"{name.replace(' ', '_')}_{j}"
        found[label] = (k, {n: a.astype(np.float32) for n, a in data(k, j).items()})
    return found


def agree(cases, results) -> None:
    for name, (k, arrays) in cases.items():
        close(results[name], interpret.run(k, arrays), rtol=5e-5)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
def test_random_schedules(target, count):
    cases = random_kernels(count(10, 280), 100 * target.lanes)
    built = compile_kernels({n: k for n, (k, _) in cases.items()}, target, flags=("-O1",))
    agree(cases, {n: called(built, n, k, arrays) for n, (k, arrays) in cases.items()})


# -- elsewhere -------------------------------------------------------------------------------------
def written() -> dict[str, tuple[Kernel, dict[str, Array]]]:
    found = {}
    for name, text in {
        "tile": TILE,
        "folds": FOLDS.format(n=133, dtype="bf16", role="register"),
        "picks": PICKS,
    }.items():
        k = parse(text)
        arrays = values(k)
        found[name] = (k, {n: abs(a) if n == "w" else a for n, a in arrays.items()})
    return found


def test_on_another_processor():
    """aarch64, under emulation: the width is a parameter of the target alone."""
    tool = missing(NEON)
    if tool is not None:
        pytest.skip(f"{tool} is not installed")
    cases = written() | random_kernels(4, 9)
    agree(cases, run_alone(cases, NEON, "-O1"))


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
def test_under_the_address_sanitizer(target):
    cases = written() | random_kernels(28, 31)
    agree(cases, run_alone(cases, target, "-O1", "-g", "-fsanitize=address,undefined",
                           "-fno-sanitize-recover=undefined"))  # fmt: skip


def test_kernels_are_equal_texts():
    """The text is the key of what is kept: it must not depend on the process."""
    k = parse(MASKS)
    assert function("f", k, AVX512) == function("f", k, AVX512)
    assert "0x" not in function("f", k, AVX512).text


@pytest.mark.parametrize("role", ["register", "stack"])
def test_threads_meet_what_one_of_them_made(role: str) -> None:
    k = parse(
        f"""x: input[f32, 40, 64]
y: output[f32, 40, 64]
t: {role}[f32, 1]
for i in range(40):
    t[0] = 0
    for r in vector(64):
        t[0] += x[i, r]
    for j in parallel(64):
        y[i, j] = x[i, j] - t[0]
"""
    )
    arrays = values(k)
    close(run(k, arrays, replace(BEST, threads=2)), interpret.run(k, arrays))
