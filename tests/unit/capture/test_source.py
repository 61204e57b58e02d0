"""The MODEL argument: every form, and every way in which it can be wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from whet.capture import source
from whet.capture.torch import capture
from whet.errors import CaptureError

MODULE = """
import torch
from torch import nn

X = torch.ones(2, 3)

def pair(): return nn.Linear(3, 4), (X,)
def alone(): return nn.Linear(3, 4), X
def named(): return nn.Linear(3, 4), {"input": X}
def both(): return nn.Linear(3, 4), [], {"input": X}
def bare(): return nn.Linear(3, 4)
def wrong(): return 5, nn.Linear(3, 4)
def fails(): return undefined

class Owner:
    @staticmethod
    def build(): return pair()

layer = nn.Linear(3, 4)
layer.example_inputs = (X,)
number = 5
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a Python module of models."""
    (tmp_path / "my_models.py").write_text(MODULE)
    (tmp_path / "broken_models.py").write_text("import torch\nx = 1 / 0\n")
    (tmp_path / "needy_models.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.endswith("_models"):
            del sys.modules[name]


def test_zoo() -> None:
    found = source.load("zoo:lstm", scale="small")
    assert found.name == "zoo:lstm"
    assert isinstance(found.module(*found.args), torch.Tensor)


@pytest.mark.parametrize("name", ["pair", "alone", "named", "both", "layer", "Owner.build"])
def test_function(models: Path, name: str) -> None:
    found = source.load(f"my_models:{name}")
    assert isinstance(found.module, nn.Linear)
    assert found.module(*found.args, **found.kwargs).shape == (2, 4)
    assert capture(found.module, found.args, found.kwargs).graph.outputs[0].shape == (2, 4)


def test_saved_program(tmp_path: Path) -> None:
    module, x = nn.Linear(3, 4).eval(), torch.ones(2, 3)
    path = tmp_path / "linear.pt2"
    torch.export.save(torch.export.export(module, (x,)), path)
    found = source.load(str(path))
    assert not found.module.training
    torch.testing.assert_close(found.module(*found.args), module(x))
    captured = found.capture()
    assert set(captured.parameters) == {"weight", "bias"}
    assert captured.parameters["weight"] is found.module.weight


def relu_file(path: Path, *shape: int | str) -> str:
    """An ONNX file of one operator; names in the shape are sizes that it leaves open."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(n, kind, shape) for n in "xy"]
    graph = helper.make_graph([node], "relu", values[:1], values[1:])
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset]), path)
    return str(path)


def test_open_sizes_of_an_onnx_file(tmp_path: Path) -> None:
    path = relu_file(tmp_path / "open.onnx", "batch", 3)
    assert source.load(path, sizes={"batch": 5}).args[0].shape == (5, 3)
    with pytest.raises(CaptureError, match="--size batch=N"):
        source.load(path)
    with pytest.raises(CaptureError, match="does not leave open"):
        source.load(path, sizes={"bach": 5})
    with pytest.raises(CaptureError, match="zoo:lstm leaves no sizes open"):
        source.load("zoo:lstm", sizes={"batch": 5})


def test_onnx_file(tmp_path: Path) -> None:
    found = source.load(relu_file(tmp_path / "relu.onnx", 2, 3))
    torch.testing.assert_close(found.module(*found.args), found.args[0].relu())
    assert found.capture().graph.outputs[0].op == "relu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zoo:bert_bass", "did you mean bert_base"),
        ("bert_base", "try:      zoo:bert_base"),
        ("nothing.pt2", "there is no file nothing.pt2"),
        ("nothing.onnx", "there is no file nothing.onnx"),
        ("corrupt.pt2", "does not load as an exported program"),
        ("not a model", "names no model"),
        ("no_such_module:build", "there is no Python module no_such_module"),
        ("my_models:piar", "did you mean pair"),
        ("my_models:number", "is no function"),
        ("my_models:bare", "gives a module without inputs"),
        ("my_models:wrong", r"gives no model(.|\n)*\(int, Linear\)"),
        ("my_models:fails", r"failed to make a model(.|\n)*NameError(.|\n)*my_models.py:13: "),
        ("broken_models:x", r"does not import(.|\n)*broken_models.py:2: x = 1 / 0"),
        ("needy_models:x", "needs a package that is not installed"),
    ],
)
def test_bad_model(models: Path, text: str, message: str) -> None:
    (models / "corrupt.pt2").write_bytes(b"PK\x03\x04 this is no archive")
    with pytest.raises(CaptureError) as caught:
        source.load(text)
    import re

    assert re.search(message, str(caught.value)), str(caught.value)
