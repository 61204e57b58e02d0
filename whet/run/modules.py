"""Where in the user's model a rewrite is: the module whose parameters it works on.

    cells.0.input.weight     the rewrite reads this  →  cells.0.input
    cells.0.input, cells.1.input, cells.2.input      →  cells.*.input

Read off the names of parameters alone, so it holds for every way in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from whet.ir.graph import Node

FAR = 200  # nodes looked at below a rewrite that reads no parameter itself


def module_of(roots: Iterable[Node], stop: Iterable[Node] = ()) -> str:
    """The module that nodes belong to: what the names of the parameters they read share, or the
    module of the nearest parameter below them; "" where there is none.

    Args:
        roots: the nodes; what stands between them and `stop` belongs to them.
        stop: values that come from elsewhere; what depends on no input is still looked into.
    """
    border, names, last = set(stop), list[str](), list[Node]()
    seen: set[Node] = set()
    stack = list(roots)
    while stack and len(seen) < FAR:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "parameter":
            names.append(node.name)
        elif node in border and not _is_fixed(node):
            last.append(node)
        else:
            stack += node.operands
    if names:
        return _shared([n.rpartition(".")[0] for n in names])
    return _nearest(last or list(roots))


def _is_fixed(node: Node) -> bool:
    """Whether a value depends on no input, as far as a short look tells."""
    stack, seen = [node], set[Node]()
    while stack and len(seen) < FAR:
        n = stack.pop()
        if n.op in ("input", "opaque"):
            return False
        if n not in seen:
            seen.add(n)
            stack += n.operands
    return not stack


def _nearest(roots: Sequence[Node]) -> str:
    level, seen = list(roots), set[Node]()
    while level and len(seen) < FAR:
        found = sorted(n.name for n in level if n.op == "parameter")
        if found:
            return found[0].rpartition(".")[0]
        seen.update(level)
        level = [a for a in dict.fromkeys(a for n in level for a in n.operands) if a not in seen]
    return ""


def _shared(modules: Sequence[str]) -> str:
    parts = [m.split(".") for m in modules]
    kept: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        kept.append(column[0])
    return ".".join(kept)


def pattern(modules: Iterable[str]) -> str:
    """One text for several modules: numbers that differ as stars, then what is left as a list.

    >>> pattern(["cells.0.input", "cells.1.input"])
    'cells.*.input'
    >>> pattern(["left", "right"])
    'left, right'
    """
    groups: dict[str, list[str]] = {}
    for m in dict.fromkeys(modules):
        groups.setdefault(re.sub(r"\b\d+\b", "*", m), []).append(m)
    shown = [starred if len(ms) > 1 else ms[0] for starred, ms in groups.items()]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return ", ".join(shown[:3]) + more
