"""Generated Triton on a device, bfloat16 among it, and whole programs as one CUDA graph."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
from torch import nn

from tests.unit.backend.tiles import KINDS, device_error
from whet.backend.tiled import tiled
from whet.capture.torch import capture
from whet.errors import InputError
from whet.ir.types import DType
from whet.run.abreast import grouped
from whet.run.cuda import Cuda
from whet.run.device import Tuned
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.run.replayed import graphs
from whet.store import Store

pytestmark = pytest.mark.device
ALLOWED = {DType.f32: 1e-5, DType.f16: 2e-3, DType.bf16: 2e-2}


@pytest.mark.parametrize("dtype", list(ALLOWED), ids=lambda t: t.name)
@pytest.mark.parametrize("name", list(KINDS))
def test_kinds(name: str, dtype: DType) -> None:
    assert device_error(name, dtype, "cuda") <= ALLOWED[dtype]


def test_program() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.LayerNorm(96), nn.Linear(96, 64))
    model = model.cuda().eval()
    x = torch.randn(33, 64, device="cuda")
    cuda, device = Cuda("cuda"), x.device
    with torch.no_grad():
        captured = capture(model, (x,), {})
        tuned = Tuned(cuda.gpu, Store.open(), cuda)
        with closing(tuned):
            lowered = tiled(captured.graph, grouped(captured.graph, tuned), tuned, device)
        parameters = Parameters({}, model, [n.name for n in captured.graph.parameters])
        program = Program(lowered, parameters, graphs(lowered, cuda), "cuda")
        for _ in range(3):
            x = torch.randn(33, 64, device="cuda")
            (got,) = program([x])
            torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError, match="not what the program is for"):
            program([x.cpu()])
