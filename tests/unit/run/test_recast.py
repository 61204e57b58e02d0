"""Convolutions in blocks: by rules, where kernels are faster, in three groups each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.backend.lowered import body_nodes
from whet.capture.torch import capture
from whet.fuse.seed import seed
from whet.ir.graph import Graph
from whet.ir.interp import evaluate
from whet.machine import Machine
from whet.rewrite.certificate import verify_certificate
from whet.rewrite.prove import Prover
from whet.run import recast, tuned
from whet.run.calling import Runner
from whet.run.choice import Chooser
from whet.run.native import native
from whet.run.recast import faster, regrouped, weights
from whet.run.rewriting import Rewritten
from whet.run.tuned import Tuner
from whet.store import Store


class Net(nn.Module):
    """An even and an odd image, with and without margins, and what must stay as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, bias=False)
        self.strided = nn.Conv2d(8, 8, 3, stride=2)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.pointwise = nn.Conv2d(8, 4, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y = F.relu(self.second(y) + y[:, :, 1:-1, 1:-1])
        return self.pointwise(F.relu(self.grouped(self.strided(y))))


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover()


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def graph_of(net: Net, size: int) -> tuple[Graph, Tensor]:
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        return capture(net, (x,)).graph, x


@pytest.mark.parametrize("size", [14, 17])
def test_rules_lead_to_an_equal_graph(net: Net, size: int, prover: Prover) -> None:
    graph, x = graph_of(net, size)
    names = [w.name for w in weights(graph, prover)]
    assert names == ["first.weight", "second.weight"]
    found = recast.recast(graph, weights(graph, prover), prover)
    assert len(found.sites) == 2
    feeds = {n.name: net.state_dict()[n.name].double() for n in graph.parameters}
    feeds[graph.inputs[0].name] = x.double()
    (want,), (got,) = evaluate(graph, feeds), evaluate(found.graph, feeds)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    lines = [str(step) for step, *_ in found.steps]
    assert verify_certificate(graph, lines).digest == found.graph.digest


def test_each_site_is_three_groups(net: Net, prover: Prover) -> None:
    graph, _ = graph_of(net, 14)
    before = seed(graph, body_nodes(graph))
    found = recast.recast(graph, weights(graph, prover), prover)
    after = regrouped(before, found)
    assert len(after.groups) == len(before.groups) + 2 * len(found.sites)
    body = {n for n in body_nodes(found.graph) if not n.is_leaf}
    assert {n for g in after.groups for n in g.nodes} == body
    for site in found.sites:
        owners = {after.owner[n] for n in (*site.before, *site.product, *site.after)
                  if n in after.owner}  # fmt: skip
        assert len(owners) == 3


def tuner(store: Store) -> Tuner:
    machine = Machine.detect()
    return Tuner(store, machine, Chooser(store, machine, False), 1)


@torch.no_grad()
@pytest.mark.parametrize("clear", [100.0, 0.0])
def test_kernels_decide(
    net: Net, prover: Prover, monkeypatch: pytest.MonkeyPatch, clear: float
) -> None:
    """Where blocks are said to be faster the program computes in blocks, and the same."""
    monkeypatch.setattr(tuned, "PASS_S", 0.0)
    monkeypatch.setattr(recast, "CLEAR", clear)
    graph, x = graph_of(net, 14)
    t = tuner(Store.memory())
    found = faster(Rewritten(graph), seed(graph, body_nodes(graph)), t, prover)
    if not clear:
        assert found is None
        return
    assert found is not None
    best, groups = found
    assert {r.rule for r in best.rows} >= {"convolution in blocks of 2 with bias"}
    assert best.before is not None
    values = {n: p.detach() for n, p in net.state_dict().items()}
    built, lowered = native(best.graph, t.choose, values, groups, t)
    run = Runner.of(built).bind(lowered.derive(values))
    torch.testing.assert_close(run([x])[0], net(x), rtol=1e-4, atol=1e-5)


def test_nothing_to_do_is_nothing_tried(prover: Prover) -> None:
    with torch.no_grad():
        graph = capture(nn.Linear(4, 4), (torch.randn(2, 4),)).graph
    t = tuner(Store.memory())
    assert faster(Rewritten(graph), seed(graph, body_nodes(graph)), t, prover) is None
    assert t.measured == 0


def test_half_precision_is_left_alone(prover: Prover) -> None:
    model = nn.Conv2d(4, 8, 3, padding=1).bfloat16()
    with torch.no_grad():
        graph = capture(model, (torch.randn(1, 4, 8, 8, dtype=torch.bfloat16),)).graph
    assert weights(graph, prover) == []
