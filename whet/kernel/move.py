"""Moves: what a schedule is made of.

    Move     = a frozen dataclass of names, numbers and tuples of them
    text     = name(argument, …)                 split(y0_m, 16)

Each kind of move is one class: its fields say what and where, `check` refuses what it must not do
(or passes what the check has found on to `do`), `do` gives the new kernel. Its docstring shows a
kernel before and after; a test applies it.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from whet.kernel.loops import Kernel, KernelError, Loop, Stmt, rewrite

KNOWN: dict[str, type[Move]] = {}


@dataclass(frozen=True, slots=True)
class Move:
    """See the module's docstring. Subclasses take their text's name as a class argument."""

    name: ClassVar[str] = ""

    def do(self, k: Kernel) -> Kernel:
        """The kernel with the move made. Raises `Refused` where it is illegal."""
        raise NotImplementedError

    def __str__(self) -> str:
        fields = (getattr(self, f.name) for f in dataclasses.fields(self))
        return f"{self.name}({', '.join(map(_shown, fields))})"


def register(name: str) -> Callable[[type[Move]], type[Move]]:
    """Class decorator: the move's name in texts."""

    def known(cls: type[Move]) -> type[Move]:
        cls.name = name
        KNOWN[name] = cls
        return cls

    return known


def parse(text: str) -> Move:
    """The move that a text says.

    Raises:
        KernelError: no such move, or other arguments than it takes.
    """
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            made = KNOWN[node.func.id](*map(_read, node.args))
            return made
    except (SyntaxError, KeyError, TypeError):
        pass
    raise KernelError("not a move", expected=", ".join(sorted(KNOWN)), got=text)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + "".join(f"{_shown(v)}, " for v in value).rstrip(" ") + ")"
    if isinstance(value, str):
        return value if value.isidentifier() else repr(value)
    return repr(value)


def _read(node: ast.expr) -> object:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Tuple(elts=elts):
            return tuple(map(_read, elts))
    return ast.literal_eval(node)


# -- edits that moves share ------------------------------------------------------------------------
def replaced(k: Kernel, var: str, new: Callable[[Loop], Stmt | Iterable[Stmt]]) -> Kernel:
    """The kernel with the loop over `var` replaced."""

    def visit(s: Stmt) -> Stmt | Iterable[Stmt] | None:
        return new(s) if isinstance(s, Loop) and s.var == var else None

    return k.with_body(rewrite(k.body, visit))


def fresh(k: Kernel, base: str) -> str:
    """`base`, or base with a number behind it, such that no loop or buffer is called so."""
    taken = {b.name for b in k.buffers} | set(k.loops)
    name, n = base, 2
    while name in taken:
        name, n = f"{base}{n}", n + 1
    return name
