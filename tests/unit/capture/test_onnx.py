"""ONNX files: what they become, how versions differ, and what every bad file is answered with."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from whet.capture.onnx import OnnxModule, load_onnx
from whet.capture.onnx.call import ROWS
from whet.capture.onnx.module import qualified
from whet.errors import CaptureError, InputError
from whet.ir.interp import FLOAT64, NATIVE, evaluate
from whet.ir.verify import verify

Shape = Sequence[int | str | None]
F32 = np.float32


def value(name: str, shape: Shape | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, data: Any) -> Any:
    array = np.asarray(data)
    return numpy_helper.from_array(
        array.astype(np.float32) if array.dtype == np.float64 else array, name
    )


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[Any] = (),
    opset: int = 17,
    **more: Any,
) -> Any:
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", ())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)


def one(
    op: str, *shapes: Shape, opset: int = 17, out: Shape | None = None, domain: str = "",
    weights: Sequence[Any] = (), extra: Sequence[str] = (), **attributes: Any,
) -> bytes:  # fmt: skip
    """A model of one node over float inputs x0, x1, …, then the named weights."""
    names = [f"x{k}" for k in range(len(shapes))]
    node = helper.make_node(op, [*names, *extra], ["y"], domain=domain, **attributes)
    inputs = [value(n, s) for n, s in zip(names, shapes, strict=True)]
    opsets = [helper.make_opsetid(domain, 1)] if domain else []
    made = model([node], inputs, [value("y", out)], weights, opset, opsets=opsets)
    return made.SerializeToString()  # type: ignore[no-any-return]


def values(source: bytes | Any, *inputs: Tensor, **named: Any) -> Any:
    """What the graph computes; the module must compute the same."""
    data = source if isinstance(source, bytes) else source.SerializeToString()
    captured = load_onnx(data, **named)
    verify(captured.graph)
    found = captured.answer(evaluate(captured.graph, captured.feeds(inputs), NATIVE), inputs)
    again = captured.module(*inputs)
    for a, b in zip(_several(found), _several(again), strict=True):
        torch.testing.assert_close(a, b)
    return found


def _several(answer: Any) -> tuple[Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def refusal(source: bytes | str | Path, **named: Any) -> str:
    with pytest.raises(CaptureError) as caught:
        load_onnx(source, **named)
    return str(caught.value)


# -- what a model becomes ------------------------------------------------------------------------
class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4).eval()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return y


def net_model(net: Net, batch: int | str = 2) -> Any:
    state = {k: v.numpy() for k, v in net.state_dict().items() if v.dim()}
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization",
            ["a", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"], ["b"],
        ),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        # The shape as exporters write it: taken from the tensor, put together, and used.
        helper.make_node("Shape", ["d"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["u"]),
        helper.make_node("Concat", ["u", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["d", "t"], ["e"]),
        helper.make_node("Gemm", ["e", "head.weight", "head.bias"], ["y"], transB=1),
    ]  # fmt: skip
    weights = [weight(k, v) for k, v in state.items()]
    for name, number in (("zero", np.int64(0)), ("axis", [0]), ("rest", [-1])):
        weights.append(weight(name, np.asarray(number, np.int64)))
    shape: Shape = [batch, 3, 6, 7]
    return model(nodes, [value("x", shape)], [value("y", [batch, 5])], weights)


def test_a_model_becomes_a_graph_with_its_own_names(tmp_path: Path) -> None:
    net = Net().eval()
    nn.init.uniform_(net.norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    path = tmp_path / "net.onnx"
    onnx.save(net_model(net), str(path))
    captured = load_onnx(path)
    x = torch.randn(2, 3, 6, 7)
    (found,) = evaluate(captured.graph, captured.feeds((x,)), FLOAT64)
    right = copy.deepcopy(net).double()(x.double())
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
    own = {k: v for k, v in net.state_dict().items() if v.dim()}
    assert set(captured.parameters) == set(captured.module.state_dict()) == set(own)
    assert {n.op for n in captured.graph.nodes} >= {"conv2d", "batch_norm", "linear"}
    assert not captured.graph.constants  # the shape was computed at import
    assert captured.coverage["Conv"] == 1
    assert not captured.foreign
    assert "Gemm(" in captured.graph.where[captured.graph.outputs[0]]


def test_parameters_are_live_and_the_module_is_the_original() -> None:
    captured = load_onnx(net_model(Net().eval()).SerializeToString())
    module, x = captured.module, torch.randn(2, 3, 6, 7)
    assert isinstance(module, OnnxModule)
    before = module(x)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        module.get_parameter("head.bias").add_(1)
    torch.testing.assert_close(module(x), before + 1)
    torch.testing.assert_close(twin(x), before)
    torch.testing.assert_close(pickle.loads(pickle.dumps(twin))(x), before)
    torch.testing.assert_close(captured.parameters["head.bias"], module.head.bias)
    wide = twin.double()(x.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), before)
    with pytest.raises(InputError, match="another shape"):
        module(torch.randn(1, 3, 6, 7))
    with pytest.raises(InputError, match="number of inputs"):
        module()


def test_names_that_no_module_can_have_are_changed_and_stay_apart() -> None:
    names = ["a.b", "a", "1x", "x/y:0", "x_y_0", "forward", "w.graph", "graph", ""]
    found = qualified(names)
    assert found["a.b"] != found["a"]
    assert len(set(found.values())) == len(names)
    host = nn.Module()
    for name in found.values():
        assert all(part.isidentifier() for part in name.split("."))
        assert not hasattr(host, name.split(".")[0])


def test_several_outputs_come_as_a_tuple_and_an_input_may_be_one() -> None:
    nodes = [helper.make_node("Split", ["x"], ["a", "b"], axis=1), ]  # fmt: skip
    source = model(nodes, [value("x", [2, 6])], [value(n, None) for n in ("b", "x", "a")])
    x = torch.randn(2, 6)
    b, same, a = values(source, x)
    torch.testing.assert_close(torch.cat([a, b], 1), x)
    torch.testing.assert_close(same, x)


# -- sizes and fixed inputs ----------------------------------------------------------------------
def test_open_sizes_are_asked_for_by_name() -> None:
    source = net_model(Net().eval(), "batch").SerializeToString()
    message = refusal(source)
    assert "batch" in message
    assert "sizes={'batch': 1}" in message
    assert load_onnx(source, sizes={"batch": 3}).graph.outputs[0].shape == (3, 5)
    assert "does not leave open" in refusal(source, sizes={"batch": 1, "width": 2}).replace(
        "do not leave open", "does not leave open"
    )
    unnamed = one("Relu", [None, 3])
    assert "x0:0" in refusal(unnamed)
    assert load_onnx(unnamed, sizes={"x0:0": 2}).graph.outputs[0].shape == (2, 3)


def test_what_hangs_on_an_input_is_refused_until_it_is_fixed() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"], name="there")]
    made = model(nodes, [value("x", [2, 6]), value("s", [2], TensorProto.INT64)],
                 [value("y", [3, 4])])  # fmt: skip
    message = refusal(made.SerializeToString())
    for part in ("Reshape", "opset 17", "there", "input s", "fixed={'s'"):
        assert part in message
    x = torch.randn(2, 6)
    found = values(made, x, fixed={"s": torch.tensor([3, -1])})
    torch.testing.assert_close(found, x.reshape(3, 4))
    assert "not there" in refusal(made.SerializeToString(), fixed={"t": x})


# -- versions ------------------------------------------------------------------------------------
def test_softmax_ran_over_all_later_dims_before_version_13() -> None:
    x = torch.randn(2, 3, 4)
    flat = torch.softmax(x.reshape(2, 12), 1).reshape(2, 3, 4)
    torch.testing.assert_close(values(one("Softmax", [2, 3, 4], opset=11), x), flat)
    torch.testing.assert_close(values(one("Softmax", [2, 3, 4], opset=13), x), torch.softmax(x, -1))


@pytest.mark.parametrize(
    ("op", "opset", "attributes", "later", "tensors", "shape"),
    [
        ("Squeeze", 11, {"axes": [1]}, 13, [[1]], [2, 1, 3]),
        ("Unsqueeze", 11, {"axes": [0, 3]}, 13, [[0, 3]], [2, 3]),
        ("ReduceSum", 11, {"axes": [1], "keepdims": 0}, 13, [[1]], [2, 3]),
        ("ReduceMax", 13, {"axes": [0]}, 18, [[0]], [2, 3]),
        ("Clip", 6, {"min": -0.5, "max": 0.25}, 11, [np.float32(-0.5), np.float32(0.25)], [4, 3]),
        ("Slice", 9, {"starts": [1], "ends": [9], "axes": [1]}, 10, [[1], [9], [1]], [2, 3]),
        ("Pad", 10, {"pads": [0, 1, 1, 0], "value": 2.0}, 11, [[0, 1, 1, 0], F32(2)], [2, 3]),
        ("Upsample", 7, {"scales": [1.0, 1.0, 2.0, 3.0]}, 9, [F32([1, 1, 2, 3])], [1, 2, 3, 2]),
    ],
)  # fmt: skip
def test_attributes_that_became_inputs_say_the_same(
    op: str, opset: int, attributes: Any, later: int, tensors: Any, shape: Shape
) -> None:
    x = torch.randn(*(int(str(n)) for n in shape))
    before = values(one(op, shape, opset=opset, **attributes), x)
    kept = {k: v for k, v in attributes.items() if k == "keepdims"}
    names = [f"t{k}" for k in range(len(tensors))]
    weights = [weight(n, t) for n, t in zip(names, tensors, strict=True)]
    after = values(one(op, shape, opset=later, weights=weights, extra=names, **kept), x)
    torch.testing.assert_close(before, after)
    assert before.shape != x.shape or op == "Clip"


def test_version_6_broadcast_at_an_axis() -> None:
    x, z = torch.randn(2, 3, 4), torch.randn(3)
    found = values(one("Add", [2, 3, 4], [3], opset=6, broadcast=1, axis=1), x, z)
    torch.testing.assert_close(found, x + z[:, None])


# -- operators against torch ---------------------------------------------------------------------
@pytest.mark.parametrize("way", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_equal_torch(kind: str, way: str) -> None:
    both = way == "bidirectional"
    if kind == "GRU":
        net: Any = nn.GRU(3, 4, bidirectional=both)
    else:
        net = (
            nn.LSTM(3, 4, bidirectional=both)
            if kind == "LSTM"
            else nn.RNN(3, 4, bidirectional=both)
        )
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}[kind]
    ends = ["", "_reverse"] if both else [""]

    def gates(name: str) -> Any:
        t = [getattr(net, f"{name}_l0{end}").detach() for end in ends]
        return torch.stack([torch.cat([w.chunk(len(order))[g] for g in order]) for w in t]).numpy()

    biases = np.concatenate([gates("bias_ih"), gates("bias_hh")], 1)
    weights = [
        weight("W", gates("weight_ih")),
        weight("R", gates("weight_hh")),
        weight("B", biases),
    ]
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    outputs = ["Y", "Y_h", "Y_c"] if kind == "LSTM" else ["Y", "Y_h"]
    node = helper.make_node(
        kind, ["x", "W", "R", "B"], outputs, hidden_size=4, direction=way, **more
    )
    made = model([node], [value("x", [5, 2, 3])], [value(n, None) for n in outputs], weights)
    x = torch.randn(5, 2, 3)
    y, *last = values(made, x)
    with torch.no_grad():
        right, states = net(x.flip(0) if way == "reverse" else x)
    right = right.flip(0) if way == "reverse" else right
    torch.testing.assert_close(y.permute(0, 2, 1, 3).reshape(right.shape), right)
    for a, b in zip(last, states if kind == "LSTM" else [states], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("corners", [False, True])
def test_resampling_equals_torch(mode: str, corners: bool) -> None:
    how = "align_corners" if corners else "pytorch_half_pixel"
    source = one(
        "Resize", [1, 2, 4, 5], weights=[weight("n", np.int64([1, 2, 7, 3]))], extra=["", "", "n"],
        mode=mode, coordinate_transformation_mode=how,
    )  # fmt: skip
    x = torch.randn(1, 2, 4, 5)
    name = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    right = nn.functional.interpolate(x, (7, 3), mode=name, align_corners=corners)
    torch.testing.assert_close(values(source, x), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
def test_pooling_pads_unevenly_too(pads: list[int], ceil: int) -> None:
    x = torch.randn(1, 2, 7, 8)
    wide = nn.functional.pad(x, (pads[1], pads[3], pads[0], pads[2]), value=-math.inf)
    source = one(
        "MaxPool", [1, 2, 7, 8], kernel_shape=[3, 2], strides=[2, 3], pads=pads, ceil_mode=ceil
    )
    right = nn.functional.max_pool2d(wide, (3, 2), (2, 3), ceil_mode=bool(ceil))
    found = values(source, x)
    torch.testing.assert_close(found, right[..., : found.shape[2], : found.shape[3]])


def test_branches_and_loops_are_settled_or_chosen() -> None:
    def branch(name: str, op: str) -> Any:
        return helper.make_graph(
            [helper.make_node(op, ["x"], [name])], name, [], [value(name, [3])]
        )

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("t", "Exp"), else_branch=branch("e", "Neg")
    )
    kinds = [value("x", [3]), value("c", [], TensorProto.BOOL)]
    made = model([node], kinds, [value("y", [3])])
    x = torch.randn(3)
    for condition, right in ((True, x.exp()), (False, -x)):
        c = torch.tensor(condition)
        torch.testing.assert_close(values(made, x, c), right)
        torch.testing.assert_close(values(made, x, fixed={"c": c}), right)
    settled = load_onnx(made.SerializeToString(), fixed={"c": torch.tensor(False)})
    assert [n.op for n in settled.graph.nodes] == ["input", "neg"]

    kinds = [value("i", [], TensorProto.INT64), value("g", [], TensorProto.BOOL), value("a", [3])]
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Identity", ["g"], ["h"]),
         helper.make_node("Identity", ["b"], ["seen"])],
        "body", kinds, [value("h", [], TensorProto.BOOL), value("b", [3]), value("seen", [3])],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["n", "", "x"], ["y", "all"], body=body)
    made = model(
        [loop], [value("x", [3])], [value("y", [3]), value("all", [4, 3])],
        [weight("n", np.int64(4))],
    )  # fmt: skip
    y, seen = values(made, x)
    torch.testing.assert_close(y, 16 * x)
    torch.testing.assert_close(seen[2], 8 * x)


def test_functions_of_the_model_and_of_the_standard_are_expanded() -> None:
    own = helper.make_function(
        "local", "twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [
        helper.make_node("twice", ["x"], ["t"], domain="local"),
        helper.make_node("HannWindow", ["n"], ["w"]),
        helper.make_node("Mul", ["t", "w"], ["y"]),
    ]
    made = model(
        nodes, [value("x", [8])], [value("y", [8])], [weight("n", np.int64(8))],
        opsets=[helper.make_opsetid("local", 1)], functions=[own],
    )  # fmt: skip
    x = torch.randn(8)
    right = 2 * x * torch.hann_window(8, periodic=True)
    torch.testing.assert_close(values(made, x), right, rtol=1e-5, atol=1e-6)
    assert "HannWindow" not in ROWS


def test_positions_may_count_from_the_end_and_blocks_be_written() -> None:
    x, i = torch.randn(4, 3), np.int64([[-1, 0], [2, -4]])
    source = one("Gather", [4, 3], weights=[weight("i", i)], extra=["i"], axis=0)
    torch.testing.assert_close(values(source, x), x[torch.from_numpy(i)])
    source = one(
        "ScatterND", [4, 3], extra=["i", "u"],
        weights=[weight("i", np.int64([[1], [-1]])), weight("u", np.ones((2, 3)))],
    )  # fmt: skip
    captured = load_onnx(source)
    assert [f.target for f in captured.foreign] == ["aten.scatter.src"]
    right = x.clone()
    right[[1, 3]] = 1
    torch.testing.assert_close(captured.module(x), right)


def test_rows_are_operators_of_the_standard_or_of_a_named_domain() -> None:
    names = {s.name for s in onnx.defs.get_all_schemas_with_history()}
    own = {"SimplifiedLayerNormalization"}  # what ONNX Runtime adds to the standard's domain
    assert {n for n in ROWS if "." not in n} <= names | own
    assert all(re.fullmatch(r"com\.microsoft\.\w+", n) for n in ROWS if "." in n)


# -- bad files -----------------------------------------------------------------------------------
def test_a_missing_file_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "here.onnx").write_bytes(b"")
    message = refusal(tmp_path / "gone.onnx")
    assert "no such file" in message
    assert "gone.onnx" in message
    assert "here.onnx" in message
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not a model at all", b"\x00" * 64, b"\xff" * 9])
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    assert "no ONNX model" in refusal(path)
    assert "bad.onnx" in refusal(path)


def test_every_cut_and_every_flipped_byte_is_answered_clearly() -> None:
    source = net_model(Net().eval()).SerializeToString()
    for end in range(0, len(source) - 1, 13):
        assert refusal(source[:end])
    draw = random.Random(0)
    for _ in range(150):
        damaged = bytearray(source)
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        with contextlib.suppress(CaptureError):
            assert load_onnx(bytes(damaged)).graph.outputs


def test_weights_in_a_file_that_is_missing_are_named(tmp_path: Path) -> None:
    made = net_model(Net().eval())
    path = tmp_path / "net.onnx"
    onnx.save(made, str(path), save_as_external_data=True, location="net.bin", size_threshold=0)
    assert load_onnx(path).parameters["head.bias"].shape == (5,)
    (tmp_path / "net.bin").unlink()
    assert "net.bin" in refusal(path)
    assert "path of the model" in refusal(path.read_bytes())


def test_weights_of_another_size_than_they_say_are_refused() -> None:
    made = net_model(Net().eval())
    made.graph.initializer[0].dims[0] -= 1
    message = refusal(made.SerializeToString())
    assert "conv.weight" in message
    assert "other data" in message


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "whet[onnx]" in refusal(b"anything")


def test_an_invalid_model_is_refused_with_the_reason() -> None:
    made = model([helper.make_node("Relu", ["nowhere"], ["y"])], [], [value("y", [3])])
    assert "nowhere" in refusal(made.SerializeToString())


def test_outputs_must_be_what_the_file_says() -> None:
    message = refusal(one("Relu", [2, 3], out=[3, 2]))
    assert "not what the file says" in message


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (one("NonZero", [3]), ["NonZero", "opset 17", "does not know", "y"]),
        (one("Strange", [3], domain="my.own"), ["my.own.Strange", "opset 1"]),
        (one("RandomNormalLike", [3]), ["RandomNormalLike"]),
        (one("MaxPool", [1, 1, 4, 4, 4, 4], kernel_shape=[2, 2, 2, 2]), ["MaxPool", "4 dims"]),
        (one("Relu", [3], opset=5), ["another version", "6 to"]),
        (one("Transpose", [2, 3], perm=[0, 5]), ["Transpose", "axis 5"]),
        (one("Add", [2], [3]), ["Add"]),
        (one("MatMul", [2, 3], [4, 5]), ["MatMul"]),
    ],
)  # fmt: skip
def test_what_has_no_way_into_the_table_is_refused_by_name(source: bytes, parts: list[str]) -> None:
    message = refusal(source)
    assert all(part in message for part in parts)
    assert "try:" in message
