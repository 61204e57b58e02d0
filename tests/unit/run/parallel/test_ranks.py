"""Many ranks that only pretend: what is issued is what was predicted, count and bytes."""

from __future__ import annotations

import torch

from tests.plans import Plan, planned
from whet.parallel.pipeline import orders
from whet.parallel.traffic import predicted
from whet.run.parallel.session import Session
from whet.run.parallel.torchdist import Issued, pretended
from whet.run.parallel.watch import disagreement


class Silent:
    """A watch without a store."""

    def __init__(self, rank, size):
        self.rank, self.size, self.step = rank, size, 0

    def note(self, what):
        pass

    def computing(self):
        pass


def test_a_thousand_ranks_issue_what_the_plan_predicts():
    plan = planned("dlrm", Plan(data=512, tensor=2, style="tokens", zero=2), "float32", 1024)
    assert plan.program.ranks == 1024
    with pretended(1024):
        session = Session(
            plan.program, orders(plan.placed), plan.training.wholes(),
            lambda p: torch.optim.SGD(p, lr=0.1), Silent(0, 1024),
        )  # fmt: skip
        step = plan.training
        with Issued() as issued:
            session.step(step.feeds(step.inputs, step.targets))
    assert issued.counts == predicted(plan.placed, 0)
    assert {size for _, size, _ in issued.counts} >= {2, 512}
    assert sum(issued.counts.values()) > 20


def test_the_odd_one_of_three_replicas_is_named():
    rows = [{"w (0,)": (1.0, 4.0)}, {"w (0,)": (1.0, 4.0)}, {"w (0,)": (1.5, 4.0)}]
    assert disagreement(rows, 1e-6) == "rank 2 diverges: its w differs from that of its replicas"
    assert disagreement(rows[:2], 1e-6) is None
    two = {"v (0,)": (3.0, 4.0), "w (0,)": (1.5, 4.0)}, {"v (0,)": (3.0, 4.0), "w (0,)": (1.0, 4.0)}
    for pair in (two, two[::-1]):
        assert disagreement(pair, 1e-6) == "ranks 0 and 1 diverge: they hold different w"
    rows[1] = {"w (0,)": (float("nan"), 4.0)}
    assert disagreement(rows, 1e-6) == "rank 1 diverges: w is no number any more"
