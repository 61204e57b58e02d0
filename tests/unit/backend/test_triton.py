"""Generated Triton, twice without a device: interpreted against float64, and compiled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import needs_triton
from tests.unit.backend.tiles import F16, F32, KINDS, graph, modules, sized
from whet.backend.triton_text import module
from whet.backend.triton_words import HELPERS, TYPES, WORDS
from whet.errors import UnsupportedError
from whet.ir.types import DType
from whet.kernel.affine import bounds
from whet.kernel.block import Launch, launch_of
from whet.kernel.cut import Cut
from whet.kernel.grid import grid
from whet.kernel.limits import demands, fits
from whet.kernel.loops import Loop, walk
from whet.kernel.lower import lower
from whet.kernel.schedule import Illegal, apply, read, show
from whet.machine.gpu import preset

ROOT = Path(__file__).parents[3]
QUICK = [name for name, kind in KINDS.items() if kind.quick]
TOLERANCE = {"f32": 2e-6, "f16": 1e-3}


def interpreted(names: list[str]) -> dict[str, dict[str, object]]:
    """Kinds in Triton's interpreter, in a fresh process."""
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.unit.backend.tiles", *names],
        check=False, capture_output=True, text=True, env=env, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def held(names: list[str]) -> None:
    """Kinds are within rounding of float64, in as many launches as they should be."""
    found = interpreted(names)
    assert len(found) == 2 * len(names)
    for name in names:
        for dtype, allowed in TOLERANCE.items():
            row = found[f"{name} {dtype}"]
            assert float(str(row["error"])) <= allowed, (name, dtype, row)
            assert len(row["grids"]) == KINDS[name].launches, (name, row)  # type: ignore[arg-type]


@needs_triton
def test_interpreted_quick() -> None:
    held(QUICK)


@needs_triton
@pytest.mark.full
@pytest.mark.parametrize("name", [n for n in KINDS if n not in QUICK])
def test_interpreted(name: str) -> None:
    held([name])


def compiles(name: str, dtype: object, capability: int) -> None:
    """A kind compiles without spills, and takes no more than was predicted, nor much less."""
    from whet.backend.triton import compiled

    _, d, m = modules(name, dtype)  # type: ignore[arg-type]
    launch = launch_of(d.schedule)
    used = compiled(m, capability)
    asked = demands(d.kernel, launch)
    assert len(asked) == len(used)
    gpu = preset("a100" if capability == 80 else "h100")
    assert fits(d.kernel, launch, gpu) is None
    for program, want in zip(m.programs, asked, strict=True):
        got = used[program.name]
        assert got.cubin[:4] == b"\x7fELF"
        assert got.spilled == 0, (name, got.spilled)
        assert got.shared <= want.shared, (name, got.shared, want.shared)
        assert got.registers <= want.registers <= 4 * got.registers + 24, (name, got.registers)
        assert program.grid == want.programs


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", QUICK)
def test_compiled_quick(name: str, capability: int) -> None:
    compiles(name, F16, capability)


@needs_triton
@pytest.mark.full
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [F16, F32, DType.bf16], ids=["f16", "f32", "bf16"])
@pytest.mark.parametrize("name", list(KINDS))
def test_compiled(name: str, dtype: object, capability: int) -> None:
    compiles(name, dtype, capability)


LARGE = {
    "linear": (
        Cut(128, 128, 32, 8, 3),
        Cut(128, 128, 64, 8, 3),
        Cut(64, 64, 64, 4, 3),
        Cut(64, 64, 32, 4, 4, "tf32"),
        Cut(128, 128, 32, 8, 3, persistent=132),
    ),
    "attention, causal": (Cut(128, 64, 64, 8, 3), Cut(64, 64, 64, 4, 3), Cut(64, 128, 32, 4, 4)),
    "conv": (Cut(64, 64, 32, 4, 4), Cut(128, 64, 32, 4, 4)),
}


@needs_triton
@pytest.mark.full
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [F16, F32], ids=["f16", "f32"])
@pytest.mark.parametrize("name", list(LARGE))
def test_predicted_for_large_tiles(name: str, dtype: DType, capability: int) -> None:
    """Registers and shared memory of the tiles that are tried on devices; what is not refused
    spills a few words at most."""
    from whet.backend.triton import compiled

    g = sized(name, dtype)
    for cut in LARGE[name]:
        d = grid(lower(g), cut)
        launch = launch_of(d.schedule)
        used = compiled(module("f", d.kernel, launch), capability)
        (got,), (want,) = used.values(), demands(d.kernel, launch)
        assert got.shared <= want.shared, (cut, got.shared, want.shared)
        refused = fits(d.kernel, launch, preset("a100" if capability == 80 else "h100"))
        assert refused or got.spilled <= 512, (cut, got.spilled)
        assert got.spilled or got.registers <= want.registers, (cut, got.registers, want)


