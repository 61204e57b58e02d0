"""ONNX's node tests: most pass, the rest is refused with a reason, none is wrong."""

from __future__ import annotations

import pytest

from tests.peers.onnx_nodes import Outcome, attempt, cases, table

LEAST = 0.9  # of the cases with float32 inputs and fixed shapes; measured: see bench/results


def judged(outcomes: list[Outcome], least: float) -> None:
    wrong = [f"{o.case.name}: {o.reason}" for o in outcomes if o.kind == "wrong"]
    assert not wrong, "\n".join(wrong)
    silent = [o.case.name for o in outcomes if not o.passed and not o.reason]
    assert not silent
    counted = [o for o in outcomes if o.case.counts]
    assert sum(o.passed for o in counted) >= least * len(counted), table(outcomes)


def test_every_fifth_node_test() -> None:
    judged([attempt(c) for k, c in enumerate(cases()) if k % 5 == 0], LEAST)


@pytest.mark.full
def test_every_node_test() -> None:
    outcomes = [attempt(c) for c in cases()]
    judged(outcomes, LEAST)
    assert len(outcomes) > 1500
