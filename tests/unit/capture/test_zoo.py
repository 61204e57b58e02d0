"""The zoo: alive numbers, equal seeds, traceable at every size, and the sizes it claims."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from whet.capture import zoo
from whet.errors import CaptureError

NAMES = zoo.names()

# fmt: off
# Full sizes: parameters in MB (float32) and GFLOP of the matmuls and convolutions, as counted once.
SIZES = {
    # name            MB       GFLOP
    "resnet50":      (102.23,  8.178),
    "resnext50":     (100.12,  8.461),
    "nasnet_a":      ( 17.98,  3.500),
    "inception_v3":  ( 95.34, 11.426),
    "squeezenet":    (  4.94,  0.698),
    "mobilenet_v2":  ( 14.02,  0.602),
    "bert_base":     (435.57, 22.347),
    "bert_1024":     (530.20, 13.019),
    "vit_b16":       (346.27, 35.128),
    "llama_prefill": (394.33, 23.622),
    "llama_decode":  (394.33,  0.197),
    "moe":           (134.46,  4.297),
    "dlrm":          ( 71.50,  0.328),
    "nasrnn":        ( 83.89,  0.0419),
    "nasrnn_shared": ( 16.78,  0.0419),
    "lstm":          ( 16.81,  0.1342),
    "memchain":      (  0.07,  0.0),
}
# fmt: on


def outputs(model: zoo.ZooModel) -> tuple[Tensor, ...]:
    with torch.no_grad():
        answer = model.module(*model.inputs)
    return answer if isinstance(answer, tuple) else (answer,)


def relative(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    return max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(got, want, strict=True)
    )


def test_the_zoo_holds_the_seventeen_models() -> None:
    assert set(NAMES) == set(SIZES)
    assert len(NAMES) == 17


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_alive(name: str) -> None:
    for y in outputs(zoo.load(name, scale="small")):
        assert y.isfinite().all()
        assert 0.01 < y.std() < 20
        assert y.abs().max() < 100


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_models(name: str) -> None:
    first = zoo.load(name, seed=3, scale="small")
    again = zoo.load(name, seed=3, scale="small")
    other = zoo.load(name, seed=4, scale="small")
    assert not first.module.training
    weights, same = first.module.state_dict(), again.module.state_dict()
    torch.testing.assert_close(weights, same, rtol=0, atol=0)
    torch.testing.assert_close(outputs(first), outputs(again), rtol=0, atol=0)
    assert relative(outputs(other), outputs(first)) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_float64_agrees_and_half_precision_runs(name: str) -> None:
    single = outputs(zoo.load(name, scale="small"))
    double = outputs(zoo.load(name, scale="small", dtype=torch.float64))
    half = outputs(zoo.load(name, scale="small", dtype=torch.bfloat16))
    assert {y.dtype for y in double} == {torch.float64}
    assert {y.dtype for y in half} == {torch.bfloat16}
    assert relative(single, double) < 1e-5
    assert relative(half, double) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_small_models_export(name: str) -> None:
    model = zoo.load(name, scale="small")
    program = torch.export.export(model.module, model.inputs, strict=False)
    traced = dataclasses.replace(model, module=program.module())
    assert relative(outputs(traced), outputs(model)) < 1e-6


def test_every_norm_really_scales_and_shifts() -> None:
    module = zoo.load("resnet50", scale="small").module
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert values.std() > 0.01
        assert norm.running_var.min() > 0.4


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    want = torch.rand(4)
    torch.manual_seed(5)
    zoo.load("bert_base", seed=9, scale="small")
    torch.testing.assert_close(torch.rand(4), want, rtol=0, atol=0)


def test_mixture_uses_the_two_best_experts_of_each_token() -> None:
    """A dead expert changes just the tokens that the router gives to it: two of `experts` each."""
    model = zoo.load("moe", scale="small")
    layer = model.module.get_submodule("layers.0")
    x = model.inputs[0]
    changed = torch.zeros(len(x), dtype=torch.int64)
    with torch.no_grad():
        before = layer(x)
        for expert in layer.get_submodule("experts").children():
            saved = {name: value.clone() for name, value in expert.state_dict().items()}
            for parameter in expert.parameters():
                parameter.zero_()
            changed += (layer(x) != before).any(dim=-1)
            expert.load_state_dict(saved)
    assert changed.tolist() == [2] * len(x)


def test_decode_continues_what_prefill_read() -> None:
    prefill = zoo.load("llama_prefill", scale="small")
    (ids,) = prefill.inputs
    with torch.no_grad():
        whole, keys, values = prefill.module(ids)
        last, key, value = prefill.module(ids[:, -1:], keys[..., :-1, :], values[..., :-1, :])
    torch.testing.assert_close(last, whole[:, -1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(key, keys[..., -1:, :], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value, values[..., -1:, :], rtol=1e-4, atol=1e-5)


def test_spelled_attention_is_the_library_call() -> None:
    library, spelled = (zoo.load(name, scale="small") for name in ("bert_base", "bert_1024"))
    spelled.module.load_state_dict(library.module.state_dict())
    with torch.no_grad():
        want = library.module(*library.inputs)
        got = spelled.module(*library.inputs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_full_sizes(name: str) -> None:
    """Counted on the meta device: nothing is allocated."""
    with torch.device("meta"):
        model = zoo.load(name)
    megabytes = sum(4 * p.numel() for p in model.module.parameters()) / 1e6
    with FlopCounterMode(display=False) as counter:
        outputs(model)
    want = SIZES[name]
    assert megabytes == pytest.approx(want[0], rel=0.005, abs=0.005)
    assert counter.get_total_flops() / 1e9 == pytest.approx(want[1], rel=0.005, abs=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_full_sizes_run_and_export(name: str) -> None:
    model = zoo.load(name)
    for y in outputs(model):
        assert y.isfinite().all()
        assert 0.01 < y.std() < 30
    program = torch.export.export(model.module, model.inputs, strict=False)
    assert len(program.graph_signature.user_outputs) == len(outputs(model))


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet", "resnet50"), ("bert", "bert_base"), ("lstn", "lstm"), ("llama", "llama_decode")],
)
def test_an_unknown_name_offers_the_nearest(name: str, near: str) -> None:
    with pytest.raises(CaptureError, match="the zoo has no model named") as caught:
        zoo.load(name)
    assert f"got:      '{name}'" in str(caught.value)
    assert "did you mean" in str(caught.value)
    assert near in str(caught.value.hint)


def test_a_name_like_no_other_lists_them_all() -> None:
    with pytest.raises(CaptureError) as caught:
        zoo.load("qqqq")
    assert caught.value.hint is None
    assert all(name in str(caught.value) for name in NAMES)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(CaptureError, match="two scales"):
        zoo.load("lstm", scale="tiny")  # type: ignore[arg-type]
