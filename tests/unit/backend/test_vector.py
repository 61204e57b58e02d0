"""Functions of lanes against float64, over the whole range of float32."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch

from whet.backend.build import compile_units, link_objects
from whet.backend.cpp_functions import definitions, prelude, scalar_name, spelled_out, vector_name
from whet.ir.functions import FUNCTIONS
from whet.machine.target import Target

TARGET = Target("avx512f", 64, 32, 1)
NARROW = Target("avx2", 32, 16, 1)
# Units in the last place that a result may be off by; what is not here is the C library's.
ULP = {"sqrt": 0.51, "rsqrt": 1.5, "sigmoid": 2.5, "tanh": 2.5, "log2": 2, "log10": 2, "log1p": 2.5,
       "sin": 2, "cos": 2, "erf": 2, "exp": 1.5, "exp2": 1.5, "expm1": 2, "log": 1.5}  # fmt: skip
EXACT = {"rsqrt": lambda x: 1 / torch.sqrt(x), "trunc": torch.trunc, "round": torch.round}


def flags() -> set[str]:
    with open("/proc/cpuinfo") as file:
        return set(file.read().split())


TARGETS = [t for t in (TARGET, NARROW) if t.isa in flags()]


def floats(count: int) -> np.ndarray:
    """Floats spread over all bit patterns, and those that functions are asked for."""
    bits = np.linspace(0, 2**32 - 1, count, dtype=np.float64).astype(np.uint32)
    usual = np.linspace(-20, 20, count, dtype=np.float32)
    special = np.array(
        [0.0, -0.0, 1, -1, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3.4e38, 88.7, 88.8, -87.3,
         -103.9, -104.1, 0.5, -0.5, 0.95, 0.625, 1e-7, -1e-7, 127.99, 128, -149, -150.5],
        np.float32,
    )  # fmt: skip
    x = np.concatenate([bits.view(np.float32), usual, special])
    return np.concatenate([x, np.zeros(-len(x) % 16, np.float32)])


def computed(target: Target, names: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    """Each function over lanes, and over floats, of `x`."""
    text = [f"#define W {target.lanes}\n{prelude()}", definitions(names)]
    for n in names:
        truth = FUNCTIONS[n].kind == "bool"
        value = f"to_f(-{vector_name(n)}(a))" if truth else f"{vector_name(n)}(a)"
        text.append(
            f"void lanes_{n}(const float *x, float *y, i64 n) {{ for (i64 i = 0; i < n; i += W) {{"
            f" vf a = ld_f32(x + i); st_f32(y + i, {value}); }} }}\n"
            f"void floats_{n}(const float *x, float *y, i64 n) {{"
            f" for (i64 i = 0; i < n; i++) y[i] = {scalar_name(n)}(x[i]); }}"
        )
    objects = compile_units({"functions": "\n".join(text)}, target)
    handle = ctypes.CDLL(_file(link_objects(list(objects.values()), target)))
    found = {}
    for n in names:
        for how in ("lanes", "floats"):
            y = np.empty_like(x)
            handle[f"{how}_{n}"](
                ctypes.c_void_p(x.ctypes.data),
                ctypes.c_void_p(y.ctypes.data),
                ctypes.c_int64(len(x)),
            )
            found[f"{how}_{n}"] = y
    return found


def _file(library: bytes) -> str:
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="whet-test-", suffix=".so", delete=False) as file:
        file.write(library)
    return file.name


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest distance in units in the last place; infinite where a special value differs."""
    rounded = want.astype(np.float32)
    special = ~np.isfinite(rounded)
    if not np.array_equal(got[special], rounded[special], equal_nan=True):
        return math.inf
    unit = np.maximum(np.spacing(np.abs(rounded[~special])), np.float32(2**-126) * 2**-23)
    off = np.abs(got[~special].astype(np.float64) - want[~special]) / unit
    return float(off.max())


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.isa)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_functions_are_as_accurate_as_said(target, count):
    x = floats(count(40_000, 4_000_000))
    unary = [f.name for f in FUNCTIONS.values() if f.arity == 1 and f.name in spelled_out()]
    assert set(ULP) <= set(unary)
    found = computed(target, unary, x)
    exact = torch.from_numpy(x.astype(np.float64))
    worst = {}
    for name in unary:
        function = EXACT.get(name) or getattr(torch, name)
        with np.errstate(all="ignore"):
            want = function(exact).double().numpy()
            worst[name] = error(found[f"lanes_{name}"], want)
        np.testing.assert_array_equal(found[f"lanes_{name}"], found[f"floats_{name}"])
    wrong = {n: e for n, e in worst.items() if e > ULP.get(n, 0)}
    assert not wrong, wrong


def test_what_c_does_not_spell_comes_from_the_table():
    assert "tan" not in spelled_out()
    x = floats(1000)
    found = computed(TARGETS[-1], ["tan", "asin"], x)
    want = np.tan(x[1000:2000].astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(found["lanes_tan"][1000:2000], want, rtol=1e-6)