def test_only_words_of_the_oldest_triton_are_used() -> None:
    """What is printed is in Triton 3.6 and, but for types, in its interpreter."""
    known = """PropagateNan abs arange broadcast_to ceil cos dot erf exp exp2 floor full load log
        log2 maximum minimum permute program_id reduce rsqrt sin sqrt static_range store sum where
        float16 float32 float64 bfloat16 int1 int8 int16 int32 int64 uint8""".split()
    printed = {w for name in QUICK for w in re.findall(r"tl\.(\w+)", modules(name, F16)[2].text)}
    said = {w for text in (*WORDS.values(), *HELPERS.values(), *TYPES.values())
            for w in re.findall(r"tl\.(\w+)", text)}  # fmt: skip
    assert printed | said <= set(known)


def test_products_go_through_tensor_cores() -> None:
    _, _, m = modules("linear", F16)
    assert m.text.count("tl.dot(") == 1
    assert "tl.float32)" in m.text  # the epilogue is computed wide
    _, _, m = modules("attention, causal", F16)
    assert m.text.count("tl.dot(") == 2


def test_masked_pieces_are_left_out() -> None:
    """Keys that no query of a tile may see are not visited: the range of their loop says so."""
    _, d, _ = modules("attention, causal, long", F16)
    (loop,) = (x for x in walk(d.kernel.body) if isinstance(x, Loop) and x.kind == "serial"
               and not isinstance(x.extent, int))  # fmt: skip
    (tile,) = (x for x in d.kernel.loops if x.endswith("i_o"))
    ends = [bounds(loop.extent, {tile: 1 + n})[1] for n in range(3)]
    assert ends == [2, 4, 6]
    _, d, _ = modules("attention, mask", F16)
    assert not any("cease" in str(m) for m in show(d.schedule).splitlines())


def test_float32_products_say_their_precision() -> None:
    k = lower(graph("linear", F32))
    for precision in ("ieee", "tf32"):
        d = grid(k, Cut(precision=precision))
        text = module("f", d.kernel, launch_of(d.schedule)).text
        assert f'input_precision="{precision}"' in text


def test_schedules_replay() -> None:
    """What a search found is text, and that text makes the same kernel again."""
    for name in (
        "attention, grouped heads",
        "matmul, split",
        "conv",
        "norm of a sum",
        "attention, decode, split",
    ):
        k = lower(graph(name, F32))
        d = grid(k, KINDS[name].cut)
        again = apply(k, read(show(d.schedule)))
        assert not isinstance(again, Illegal), again
        assert again == d.kernel


def test_over_the_limits_is_refused_with_the_number() -> None:
    k = lower(graph("linear", F32))
    d = grid(k, Cut(rows=64, columns=64, depth=64, stages=8))
    why = fits(d.kernel, Launch(4, 8), preset("a100"))
    assert why is not None
    assert why.kind == "resources"
    assert dict(why.numbers) == {"shared": 8 * 2 * 64 * 64 * 4, "most": 163 * 1024}
    d = grid(k, Cut(rows=64, columns=64, depth=64, stages=2))
    why = fits(d.kernel, Launch(1, 2), preset("h200"))
    assert why is not None
    assert dict(why.numbers)["most"] == 255
    assert dict(why.numbers)["registers"] > 255
    assert fits(d.kernel, Launch(4, 2), preset("a100")) is None


def test_a_function_without_a_word_is_refused() -> None:
    from whet.ir.graph import Graph, apply, leaf
    from whet.ir.types import DType, TensorType

    x = leaf("input", "x", TensorType(DType.f32, (8, 9)))
    d = grid(lower(Graph((x,), (apply("atan", x),))), Cut())
    with pytest.raises(UnsupportedError, match="without a word"):
        module("f", d.kernel, Launch(4, 2))


def test_values_that_several_launches_need_lie_in_memory() -> None:
    _, _, m = modules("matmul, split", F32)
    assert [b.name for b in m.workspace] == [m.programs[0].buffers[-1]]
    assert len(m.programs) == 2
