"""Where rules are looked for: leaves, operators of the table, and how many of them to combine.

    scope  := name, size, leaves, operators, attribute values, sizes
    leaf   := T[size, …]                a tensor
            | NAME = expression         a constant: anything without tensors, as in a conjecture
    size 0                              no graphs: what the operators' records say of each of them

Operators are names in the operator table. The attribute values that shapes do not decide are given
by attribute name.
Each symbol has a number in each assignment: all different in the first, with sizes of 1, and with
other strides, paddings and groups in the others.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.ir.graph import Node
from whet.ir.types import Poly, Size
from whet.rewrite import formula
from whet.rewrite.conjecture import build
from whet.rewrite.sketch import Side, Tree
from whet.rewrite.syntax import Literal, Pattern, Reader, Var


@dataclass(frozen=True)
class Leaf:
    """A leaf: a tensor of a shape over symbols, or a constant.

    Attributes:
        text: a tensor as `x[M, K]`, a constant as its expression.
        name: what it is called.
        shape: over symbols.
        node: a constant's graph over symbols; None for a tensor.
        tree: the same written out.
    """

    text: str
    name: str
    shape: tuple[Size, ...]
    node: Node | None = None
    tree: Side | None = None

    def at(self, sizes: Mapping[str, int]) -> Node:
        """A constant at given sizes."""
        return build(_pattern(self.text), {}, sizes)[0]


@dataclass(frozen=True)
class Scope:
    """See the module's docstring.

    Attributes:
        exact: evaluated in the keyed field, else with the real functions in float64.
        assignments: numbers of all symbols.
        rank: no tensor has more dims.
        widths: numbers of operands of an operator that takes any number.
        wave: explored once those of smaller ones are, and pruned by what they found.
    """

    name: str
    size: int
    leaf_texts: tuple[str, ...]
    operators: tuple[str, ...]
    given: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exact: bool = True
    rank: int = 4
    widths: tuple[int, ...] = (2,)
    wave: int = 1

    @functools.cached_property
    def symbols(self) -> tuple[str, ...]:
        """Names of sizes, in order of first use."""
        texts = [t.partition("=")[2] or t for t in self.leaf_texts]
        texts += [v for vs in self.given.values() for v in vs]
        found = (
            n.id for t in texts for n in ast.walk(ast.parse(t.strip(), mode="eval"))
            if isinstance(n, ast.Name) and n.id[0].isupper()
        )  # fmt: skip
        return tuple(dict.fromkeys(found))

    @functools.cached_property
    def assignments(self) -> tuple[Mapping[str, int], ...]:
        """Sizes: all different; with ones; small and different again."""
        return tuple(
            {**{s: row[k % len(row)] for k, s in enumerate(self.symbols)}, **_NUMBERS[j]}
            for j, row in enumerate(_SIZES)
        )  # fmt: skip

    @functools.cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The leaves, read."""
        scope = {s: Poly.symbol(s) for s in (*self.symbols, *_NUMBERS[0])}
        return tuple(_leaf(t, scope) for t in self.leaf_texts)

    @functools.cached_property
    def values(self) -> Mapping[str, Sequence[object]]:
        """Attribute values over symbols."""
        scope = {s: Poly.symbol(s) for s in (*self.symbols, *_NUMBERS[0])}
        return {
            name: [formula.evaluate(ast.parse(v, mode="eval").body, scope) for v in texts]
            for name, texts in self.given.items()
        }

    def admits(self, shape: Sequence[Size]) -> bool:
        """Whether a result of that shape is looked at."""
        return len(shape) <= self.rank


def _leaf(text: str, scope: Mapping[str, object]) -> Leaf:
    name, equals, body = (part.strip() for part in text.partition("="))
    if not equals:
        tensor = ast.parse(text.strip(), mode="eval").body
        assert isinstance(tensor, ast.Subscript)
        dims = tensor.slice.elts if isinstance(tensor.slice, ast.Tuple) else [tensor.slice]
        shape = tuple(formula.size(formula.evaluate(d, scope), d) for d in dims)
        return Leaf(text.strip(), ast.unparse(tensor.value), shape)
    pattern = _pattern(body)
    (node,) = build(pattern, {}, scope)
    return Leaf(body, name, node.shape, node, written(pattern[0], scope))


def _pattern(text: str) -> tuple[Pattern, ...]:
    return Reader(text).side(ast.parse(text, mode="eval").body, {})


# Functions of one number: scopes name the first, the others take its place where that is provable.
ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu", "silu")

# fmt: off
_SIZES = (
    (2, 3, 5, 4, 7, 6, 2, 3),
    (3, 1, 2, 4, 1, 2, 5, 2),
    (4, 2, 1, 3, 2, 5, 3, 1),
    (5, 4, 3, 2, 3, 3, 1, 2),
    (1, 6, 2, 4, 5, 3, 2, 4),
)
# Symbols that are numbers in attributes (strides, paddings and the like), images and kernels, a dim
# that is cut, S, and where: k < l < h <= S, and m < n <= l - k.
_NUMBERS: tuple[Mapping[str, int], ...] = (
    {"s": 2, "t": 1, "p": 1, "q": 0, "d": 1, "f": 2, "e": 3, "i": 0, "j": 1, "T": 1,
     "H": 7, "W": 8, "R": 2, "Q": 3, "S": 7, "k": 1, "l": 5, "h": 6, "m": 1, "n": 3, "b": 1},
    {"s": 1, "t": 2, "p": 0, "q": 1, "d": 2, "f": 1, "e": 2, "i": 0, "j": 1, "T": 1,
     "H": 5, "W": 6, "R": 1, "Q": 2, "S": 5, "k": 1, "l": 3, "h": 4, "m": 0, "n": 2, "b": 2},
    {"s": 3, "t": 1, "p": 2, "q": 1, "d": 1, "f": 1, "e": 5, "i": 0, "j": 1, "T": 1,
     "H": 9, "W": 5, "R": 3, "Q": 1, "S": 6, "k": 2, "l": 5, "h": 6, "m": 1, "n": 3, "b": 1},
    {"s": 1, "t": 1, "p": 0, "q": 0, "d": 1, "f": 1, "e": 1, "i": 0, "j": 1, "T": 1,
     "H": 6, "W": 5, "R": 2, "Q": 2, "S": 5, "k": 1, "l": 4, "h": 5, "m": 2, "n": 3, "b": 3},
    {"s": 2, "t": 3, "p": 1, "q": 0, "d": 2, "f": 1, "e": 4, "i": 1, "j": 2, "T": 2,
     "H": 8, "W": 9, "R": 1, "Q": 3, "S": 8, "k": 3, "l": 7, "h": 8, "m": 1, "n": 4, "b": 1},
)
# fmt: on


def written(p: Pattern, scope: Mapping[str, object]) -> Side:
    """A constant's pattern written out, with sizes as they are in `scope`."""
    match p:
        case Literal(value):
            return f"{value:g}"
        case Var(name):
            return name
    attrs = tuple((k, formula.evaluate(e, scope)) for k, e in p.attrs)
    return Tree(p.op, attrs, tuple(None if a is None else written(a, scope) for a in p.args))
