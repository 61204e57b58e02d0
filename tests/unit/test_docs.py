"""What the documents say holds: examples run, links lead somewhere, the shown verbs exist."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if p.is_file()]
MODULES = [p for p in sorted(ROOT.glob("whet/**/*.py")) if ">>>" in p.read_text(encoding="utf-8")]

FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+://|#|mailto:)([^)#\s]+)")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def links(text: str) -> list[str]:
    """Files that a page refers to: no addresses, no places within the page, nothing in code."""
    return LINK.findall(FENCED.sub("", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    found = links(page.read_text(encoding="utf-8"))
    assert not [link for link in found if not (page.parent / link).exists()]


def test_links_are_found():
    text = "[a](docs/a.md#part), [b](https://b.example/b.md), [c](#c)\n```\nd[e](f)\n```\n"
    assert links(text) == ["docs/a.md"]


@pytest.mark.parametrize("file", MODULES, ids=dotted)
def test_examples_in_docstrings(file):
    module = importlib.import_module(dotted(file))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed, "the run above says expected / got"


def test_examples_in_the_readme():
    """Its Python runs from top to bottom, given what it presumes: a model and an example."""
    if importlib.util.find_spec("whet.optimize") is None:
        pytest.skip("no whet.optimize")
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))
    example = torch.randn(4, 8)
    names = {"model": model.eval(), "example": example}
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 2
    for block in blocks:
        exec(block, names)
    with torch.no_grad():
        torch.testing.assert_close(names["y"], model(example))
        torch.testing.assert_close(names["fast"](example), model(example))


def test_the_readme_shows_verbs_that_exist(capsys):
    if importlib.util.find_spec("whet.cli") is None:
        pytest.skip("no whet.cli")
    from whet.cli import main

    shown = set(re.findall(r"`whet (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"optimize", "verify", "bench", "demo"} <= shown
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert not [verb for verb in shown if not re.search(rf"\b{verb}\b", text)]
