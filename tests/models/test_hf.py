"""The transformers families: they run, their numbers are alive, and torch.export takes them."""

from __future__ import annotations

import pytest
import torch

from tests.models import hf

FAMILIES = hf.families()


def test_there_are_eight_families() -> None:
    assert len(FAMILIES) == 8


@pytest.mark.parametrize("name", FAMILIES)
def test_family_exports(name: str) -> None:
    module, inputs = FAMILIES[name]()
    want = hf.run(module, inputs)
    assert want.isfinite().all()
    assert 0.1 < want.std() < 10
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
    program = torch.export.export(module, args, kwargs, strict=False)
    torch.testing.assert_close(hf.run(program.module(), inputs), want)
