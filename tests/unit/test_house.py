"""House rules that no linter knows.

Files stay short and are named for what they hold, an operator is known by name to the operator
table alone, errors are whet's own, and the environment is asked for two variables.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from whet.ir.functions import FUNCTIONS
from whet.ir.ops import TABLE

WHET = Path(__file__).parents[2] / "whet"
FILES = sorted(WHET.rglob("*.py"))

LONGEST = 500  # lines
NAMELESS = re.compile(r"(utils?|helpers?|common|misc|stuff|_part\d+)$")
VARIABLES = {"WHET", "WHET_CACHE"}

# Everything here is derived from operator records, so it has no reason to know an operator's name.
DERIVED = ("kernel/", "fuse/", "parallel/", "backend/cpp")

# Operators whose names are ordinary words too, in the record grammar, in schedules, in C or Python:
# naming one of these says nothing about the operator. Nor does naming a scalar function.
ORDINARY = set(
    """
    add amax amin arange cast clamp concat cumsum div eq expand flip full gather ge gt le linear
    lt mean mul ne neg pad permute pow prod reciprocal remainder reshape roll select slice split
    square stack sub sum var where
    """.split()
)


def name(file: Path) -> str:
    return file.relative_to(WHET).as_posix()


def words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every identifier and every string of a module but its docstrings."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docs:
                yield line, text
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text):
                yield line, text
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text) | ast.keyword(arg=str(text)):
                yield line, text


def operators_named(source: str, operators: set[str]) -> list[str]:
    """`line: name` for each distinctive operator that a module names, alone or within a word."""
    distinctive = sorted(operators - ORDINARY, key=len, reverse=True)
    if not distinctive:
        return []
    one = re.compile(rf"(?<![a-z0-9])({'|'.join(map(re.escape, distinctive))})(?![a-z0-9])")
    return [
        f"{line}: {hit}"
        for line, text in words(ast.parse(source))
        for hit in one.findall(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower())
    ]


def test_the_house_is_found():
    assert WHET / "errors.py" in FILES


def test_files_are_short():
    lengths = {name(f): len(f.read_text(encoding="utf-8").splitlines()) for f in FILES}
    long = {file: lines for file, lines in lengths.items() if lines > LONGEST}
    assert not long, f"longer than {LONGEST} lines, split them by noun: {long}"


def test_files_are_named_for_what_they_hold():
    assert not [name(f) for f in FILES if NAMELESS.search(f.stem)]


def test_operators_are_named_by_the_table_alone():
    known = TABLE.keys() - FUNCTIONS.keys()
    assert {"conv2d", "matmul", "softmax"} <= known
    faults = [
        f"whet/{name(f)}:{hit}"
        for f in FILES
        if name(f).startswith(DERIVED)
        for hit in operators_named(f.read_text(encoding="utf-8"), known)
    ]
    assert not faults, "derive it from the record instead:\n" + "\n".join(faults)


@pytest.mark.parametrize(
    ("source", "hits"),
    [
        ("if node.op == 'conv2d': pass", ["1: conv2d"]),
        ("def lower_matmul(x): pass", ["1: matmul"]),
        ("x = LayerNorm()", ["1: layer_norm"]),
        ("f(softmax=1)", ["1: softmax"]),
        ("'''conv2d, for example'''", []),
        ("def f():\n    '''conv2d'''", []),
        ("# conv2d\nconvolve = matmuls", []),
        ("sum(x, split)", []),
    ],
)
def test_an_operator_name_is_found(source, hits):
    known = {"conv2d", "matmul", "layer_norm", "softmax", "sum", "split"}
    assert operators_named(source, known) == hits


def test_public_errors_are_whet_errors():
    """What a user can meet is called an Error and has the four rows; signals within are free."""
    builtin = {"BaseException", "Exception", "LookupError", "OSError", "RuntimeError"}
    builtin |= {"ArithmeticError", "AssertionError", "KeyError", "TypeError", "ValueError"}
    faults = [
        f"whet/{name(f)}:{node.lineno} {node.name}"
        for f in FILES
        if name(f) != "errors.py"
        for node in ast.walk(ast.parse(f.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and re.fullmatch(r"[A-Z]\w*Error", node.name)
        if {b.id for b in node.bases if isinstance(b, ast.Name)} & builtin
    ]
    assert not faults, "derive from whet.errors.WhetError:\n" + "\n".join(faults)


def test_two_environment_variables():
    named = {
        text
        for f in FILES
        for _, text in words(ast.parse(f.read_text(encoding="utf-8")))
        if re.fullmatch(r"WHET(_[A-Z]+)*", text)
    }
    assert named <= VARIABLES, f"{named - VARIABLES}: an argument would say it better"
