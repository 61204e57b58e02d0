"""Library calls that have no record: how they are written down, read back and run.

    aten.topk.default(%0, 2, -1, True, True)

    call  := target(value, …, name=value, …) [# note]
    value := %k | None | True | False | number | inf | nan | 'text' | [value, …] | torch.NAME
           | device('name')

`%k` is the k-th tensor operand. The text is what an opaque node carries, so that it can be printed,
hashed, stored, and run in another process. A call's results are its tensors in order, those within
lists among them; a result that is no tensor has no number. The note tells apart calls that look
alike and must not be merged: draws of random numbers.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.errors import UnsupportedError
from whet.ir.graph import Node

_OPERAND = "operand_"


@dataclass(frozen=True, slots=True)
class Operand:
    """The place of the k-th tensor in a call."""

    index: int


def write_call(
    target: str, args: Sequence[object], kwargs: Mapping[str, object], note: str = ""
) -> str:
    """A call as text; tensors stand in the arguments as `Operand`.

    Raises:
        UnsupportedError: an argument is none of the values above.
    """
    parts = [_write(a) for a in args]
    parts += [f"{name}={_write(value)}" for name, value in kwargs.items()]
    return f"{target}({', '.join(parts)})" + (f"  # {note}" if note else "")


def _write(value: object) -> str:
    match value:
        case Operand(index):
            return f"%{index}"
        case None | bool() | int():
            return repr(value)
        case float():
            if math.isnan(value):
                return "nan"
            return repr(value)
        case str():
            return repr(value).replace("%", "\\x25").replace("#", "\\x23")
        case list() | tuple():
            return f"[{', '.join(map(_write, value))}]"
        case torch.dtype() | torch.layout() | torch.memory_format():
            return str(value)
        case torch.device():
            return f"device({str(value)!r})"
    raise UnsupportedError(
        "a library call with an argument that cannot be written down",
        expected="tensors, numbers, text, lists, element types, devices",
        got=f"{value!r} of type {type(value).__name__}",
    )


@functools.lru_cache(maxsize=4096)
def read_call(statics: str) -> tuple[str, tuple[object, ...], Mapping[str, object]]:
    """Target, arguments and keyword arguments of a call written by `write_call`.

    Raises:
        UnsupportedError: the text is no such call.
    """
    try:
        tree = ast.parse(statics.replace("%", _OPERAND), mode="eval").body
        if not isinstance(tree, ast.Call):
            raise ValueError("a call")
        args = tuple(_read(a) for a in tree.args)
        kwargs = {str(k.arg): _read(k.value) for k in tree.keywords}
    except (SyntaxError, ValueError) as fault:
        raise UnsupportedError(
            "a library call that does not read", expected=fault, got=statics
        ) from None
    return ast.unparse(tree.func), args, kwargs


def _read(e: ast.expr) -> object:
    match e:
        case ast.Constant(value):
            return value
        case ast.Name("inf" | "nan" as name):
            return float(name)
        case ast.Name(name) if name.startswith(_OPERAND):
            return Operand(int(name.removeprefix(_OPERAND)))
        case ast.List(items):
            return [_read(i) for i in items]
        case ast.UnaryOp(ast.USub(), inner):
            number = _read(inner)
            assert isinstance(number, int | float)
            return -number
        case ast.Attribute(ast.Name("torch"), name):
            return getattr(torch, name)
        case ast.Call(ast.Name("device"), [ast.Constant(name)]):
            return torch.device(str(name))
    raise ValueError(f"no value: {ast.unparse(e)}")


@functools.cache
def resolve(target: str) -> Callable[..., object]:
    """The library's function called "namespace.name.overload".

    Raises:
        UnsupportedError: torch knows none, because the module that registers it is not imported.
    """
    found: object = torch.ops
    try:
        for part in target.split("."):
            found = getattr(found, part)
    except (AttributeError, RuntimeError):
        found = None
    if not callable(found):
        raise UnsupportedError(
            f"torch has no operator {target}",
            hint="import the package that registers it before loading the program",
        )
    return found


def run_opaque(node: Node, tensors: Sequence[Tensor]) -> list[Tensor]:
    """All results of an opaque node.

    Operands are made contiguous first: some calls below torch's own surface (the backward of group
    norm is one) read memory in order without a look at the strides.

    Args:
        node: made by `whet.ir.graph.opaque` with statics as above.
        tensors: its operands, in order.

    Raises:
        UnsupportedError: the call does not read, or torch does not know the operator.
    """
    target, args, kwargs = read_call(str(node.attr("statics")))

    def fill(value: object) -> object:
        if isinstance(value, Operand):
            return tensors[value.index].contiguous()
        return [fill(v) for v in value] if isinstance(value, list) else value

    given = {name: fill(value) for name, value in kwargs.items()}
    return flat_tensors(resolve(target)(*map(fill, args), **given))


def flat_tensors(result: object) -> list[Tensor]:
    """The tensors in a call's result, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [t for part in result for t in flat_tensors(part)]
    return []
