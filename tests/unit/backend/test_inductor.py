"""Regions compiled by Inductor: equal to their source, loadable elsewhere, refused when unfit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from whet.backend.artifact import MANIFEST, Operand, Region, load_region
from whet.backend.inductor import compile_region
from whet.errors import InputError, StoreError, UnsupportedError

ROOT = Path(__file__).parents[3]
mkldnn, mkl = torch.ops.mkldnn, torch.ops.mkl
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no MKL")


def mixed(x: Tensor, y: Tensor, scale: Tensor) -> list[Tensor]:
    """Fused operators, a reduction, and each way in which a result may share memory."""
    z = torch.tanh(x) * scale + y
    return [z, z.sum(1), x, x.t(), z.view(-1), torch.softmax(z @ y.t(), 1), torch.arange(3.0)]


def mixed_inputs() -> list[Tensor]:
    return [torch.randn(5, 7), torch.randn(5, 7), torch.randn(7)]


@pytest.fixture(scope="module")
def region() -> Region:
    return compile_region(mixed, mixed_inputs(), threads=1)


def check(f: Callable[..., Sequence[Tensor]], inputs: list[Tensor], region: Region) -> None:
    before = [x.clone() for x in inputs if not x.is_mkldnn]
    got, want = region.runner()(inputs), f(*inputs)
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    dense = [x for x in inputs if not x.is_mkldnn]
    assert all(torch.equal(a, b) for a, b in zip(before, dense, strict=True))


def test_a_region_computes_what_its_source_does(region: Region) -> None:
    check(mixed, mixed_inputs(), region)
    assert region.kernels >= 1
    assert [x.shape for x in region.outputs] == [(5, 7), (5,), (5, 7), (7, 5), (35,), (5, 5), (3,)]


def test_outputs_share_memory_with_nothing(region: Region) -> None:
    run, inputs = region.runner(), mixed_inputs()
    tensors = [*inputs, *run(inputs), *run(inputs)]
    places = {x.untyped_storage().data_ptr() for x in tensors}
    assert len(places) == len(tensors)


def test_the_key_names_the_content(region: Region) -> None:
    again = compile_region(mixed, mixed_inputs(), threads=1)
    other = compile_region(lambda x: [x + 1], [torch.randn(3)], threads=1)
    assert again.key == region.key
    assert again.library == region.library
    assert other.key != region.key


def test_constants_of_a_graph_module_travel_along(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)

    class Lookup(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", table)

        def forward(self, ids: Tensor) -> list[Tensor]:
            return [F.embedding(ids, self.table) * 2, self.table]

    region = compile_region(fx.symbolic_trace(Lookup()), [torch.tensor([2, 0])], threads=1)
    region.save(tmp_path)
    rows, whole = load_region(tmp_path)([torch.tensor([1, 2])])
    assert torch.equal(rows, table[[1, 2]] * 2)
    whole.zero_()
    assert torch.equal(load_region(tmp_path)([torch.tensor([1, 2])])[1], table)


@needs_onednn
def test_packed_parameters_are_inputs() -> None:
    """The same region serves parameters packed later."""

    def f(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> list[Tensor]:
        y = mkldnn._linear_pointwise(x, w, b, "gelu", [], "none")
        return [mkldnn._linear_pointwise.binary(y, y, v, None, "add") * 2]

    def parameters() -> tuple[list[Tensor], list[Tensor]]:
        plain = [torch.randn(8, 6), torch.randn(8), torch.randn(8, 8)]
        pack = mkldnn._reorder_linear_weight
        return plain, [pack(plain[0], 10), plain[1], pack(plain[2], 10)]

    x = torch.randn(2, 5, 6)
    region = compile_region(f, [x, *parameters()[1]], threads=1)
    assert region.inputs[1].stride is None
    assert region.calls == {"_linear_pointwise": 1, "_linear_pointwise_binary": 1}
    run = region.runner()
    for _ in range(2):
        (w, b, v), packed = parameters()
        y = F.gelu(F.linear(x, w, b))
        (got,) = run.bind(packed)([x])
        torch.testing.assert_close(got, (F.linear(y, v) + y) * 2, rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("groups", [1, 2])
def test_packed_convolutions_with_an_addend(groups: int) -> None:
    geometry = ([1, 1], [1, 1], [1, 1], groups)  # padding, stride, dilation
    w = torch.randn(6, 6 // groups, 3, 3)
    packed = mkldnn._reorder_convolution_weight(w, *geometry, [1, 6, 9, 8])

    def f(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        y = mkldnn._convolution_pointwise(x, w, b, *geometry, "relu", [], "")
        z = mkldnn._convolution_pointwise.binary(
            y, x, w, b, *geometry, "add", 1.0, "relu", [], None
        )
        return [F.max_pool2d(z, 3, 2, 1)]

    x, b = torch.randn(1, 6, 9, 8), torch.randn(6)
    y = F.relu(F.conv2d(x, w, b, padding=1, groups=groups))
    z = F.relu(F.conv2d(y, w, b, padding=1, groups=groups) + x)
    (got,) = compile_region(f, [x, packed, b], threads=1).runner()([x, packed, b])
    torch.testing.assert_close(got, F.max_pool2d(z, 3, 2, 1), rtol=1e-4, atol=1e-4)


@needs_mkl
def test_parameters_packed_by_mkl_are_inputs() -> None:
    x, w, b = torch.randn(4, 6), torch.randn(5, 6), torch.randn(5)
    packed = mkl._mkl_reorder_linear_weight(w, 4)

    def f(x: Tensor, packed: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        return [mkl._mkl_linear(x, packed, w, b * 2, 4), mkl._mkl_linear(x, packed, w, None, 4)]

    region = compile_region(f, [x, packed, w, b], threads=1)
    got = region.runner()([x, packed, w, b])
    for ours, theirs in zip(got, (F.linear(x, w, b * 2), F.linear(x, w)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns_first", [False, True])
def test_a_row_times_a_matrix_is_generated(columns_first: bool) -> None:
    x, w, b = torch.randn(1, 33), torch.randn(17, 33), torch.randn(17)
    if columns_first:
        w = w.t().contiguous().t()

    def f(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        y = torch.tanh(F.linear(torch.sigmoid(x), w, b))
        return [y, F.linear(x, w)]

    region = compile_region(f, [x, w, b], threads=1)
    assert region.calls == {}
    check(f, [x, w, b], region)
    many = compile_region(lambda x, w: [F.linear(x, w)], [torch.randn(2, 33), w], threads=1)
    assert many.calls == {"mm_out": 1}


def test_a_saved_region_runs_in_a_process_without_the_compiler(
    region: Region, tmp_path: Path
) -> None:
    region.save(tmp_path / "r")
    inputs = mixed_inputs()
    torch.save((inputs, mixed(*inputs)), tmp_path / "case.pt")
    program = (
        "import sys, time, torch\n"
        "start = time.perf_counter()\n"
        "from whet.backend.artifact import load_region\n"
        "run = load_region('r')\n"
        "inputs, want = torch.load('case.pt')\n"
        "for a, b in zip(run(inputs), want, strict=True): assert (a - b).abs().max() < 1e-4\n"
        "assert time.perf_counter() - start < 1.5\n"
        "assert not {'torch._inductor', 'torch._dynamo', 'sympy'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_calls_may_overlap(region: Region) -> None:
    run = region.runner()
    cases = [mixed_inputs() for _ in range(32)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(run, cases))
    for inputs, got in zip(cases, answers, strict=True):
        for ours, theirs in zip(got, mixed(*inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_parameters_may_require_gradients() -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 4, requires_grad=True)
    region = compile_region(lambda x, w: [torch.relu(x @ w)], [x, w], threads=1)
    (got,) = region.runner()([x, w])
    assert not got.requires_grad
    torch.testing.assert_close(got, torch.relu(x @ w).detach())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x.double(), "float64[5, 7]"),
        (lambda x: x[:4], "float32[4, 7]"),
        (lambda x: x.t().contiguous().t(), "strides [1, 5]"),
        (lambda x: x.to("meta"), "on meta"),
        (lambda x: x[0], "float32[7]"),
    ],
)
def test_unfit_inputs_are_refused_before_anything_runs(
    region: Region, change: Callable[[Tensor], Tensor], told: str
) -> None:
    inputs = mixed_inputs()
    run = region.runner()
    with pytest.raises(InputError) as refused:
        run([inputs[0], change(inputs[1]), inputs[2]])
    assert "input 1 " in refused.value.summary
    assert "float32[5, 7], strides [7, 1], on cpu" in str(refused.value)
    assert told in str(refused.value)
    with pytest.raises(InputError, match="wrong number"):
        run(inputs[:2])
    with pytest.raises(InputError, match="wrong number"):
        run.bind(inputs[1:])(inputs)
    with pytest.raises(InputError, match="wrong number"):
        run.bind(inputs * 2)
    with pytest.raises(InputError, match="input 2"):
        run.bind([torch.randn(8)])


def test_strides_of_single_positions_do_not_matter() -> None:
    kept = Operand("float32", (1, 4), (4, 1))
    assert kept.admits(Operand("float32", (1, 4), (1, 1)))
    assert not kept.admits(Operand("float32", (1, 4), (4, 2)))
    assert not kept.admits(Operand("float32", (1, 4), None))


def test_what_cannot_be_compiled_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedError, match="cannot compile this region") as refused:
        compile_region(lambda x: [x[x > 0]], [torch.randn(3)], threads=1)
    assert "nonzero" in str(refused.value) or "DynamicOutputShape" in str(refused.value)
    with pytest.raises(UnsupportedError, match="not a tensor"):
        compile_region(lambda x: [x, 2], [torch.randn(3)], threads=1)
    with pytest.raises(UnsupportedError, match="writes into its inputs"):
        compile_region(lambda x: [x.add_(1)], [torch.randn(3)], threads=1)


def test_a_missing_compiler_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnsupportedError, match="needs a C.. compiler") as refused:
        compile_region(lambda x: [x + 1], [torch.randn(3)], threads=1)
    assert "install" in str(refused.value)


def test_damaged_and_foreign_regions_are_refused(region: Region, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be loaded"):
        load_region(tmp_path / "nothing")
    region.save(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    for damaged in ("", text[: len(text) // 2], "[]", "{}", text.replace('"shape"', '"form"')):
        (tmp_path / MANIFEST).write_text(damaged)
        with pytest.raises(StoreError):
            load_region(tmp_path)
    for name, other in (("torch", "1.0"), ("processor", "z80")):
        (tmp_path / MANIFEST).write_text(json.dumps({**json.loads(text), name: other}))
        with pytest.raises(UnsupportedError, match="another torch or another processor"):
            load_region(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    (library,) = tmp_path.glob("*.so")
    library.write_bytes(library.read_bytes()[:-1])
    with pytest.raises(StoreError, match="cannot be loaded"):
        load_region(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(region: Region, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be saved") as refused:
        region.save(tmp_path / "file" / "below")
    assert str(tmp_path) in str(refused.value)


def test_compiling_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor.lowering import lowerings

    monkeypatch.chdir(tmp_path)
    before, kept = dict(lowerings), torch.is_grad_enabled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compile_region(lambda x: [torch.exp(x) - 3], [torch.randn(4)], threads=1).runner()
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert (dict(lowerings), torch.is_grad_enabled()) == (before, kept)


@pytest.mark.full
def test_an_interrupt_ends_compiling_and_the_next_one_works(tmp_path: Path) -> None:
    program = (
        "import torch\n"
        "from whet.backend.inductor import compile_region\n"
        "f = lambda x: [torch.tanh(torch.exp(x) * 7.25)]\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    while True: compile_region(f, [torch.randn(4)], threads=1)\n"
        "except KeyboardInterrupt:\n"
        "    pass\n"
        "run = compile_region(f, [torch.randn(4)], threads=1).runner()\n"
        "x = torch.randn(4)\n"
        "assert (run([x])[0] - f(x)[0]).abs().max() < 1e-5\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    child = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(4)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=120) == 0
    child.stdout.close()
