"""Pages of docs/ about kernels, run: what they print is what they show."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("page", "shown"), [("kernels.md", 3), ("tuning.md", 3), ("gpu.md", 2)])
def test_the_page_runs(page: str, shown: int) -> None:
    names: dict[str, object] = {}
    printed, compared = "", 0
    for kind, block in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if kind == "text":
            assert printed == block
            compared += 1
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, page, "exec"), names)
        printed = out.getvalue()
    assert compared == shown
