"""Graphs as text, and back.

    n0 = input(name='x', type=type('f32', (2, 8)))              # f32[2, 8]
    n1 = parameter(name='w', type=type('f32', (4, 8)))          # f32[4, 8]
    n2 = linear(n0, n1, None)                                   # f32[2, 4]    @ model.py:7: fc(x)
    return graph(inputs=(n0,), outputs=(n2,), updates=())

One line a node, operands first, notes behind a tab (no attribute's text holds one). Types of
operators are inferred again when the text is read and must agree with the comment. A gradient
`conv2d~w` is written `conv2d.w`. The text is
Python's syntax, read by `ast` and never executed; data of
constants travels beside it. `parse_graph(print_graph(g)) == g` for every graph.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping

from whet.errors import GraphError
from whet.ir.graph import LEAVES, Graph, Node, apply, attr_text, item, leaf, opaque
from whet.ir.types import DType, Poly, Size, TensorType, floordiv

_NOTE = re.compile(r"\t# (?P<type>[^\t]*)(?:\t@ (?P<where>.*))?$")


def print_graph(graph: Graph) -> str:
    """The graph as text, one line a node."""
    names = {n: f"n{k}" for k, n in enumerate(graph.nodes)}
    lines = []
    for node in graph.nodes:
        where = graph.where.get(node)
        note = f"\t# {node.type!r}" + (f"\t@ {_one_line(where)}" if where else "")
        lines.append(f"{names[node]} = {_call(node, names)}{note}")
    inputs, outputs = (_tuple(names[n] for n in ns) for ns in (graph.inputs, graph.outputs))
    updates = _tuple(f"({names[a]}, {names[b]})" for a, b in graph.updates)
    lines.append(f"return graph(inputs={inputs}, outputs={outputs}, updates={updates})")
    return "\n".join(lines) + "\n"


def _call(node: Node, names: Mapping[Node, str]) -> str:
    parts = ["None" if a is None else names[a] for a in node.args]
    parts += [f"{k}={attr_text(v)}" for k, v in node.attrs]
    if node.is_leaf:
        parts.append(f"type={attr_text(node.type)}")
    return f"{node.op.replace('~', '.')}({', '.join(parts)})"


def _tuple(parts: object) -> str:
    inner = list(parts)  # type: ignore[call-overload]
    return f"({inner[0]},)" if len(inner) == 1 else f"({', '.join(inner)})"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def parse_graph(text: str, constants: Mapping[str, object] | None = None) -> Graph:
    """The graph that `print_graph` wrote.

    Args:
        text: the printed form.
        constants: data of constant leaves by name.

    Raises:
        GraphError: a line that cannot be read, or whose type is not what the table infers.
    """
    nodes: dict[str, Node] = {}
    where: dict[Node, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        note = _NOTE.search(line)
        body = line[: note.start()] if note else line
        try:
            if body.startswith("return "):
                return _close(body, nodes, constants or {}, where)
            name, node = _line(body, nodes)
        except GraphError:
            raise
        except Exception as fault:
            raise GraphError(
                "a line of a graph cannot be read", where=f"line {number}: {line}", got=fault
            ) from None
        if note and repr(node.type) != note["type"].strip():
            raise GraphError(
                "a node's type is not what its record says", where=f"line {number}: {line}",
                expected=note["type"].strip(), got=node.type,
                hint="the text was written by another version of the operator table",
            )  # fmt: skip
        nodes[name] = node
        if note and note["where"]:
            where[node] = note["where"]
    raise GraphError("the text of a graph ends early", expected="a last line: return graph(…)")


def _line(body: str, nodes: Mapping[str, Node]) -> tuple[str, Node]:
    statement = ast.parse(body.strip()).body[0]
    assert isinstance(statement, ast.Assign)
    call, target = statement.value, statement.targets[0]
    assert isinstance(call, ast.Call)
    assert isinstance(target, ast.Name)
    args = [None if isinstance(a, ast.Constant) else nodes[_id(a)] for a in call.args]
    attrs = {str(k.arg): _value(k.value) for k in call.keywords}
    present = [a for a in args if a is not None]
    op = ast.unparse(call.func).replace(".", "~")
    if op in LEAVES:
        type_ = attrs["type"]
        assert isinstance(type_, TensorType)
        return target.id, leaf(op, str(attrs["name"]), type_)
    if op == "opaque":
        types = attrs["types"]
        assert isinstance(types, tuple)
        return target.id, opaque(str(attrs["target"]), present, str(attrs["statics"]), types)
    if op == "item":
        return target.id, item(present[0], int(str(attrs["index"])))
    return target.id, apply(op, *args, **attrs)


def _close(
    body: str, nodes: Mapping[str, Node], constants: Mapping[str, object], where: Mapping[Node, str]
) -> Graph:
    call = ast.parse(body.removeprefix("return ").strip(), mode="eval").body
    assert isinstance(call, ast.Call)
    parts = {str(k.arg): k.value for k in call.keywords}

    def listed(e: ast.expr) -> tuple[Node, ...]:
        assert isinstance(e, ast.Tuple)
        return tuple(nodes[_id(x)] for x in e.elts)

    updates = parts["updates"]
    assert isinstance(updates, ast.Tuple)
    pairs = [listed(p) for p in updates.elts]
    return Graph(
        listed(parts["inputs"]), listed(parts["outputs"]),
        tuple((a, b) for a, b in pairs), constants, where,
    )  # fmt: skip


def _id(e: ast.expr) -> str:
    if not isinstance(e, ast.Name):
        raise ValueError(f"expected a node, got {ast.unparse(e)}")
    return e.id


def _value(e: ast.expr) -> object:
    """An attribute's value; the inverse of `attr_text`."""
    match e:
        case ast.Constant(value):
            return value
        case ast.Tuple(elts):
            return tuple(map(_value, elts))
        case ast.UnaryOp(ast.USub(), x):
            inner = _value(x)
            assert isinstance(inner, (int, float))
            return -inner
        case ast.Name("inf"):
            return math.inf
        case ast.Name("nan"):
            return math.nan
        case ast.Attribute(ast.Name("dtype"), name):
            return DType[name]
        case ast.Call(ast.Name("size"), [ast.Constant(str(text))]):
            return parse_size(text)
        case ast.Call(ast.Name("type"), [ast.Constant(dtype), shape]):
            sizes = _value(shape)
            assert isinstance(sizes, tuple)
            return TensorType(DType[str(dtype)], sizes)
    raise ValueError(f"not an attribute value: {ast.unparse(e)}")


def parse_size(text: str) -> Size:
    """A size from its printed form, e.g. `2*C + (H)//(2)`."""
    return _size(ast.parse(text.strip(), mode="eval").body)


def _size(e: ast.expr) -> Size:
    match e:
        case ast.Constant(int(value)):
            return value
        case ast.Name(name):
            return Poly.symbol(name)
        case ast.UnaryOp(ast.USub(), x):
            return -_size(x)
        case ast.BinOp(a, ast.Add(), b):
            return _size(a) + _size(b)
        case ast.BinOp(a, ast.Sub(), b):
            return _size(a) - _size(b)
        case ast.BinOp(a, ast.Mult(), b):
            return _size(a) * _size(b)
        case ast.BinOp(a, ast.FloorDiv(), b):
            return floordiv(_size(a), _size(b))
    raise ValueError(f"not a size: {ast.unparse(e)}")
