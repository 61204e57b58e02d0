"""Training steps: the graph's loss and gradients are autograd's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from whet.backend.library import run_opaque
from whet.capture import zoo
from whet.capture.joint import Joint, capture_joint
from whet.errors import CaptureError
from whet.ir.interp import FLOAT64, evaluate_all


def squares(answer: object) -> Tensor:
    leaves = [t for t in pytree.tree_leaves(answer) if t.is_floating_point()]
    return torch.stack([t.square().sum() for t in leaves]).sum()


def agree(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Joint, dict[str, Tensor]]:
    """Loss and gradients are autograd's; the joint and the updated statistics come back."""
    joint = capture_joint(module, inputs, squares)
    feeds = {k: v.detach().clone() for k, v in joint.feeds(inputs).items()}
    (loss, *gradients), updated = evaluate_all(joint.graph, feeds, FLOAT64, run_opaque)
    want = squares(module(*inputs))
    want.backward()
    torch.testing.assert_close(loss, want.detach(), rtol=1e-12, atol=0)
    wanted = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert set(joint.gradients) == set(wanted)
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in zip(joint.gradients, gradients, strict=True):
        assert float((gradient - wanted[name]).abs().max()) <= 1e-12 * scale, name
    return joint, updated


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "squeezenet", "bert_base", "llama_prefill", "moe", "dlrm", "lstm", "memchain"],
)
def test_zoo_model_trains_as_in_torch(name: str) -> None:
    model = zoo.load(name, scale="small", dtype=torch.float64)
    joint, _ = agree(model.module, model.inputs)
    assert {f.target for f in joint.foreign} <= {"aten.topk.default"}


@pytest.mark.full
@pytest.mark.parametrize("name", zoo.names())
def test_every_zoo_model_trains_as_in_torch(name: str) -> None:
    model = zoo.load(name, scale="small", dtype=torch.float64)
    joint, _ = agree(model.module, model.inputs)
    assert {f.target for f in joint.foreign} <= {"aten.topk.default"}


def test_backward_calls_are_derived_gradients() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.MaxPool2d(2))
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    joint, _ = agree(module.double(), (x,))
    found = {n.op for n in joint.graph.nodes if "~" in n.op}
    assert found == {"conv2d~w", "group_norm~x", "group_norm~gamma", "gelu~x", "max_pool2d~x"}
    assert joint.foreign == ()


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.3), nn.Hardtanh(-0.5, 0.7), nn.Tanh(), nn.Sigmoid(),
    nn.SiLU(), nn.Softplus(2, 1), nn.GELU("tanh"), nn.Hardswish(), nn.ELU(0.7), nn.CELU(0.7),
    nn.Softmax(1), nn.LogSoftmax(1), nn.Mish(), nn.LayerNorm(5), nn.PReLU(), nn.BatchNorm1d(5),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda m: type(m).__name__)
def test_activation(activation: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3)).double()
    joint, _ = agree(module.eval(), (torch.randn(6, 4, dtype=torch.float64),))
    assert joint.foreign == ()


class Various(nn.Module):
    """Calls whose gradients move elements or count windows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(2, 4, 3, stride=2)
        self.table = nn.Embedding(9, 4, padding_idx=0)
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor, ids: Tensor) -> list[Tensor]:
        y = self.conv(x)
        rows, columns = torch.tensor([0, 2, -1]), torch.tensor([1, 1, 3])
        return [
            F.avg_pool2d(y, 2),
            F.adaptive_avg_pool2d(y, 3),
            self.table(ids),
            self.weight[rows, columns],
            self.weight[:, 1:5:2].cumsum(1),
            self.weight[2].gather(0, ids[0]),
        ]


def test_gradients_of_movement_and_pooling() -> None:
    x, ids = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.tensor([[1, 0, 5], [5, 5, 2]])
    joint, _ = agree(Various().double(), (x, ids))
    assert joint.foreign == ()


def test_statistics_in_training_are_updates() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).double().train()
    joint, updated = agree(module, (torch.randn(6, 4, dtype=torch.float64),))
    assert joint.foreign == ()
    assert set(updated) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name, value in updated.items():
        torch.testing.assert_close(value, module.get_buffer(name))


def test_loss_that_is_no_number() -> None:
    with pytest.raises(CaptureError, match="one number"):
        capture_joint(nn.Linear(4, 4), (torch.randn(2, 4),), lambda y: y)
