"""The layers of whet: imports go only downward, and siblings never import each other.

The whole import matrix follows from one table. Imports for type checkers and imports inside
functions count as well: they say what a module knows about.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Bottom first. What stands in one line are siblings.
LAYERS = """
    errors
    ir
    search | machine | store
    rewrite | fuse | kernel | parallel
    backend
    plan
    run
    capture
    optimize
    dynamo | report
    cli
    __init__ | __main__
"""
LEVEL = {
    name.strip(): level
    for level, line in enumerate(LAYERS.strip().splitlines())
    for name in line.split("|")
}

# torch is an array library to the interpreter, and otherwise belongs to the ways in and out.
TORCH = ("ir/interp", "backend/", "run/", "capture/", "optimize.py", "dynamo.py")

# Each is known to one file only, and imported where it is used: none slows down `import whet`, and
# each but the solver may be absent.
ONE_FILE = (
    "highspy",
    "lightgbm",
    "onnx",
    "onnxruntime",
    "openvino",
    "transformers",
    "triton",
    "z3",
)


@dataclass(frozen=True, slots=True)
class Import:
    """`file`, relative to the package, imports the dotted `module` in `line`."""

    file: str
    line: int
    module: str
    lazy: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"whet/{self.file}:{self.line} imports {self.module}"


def imports(root: Path) -> list[Import]:
    """Every import under `root`/whet, with relative ones resolved."""
    package = root / "whet"
    return [
        Import(file.relative_to(package).as_posix(), line, module, lazy)
        for file in sorted(package.rglob("*.py"))
        for line, module, lazy in imports_of(file, root)
    ]


def imports_of(file: Path, root: Path) -> Iterator[tuple[int, str, bool]]:
    parts = file.relative_to(root).with_suffix("").parts
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    inner = set(
        itertools.chain.from_iterable(
            ast.walk(node) for node in ast.walk(tree) if is_lazy_scope(node)
        )
    )
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                base = (
                    [*parts[: len(parts) - level], *filter(None, [module])] if level else [module]
                )
                prefix = ".".join(base)
                # `from whet import ir` names a module, `from whet.ir import Node` need not.
                modules = [f"whet.{a.name}" for a in names] if prefix == "whet" else [prefix]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                modules = [name]
            case _:
                continue
        for module in modules:
            yield node.lineno, module, node in inner


def is_lazy_scope(node: ast.AST) -> bool:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return True
    return False


def room(path: str) -> str:
    """The part of the house that a file belongs to: `ir/graph.py` to `ir`, `cli.py` to `cli`."""
    return path.partition("/")[0].removesuffix(".py")


def unplaced(found: list[Import]) -> list[str]:
    rooms = {room(i.file) for i in found}
    return [
        f"whet/{name} is in no layer: place it in LAYERS" for name in sorted(rooms - LEVEL.keys())
    ]


def upward(found: list[Import]) -> list[str]:
    """Imports of a sibling or of a higher layer."""
    faults = []
    for i in found:
        if i.top != "whet":
            continue
        source = room(i.file)
        target = i.module.split(".")[1] if "." in i.module else "__init__"
        # `from whet import optimize` means the function that the package itself offers.
        level = LEVEL.get(target, LEVEL["__init__"])
        if source != target and source in LEVEL and level >= LEVEL[source]:
            faults.append(f"{i}: {source} may import only what is below it")
    return faults


def strays(found: list[Import]) -> list[str]:
    """torch where it does not belong, and optional packages in two files or outside a function."""
    faults = [
        f"{i}: torch belongs to {', '.join(TORCH)}"
        for i in found
        if i.top == "torch" and not i.file.startswith(TORCH)
    ]
    for package in ONE_FILE:
        uses = [i for i in found if i.top == package]
        faults += [f"{i}: import it inside a function" for i in uses if not i.lazy]
        if len(files := sorted({i.file for i in uses})) > 1:
            faults.append(f"{package} is imported by {', '.join(files)}: one file may know it")
    return faults


CHECKS = (unplaced, upward, strays)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_house_keeps_its_layers(check):
    found = imports(ROOT)
    assert any(i.top == "whet" for i in found), "no import found: the test looks in the wrong place"
    assert not (faults := check(found)), "\n".join(faults)


ALLOWED = [
    ("ir/graph.py", "from whet.errors import GraphError"),
    ("ir/graph.py", "from whet.ir.types import DType"),
    ("ir/graph.py", "from .types import DType"),
    ("ir/interp_field.py", "import torch"),
    ("run/program.py", "import torch.nn as nn\nfrom whet import plan"),
    ("rewrite/prove.py", "def prove():\n    import z3"),
    ("rewrite/prove.py", "if TYPE_CHECKING:\n    import z3"),
    ("cli.py", "from whet.report import table\nfrom whet import optimize"),
    ("__init__.py", "from whet.optimize import optimize"),
]
REFUSED = [
    ("ir/graph.py", "from whet.search import loop", "may import only what is below"),
    ("ir/graph.py", "from ..search import loop", "may import only what is below"),
    ("ir/graph.py", "def f():\n    import whet.store", "may import only what is below"),
    ("ir/graph.py", "import whet", "may import only what is below"),
    ("ir/graph.py", "import_module('whet.store')", "may import only what is below"),
    ("fuse/space.py", "from whet.kernel import lower", "may import only what is below"),
    (
        "fuse/space.py",
        "if TYPE_CHECKING:\n    from whet import plan",
        "may import only what is below",
    ),
    ("run/program.py", "from whet.capture import zoo", "may import only what is below"),
    ("search/loop.py", "from whet import optimize", "may import only what is below"),
    ("search/loop.py", "from torch import nn", "torch belongs to"),
    ("ir/graph.py", "def f():\n    import torch", "torch belongs to"),
    ("rewrite/prove.py", "import z3", "inside a function"),
    ("rewrite/prove.py", "def f():\n    import onnx", "onnx is imported by capture/onnx.py"),
    ("helpers.py", "import ast", "in no layer"),
]


@pytest.fixture
def house(tmp_path):
    """A small house with one module of whet, and an importer that knows onnx."""

    def build(path: str, text: str) -> list[str]:
        for name, body in (("capture/onnx.py", "def load():\n    import onnx"), (path, text)):
            file = tmp_path / "whet" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body)
        found = imports(tmp_path)
        return [fault for check in CHECKS for fault in check(found)]

    return build


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_allowed(house, path, text):
    assert house(path, text) == []


@pytest.mark.parametrize(("path", "text", "fault"), REFUSED)
def test_refused(house, path, text, fault):
    faults = house(path, text)
    assert len(faults) == 1
    assert fault in faults[0]


def test_every_pair_of_rooms():
    """The matrix itself: a room may import exactly the rooms of lower layers."""
    for a, b in itertools.permutations(LEVEL, 2):
        found = [Import(f"{a}.py", 1, f"whet.{b}", lazy=False)]
        assert bool(upward(found)) == (LEVEL[b] >= LEVEL[a])
