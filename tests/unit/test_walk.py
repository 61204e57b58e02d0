"""docs/walk.md, executed from top to bottom."""

from __future__ import annotations

import importlib.util
import linecache
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "walk.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_walk_holds(tmp_path, monkeypatch):
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) >= 8
    file = tmp_path / "walk.py"
    file.write_text("\n\n".join(blocks), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("walk_page", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "walk_page", module)
    linecache.checkcache(str(file))
    spec.loader.exec_module(module)
    assert module.best.steps
