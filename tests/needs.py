"""What a test cannot do without, where not every platform has it."""

from __future__ import annotations

import importlib.util

import pytest

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is there for Linux alone"
)
