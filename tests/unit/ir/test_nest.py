"""Naive loop nests, printed as C, compiled and run: they compute what the interpreter does."""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.ir.cases import DTYPES, Case, case, every, table
from whet.errors import RecordError
from whet.ir.interp import run_instance
from whet.ir.nest import PRELUDE, Combine, Declare, For, If, Nest, Store, c_text, nest
from whet.ir.ops import instance
from whet.ir.record import Instance, Slots
from whet.ir.types import DType, Poly

NAMED = [
    "conv2d", "softmax", "layer_norm", "max_pool2d", "attention", "concat", "lstm_cell",
    "embedding", "cumsum", "interpolate_nearest", "interpolate_bilinear", "reshape",
]  # fmt: skip


def nest_of(c: Case) -> Nest:
    bound = c.instance
    given = [x for x in c.cast(torch.float64) if x is not None]
    dtypes = {n: DTYPES[x.dtype] for n, x in zip(bound.operands, given, strict=True)}
    node = c.node()
    fixed = {bound.outs[0]: node.dtype} if "dtype" in c.attrs else {}
    return nest(bound, dtypes, fixed)


def atoms(t: Tensor, bound: Instance, slots: Slots) -> Tensor:
    return t.permute(slots.dims).reshape([bound.extents[a] for a in slots.flat]).contiguous()


def call(library: ctypes.CDLL, symbol: str, n: Nest, c: Case) -> list[tuple[Tensor, Tensor]]:
    """(what C computed, what the interpreter computes) for each result, in atomic axes."""
    bound = c.instance
    given = [x for x in c.cast(torch.float64) if x is not None]
    arrays = [atoms(x, bound, s) for x, s in zip(given, bound.operands.values(), strict=True)]
    outs = [
        torch.empty([int(k) for k in b.sizes], dtype=getattr(torch, b.dtype.value))
        for b in n.parameters if b.role == "out"
    ]  # fmt: skip
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*arrays, *outs)]
    getattr(library, symbol)(*pointers)
    want = []
    for name, got in zip(bound.outs, outs, strict=True):
        t = run_instance(bound, given, out=name)
        want.append(atoms(t, bound, bound.results[name]).to(got.dtype))
    return list(zip(outs, want, strict=True))


def compiled(texts: Sequence[str], place: Path) -> ctypes.CDLL:
    source, binary = place / "nests.c", place / "nests.so"
    source.write_text(PRELUDE + "\n".join(t.removeprefix(PRELUDE) for t in texts))
    command = ["gcc", "-std=c99", "-O1", "-Wall", "-Werror", "-Wno-unused", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(binary), str(source), "-lm"], check=True)
    return ctypes.CDLL(str(binary))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """All rows of the table in one C file: compiling once is most of the time."""
    texts = [c_text(nest_of(case(n, k)), f"{n}_{k}_row") for n, k in every()]
    return compiled(texts, tmp_path_factory.mktemp("nest"))


@pytest.mark.parametrize("row", every(), ids=lambda r: f"{r[0]}-{r[1]}")
def test_c_equals_the_interpreter(row: tuple[str, int], library: ctypes.CDLL) -> None:
    c = case(*row)
    for got, want in call(library, f"{row[0]}_{row[1]}_row", nest_of(c), c):
        close = 1e-5 if got.dtype == torch.float32 else 1e-10  # a float made of integers
        torch.testing.assert_close(got, want, rtol=close, atol=close, equal_nan=True, msg=str(c))


def test_the_named_operators_are_among_them() -> None:
    assert set(NAMED) <= set(table())


def test_a_nest_is_data() -> None:
    n = nest(instance("matmul", ((2, 3), (3, 4)), ()))
    (rows,) = n.body
    assert isinstance(rows, For)
    assert (rows.axis, rows.extent) == ("m", 2)
    (columns,) = rows.body
    assert isinstance(columns, For)
    start, loop, store = columns.body
    assert isinstance(start, Declare)
    assert isinstance(loop, For)
    assert isinstance(loop.body[0], Combine)
    assert loop.body[0].kind == "sum"
    assert isinstance(store, Store)
    assert [b.role for b in n.buffers] == ["in", "in", "out"]


def test_a_guard_around_a_reduction_guards_its_loops() -> None:
    c = table()["attention"][5]
    assert c.attrs["causal"]
    first = nest_of(c).body[0]
    while isinstance(first, For):
        last, first = first, first.body[0]
    assert any(isinstance(s, If) for s in last.body)


def test_element_types_reach_c() -> None:
    n = nest(instance("add", ((3,), (3,)), ()), {"x": DType.f32, "z": DType.i32})
    text = c_text(n, "plus")
    assert "const float *restrict x, const int32_t *restrict z, float *restrict y" in text


def test_extrema_pass_nan_on(tmp_path: Path) -> None:
    x = torch.tensor([[1.0, math.nan, 2.0], [-3.0, -2.0, -5.0]], dtype=torch.float64)
    c = Case("amax", (x,), {"dims": (1,)}, lambda t: t.amax(1))
    lib = compiled([c_text(nest_of(c), "extremum")], tmp_path)
    ((got, want),) = call(lib, "extremum", nest_of(c), c)
    torch.testing.assert_close(got, want, equal_nan=True)
    assert got.isnan().tolist() == [True, False]


def test_symbolic_sizes_make_a_nest_but_no_c() -> None:
    n = nest(instance("relu", ((Poly.symbol("N"),),), ()))
    assert n.parameters[0].sizes == (Poly.symbol("N"),)
    with pytest.raises(RecordError, match="concrete sizes"):
        c_text(n)
