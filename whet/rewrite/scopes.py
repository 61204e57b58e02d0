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
from collections.abc import Iterator, Mapping, Sequence
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
        first: explored before the others, which are pruned by what it finds.
    """

    name: str
    size: int
    leaf_texts: tuple[str, ...]
    operators: tuple[str, ...]
    given: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exact: bool = True
    rank: int = 4
    widths: tuple[int, ...] = (2,)
    first: bool = False

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


# fmt: off
# Functions of one number: scopes name the first, the others take its place where that is provable.
ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu", "silu")

_SIZES = (
    (2, 3, 5, 4, 7, 6, 2, 3),
    (3, 1, 2, 4, 1, 2, 5, 2),
    (4, 2, 1, 3, 2, 5, 3, 1),
    (5, 4, 3, 2, 3, 3, 1, 2),
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
)

_CONV = {"stride": ["(s, t)"], "padding": ["(p, q)"], "dilation": ["(d, f)"]}
# No window lies in the padding alone.
_POOL = {**_CONV, "kernel": ["(R + p, Q + q)"], "extra": ["(0, 0)"],
         "include_padding": ["1", "0"]}
_CUT = {"start": ["0", "k", "l", "k", "m", "k + m"], "stop": ["S", "l", "h", "h", "n", "k + n"],
        "index": ["i", "i + k"]}
_PART = {"start": ["k"], "stop": ["l"], "index": ["i"]}
_SHAPE = ("add", "mul", "concat", "slice", "permute", "relu")

_TURNED = {"dims": ["(0, 1, 3, 2)"]}

_XYAB = ("x[M, K]", "y[M, K]", "a[K, N]", "b[K, N]")
_XYWV = ("x[M, C, H, W]", "y[M, C, H, W]", "w[O, C, R, Q]", "v[O, C, R, Q]")
_ENLARGED = {"stride": ["(s, t)"], "dilation": ["(1, 1)"], "groups": ["G"],
             "padding": ["(0, 0)", "(1, 1)"], "axis": ["2", "3"],
             "before": ["1"], "after": ["1"], "value": ["0.0"]}
_MARGIN = {"stride": ["(s, t)"], "groups": ["G"], "axis": ["2", "3"], "value": ["0.0"],
           "padding": ["(p, q)", "(p + b, q)", "(p, q + b)"], "before": ["b"], "after": ["b"]}
_ONE = {"stride": ["(1, 1)"], "padding": ["(0, 0)"], "dilation": ["(1, 1)"], "groups": ["1"]}
_STRIDED = {"stride": ["(2, 2)", "(1, 2)", "(1, 1)"], "padding": ["(0, 0)"],
            "dilation": ["(1, 1)"], "axis": ["2", "3"], "start": ["0", "0"],
            "stop": ["2*H", "2*W"], "step": ["2", "2"]}
_EYE = "tril(triu(full(size=({0}, {0}), value=1.0), 0), 0)"
_EYES = f"reshape({_EYE.format('C')}, size=(C, C, 1, 1))"
_WIDE = "pad(pad({}, axis=2, before=1, after=1, value=0.0), axis=3, before=1, after=1, value=0.0)"
_ATTENTION = {"dims": ["(0, 1, 3, 2)"], "axis": ["3"], "scale": ["1.0"], "causal": ["0"],
              "group": ["1"]}

SCOPES: tuple[Scope, ...] = (
    # what whole operators are made of
    Scope("definitions", 0, (), (), first=True),
    # what moves and what works element by element; the other scopes build on it
    Scope("shapes", 2,
          ("x[M, K, N]", "y[M, K, N]", "z[P, K, N]", "s[()]"), _SHAPE, first=True),
    Scope("joins", 2, ("x[M, K]", "y[N, K]", "z[P, K]"), ("concat", "stack", "slice", "select"),
          {"index": ["0", "1"]}, widths=(2, 3), first=True),
    Scope("cuts", 2, ("x[S, M]", "y[S, M]", "z[S, N]", "s[()]"),
          ("slice", "select", "concat", "add", "mul", "relu", "neg", "permute"), _CUT, first=True),
    Scope("sums and products", 2, ("x[M, K]", "y[M, K]", "r[M, 1]", "c[K]", "s[()]"),
          ("add", "mul"), first=True),
    Scope("nothing moves", 1, ("x[M, K, N]",), ("permute", "reshape"),
          {"dims": ["(0, 1, 2)"], "size": ["(M, K, N)"]}, first=True),
    Scope("reshapes", 2, ("x[M, K, N]", "y[M, K, N]", "s[()]"),
          ("reshape", "relu", "add", "mul", "neg"), first=True),
    # zero, one, identities
    Scope("neutral elements", 1,
          ("x[M, K]", "y[M, K]", "zeros = full(size=(M, K), value=0.0)",
           "ones = full(size=(M, K), value=1.0)", "zero = full(size=(), value=0.0)",
           "one = full(size=(), value=1.0)", "two = full(size=(), value=2.0)",
           "back = full(size=(), value=-1.0)"),
          ("add", "sub", "mul", "div", "neg", "relu", "maximum", "minimum"), first=True),
    Scope("neutral matrices", 1,
          ("x[M, K]", "w[N, K]", "a[K, N]", f"eye = {_EYE.format('K')}",
           "zeros = full(size=(K, N), value=0.0)", "rest = full(size=(M, N), value=0.0)"),
          ("matmul", "linear")),
    Scope("neutral kernels", 1,
          ("x[M, C, H, W]", f"eye = {_EYES}",
           "each = full(size=(C, 1, 1, 1), value=1.0)",
           f"wide = {_WIDE.format('full(size=(C, 1, 1, 1), value=1.0)')}",
           f"wider = {_WIDE.format(_EYES)}"),
          ("conv2d",), {**_ONE, "padding": ["(0, 0)", "(1, 1)"], "groups": ["1", "C"]}),
    Scope("cuts put together", 3, ("x[S, M]", "y[N, S]"), ("slice", "concat"), _CUT),
    # products of matrices
    Scope("matrices", 3, _XYAB, ("matmul", "add", "concat", "slice")),
    Scope("matrices element by element", 2, (*_XYAB, "s[()]"), ("matmul", *_SHAPE)),
    Scope("scaled matrices", 2,
          ("x[M, K]", "a[K, N]", "r[M, 1]", "k[K]", "c[N]", "d[K, 1]"),
          ("matmul", "mul", "reshape"), {"size": ["(K, 1)"]}),
    Scope("differences of products", 2,
          ("x[M, K]", "y[M, K]", "a[K, N]", "b[K, N]"), ("matmul", "sub", "neg")),
    Scope("rows of matrices", 3, ("x[M, K, N]", "w[P, N]", "a[N, P]", "c[P]"),
          ("matmul", "linear", "reshape"), {"size": ["(M*K, N)", "(M*K, P)", "(M, K, P)"]}),
    Scope("transposes", 3, ("x[M, K]", "a[K, N]", "s[()]"), ("matmul", "mul", "permute")),
    Scope("chains", 2, ("x[M, K]", "a[K, N]", "b[K, N]", "c[N, P]"), ("matmul", "add", "mul")),
    Scope("batches", 2,
          ("x[B, M, K]", "y[B, M, K]", "w[K, N]", "v[K, N]", "a[B, K, N]", "b[B, K, N]"),
          ("matmul", "add", "concat")),
    Scope("chains of batches", 2,
          ("x[B, M, K]", "w[K, N]", "v[N, P]", "a[B, K, N]", "b[B, N, P]", "u[M, K]"),
          ("matmul", "permute"), {"dims": ["(0, 2, 1)"]}),
    Scope("products by a number", 2, ("x[B, M, K]", "a[B, K, N]", "s[()]"),
          ("matmul", "mul", "div")),
    Scope("layers", 3,
          ("x[M, K]", "y[M, K]", "w[N, K]", "v[N, K]", "c[N]"), ("linear", "add", "concat")),
    Scope("layers element by element", 2,
          ("x[M, K]", "y[M, K]", "w[N, K]", "u[P, N]", "c[N]", "e[N]", "k[K]", "s[()]"),
          ("linear", "matmul", "add", "mul", "concat", "slice", "permute")),
    Scope("layers over time", 2,
          ("x[S, M, K]", "y[S, M, K]", "w[N, K]", "v[K, N]", "c[N]"),
          ("linear", "matmul", "select", "slice", "add"), _PART),
    Scope("parts of layers", 2, ("x[S, K]", "y[M, S]", "w[N, K]", "v[N, S]", "c[N]"),
          ("linear", "slice", "concat"), _PART),
    Scope("parts of products", 2, ("x[S, K]", "y[M, S]", "v[K, N]", "w[S, N]"),
          ("matmul", "slice", "permute"), _PART),
    # convolutions
    Scope("convolutions element by element", 2, (*_XYWV, "s[()]"),
          ("conv2d", *_SHAPE), {**_CONV, **_TURNED, "groups": ["1"]}),
    Scope("images", 3, _XYWV, ("conv2d", "add", "concat"), {**_CONV, "groups": ["1"]}),
    Scope("images in groups", 2,
          ("x[M, G*C, H, W]", "y[M, G*C, H, W]", "w[G*O, C, R, Q]", "v[G*O, C, R, Q]", "s[()]",
           "c[G*O]"), ("conv2d", "add", "mul", "concat", "slice"),
          {**_CONV, **_PART, "groups": ["G"]}),
    Scope("sums of images", 3,
          ("x[M, G*C, H, W]", "y[M, G*C, H, W]", "w[G*O, C, R, Q]"), ("conv2d", "add"),
          {**_CONV, "groups": ["G"]}),
    Scope("images as groups", 3, _XYWV, ("conv2d", "concat"), {**_CONV, "groups": ["1", "2"]}),
    Scope("parts of images", 2, ("x[S, C, H, W]", "w[S, C, R, Q]", "y[M, S, H, W]"),
          ("conv2d", "slice"), {**_CONV, **_PART, "groups": ["1"]}),
    Scope("scaled images", 2,
          ("x[M, C, H, W]", "w[O, C, R, Q]", "k[C, 1, 1]", "s[()]"), ("conv2d", "mul"),
          {**_CONV, "groups": ["1"]}),
    Scope("convolutions with bias", 3,
          ("x[M, C, H, W]", "w[O, C, R, Q]", "v[O, C, R, Q]", "c[O]"), ("conv2d", "concat"),
          {**_CONV, "groups": ["1"]}),
    Scope("channels of convolutions", 3,
          ("x[M, G*C, H, W]", "w[G*O, C, R, Q]", "u[G*O, 1, 1]", "c[G*O]"),
          ("conv2d", "add", "mul", "reshape"),
          {**_CONV, "groups": ["G"], "size": ["(G*O,)", "(G*O, 1, 1, 1)"]}),
    Scope("enlarged kernels", 3, ("x[M, G*C, H, W]", "w[G*O, C, 1, 1]"), ("conv2d", "pad"),
          _ENLARGED),
    Scope("margins of kernels", 2, ("x[M, G*C, H, W]", "w[G*O, C, R, Q]"), ("conv2d", "pad"),
          {**_MARGIN, "dilation": ["(1, 1)"]}),
    Scope("margins of images", 2, ("x[M, G*C, H, W]", "w[G*O, C, R, Q]"), ("conv2d", "pad"),
          {**_MARGIN, "dilation": ["(d, f)"]}),
    Scope("convolutions as products", 3, ("x[M, C, H, W]", "u[O, C, 1, 1]"),
          ("conv2d", "matmul", "reshape"),
          {**_ONE, "size": ["(O, C)", "(M, C, H*W)", "(M, O, H*W)"]}),
    Scope("strides of convolutions", 3, ("x[M, G*C, 2*H, 2*W]", "w[G*O, C, 1, 1]"),
          ("conv2d", "slice"), {**_STRIDED, "groups": ["G"]}),
    # channels of images
    Scope("channels", 2,
          ("x[M, C, H, W]", "y[M, C, H, W]", "z[M, O, H, W]", "u[M, P, H, W]", "k[C, 1, 1]"),
          ("concat", "slice", "add", "mul", "relu"), {"axis": ["1"]}, widths=(2, 3)),
    Scope("rows that share a factor", 2, ("x[M, K, N]", "y[M, P, N]", "c[N]"),
          ("concat", "add", "mul"), {"axis": ["1"]}),
    # what stands before and after a layer
    Scope("channels of layers", 3, ("x[M, K]", "w[N, K]", "k[K]", "c[N]"),
          ("linear", "add", "mul", "reshape"), {"size": ["(N, 1)"]}),
    Scope("attention", 4, ("x[B, H, L, D]", "y[B, H, M, D]", "z[B, H, M, E]"),
          ("matmul", "permute", "softmax", "attention"), _ATTENTION, exact=False),
    # parts of what is computed element by element, and what is put together again
    Scope("parts", 2, ("x[S, K, N]", "y[S, K, N]", "s[()]"),
          ("slice", "select", "add", "mul", "relu", "neg"), _PART),
    Scope("quotients", 3, ("x[M, K]", "y[M, K]", "s[()]"), ("mul", "div", "reciprocal"),
          first=True),
    Scope("differences", 3, ("x[M, K]", "y[M, K]", "s[()]"), ("add", "sub", "neg"),
          first=True),
    Scope("quotients of three", 2, ("x[M, K]", "y[M, K]", "z[M, K]"),
          ("mul", "div", "reciprocal"), first=True),
    Scope("differences of three", 2, ("x[M, K]", "y[M, K]", "z[M, K]"),
          ("add", "sub", "neg", "mul"), first=True),
    # sums, extremes, functions
    Scope("sums", 2, ("x[M, K]", "y[M, K]", "r[M, 1]", "s[()]"),
          ("sum", "mean", "add", "mul", "concat", "permute")),
    Scope("sums of sums", 2, ("x[M, K, N]",), ("sum", "mean", "amax", "amin", "reshape"),
          {"size": ["(M, K*N)", "(M*K, N)"]}, exact=False),
    Scope("products by ones", 2, ("x[M, K]", "ones = full(size=(K, 1), value=1.0)",
                                  "row = full(size=(1, M), value=1.0)"),
          ("sum", "matmul", "reshape"), {"size": ["(M, 1)", "(1, K)"]}),
    Scope("sums of products", 3, ("x[M, K]", "a[K, N]"), ("sum", "matmul", "reshape"),
          {"size": ["(K, 1)", "(1, K)", "(M,)", "(N,)", "(M, 1)"]}),
    Scope("extremes", 2, ("x[M, K]", "y[M, K]", "z[M, K]"),
          ("amax", "amin", "maximum", "minimum", "neg", "concat", "relu"), exact=False),
    Scope("shifted extremes", 2, ("x[M, K]", "y[M, K]", "r[M, 1]"),
          ("amax", "maximum", "add"), exact=False),
    Scope("absolute values", 2, ("x[M]", "y[M]"), ("relu", "abs", "neg", "add", "sub", "maximum"),
          exact=False),
    Scope("exponentials", 2, ("x[M]", "y[M]"), ("exp", "log", "add", "mul", "neg", "reciprocal"),
          exact=False),
    Scope("roots", 2, ("x[M]", "y[M]"), ("sqrt", "rsqrt", "square", "mul", "div", "reciprocal"),
          exact=False),
    Scope("sigmoids", 3, ("x[M]", "one = full(size=(), value=1.0)",
                          "two = full(size=(), value=2.0)"),
          ("sigmoid", "tanh", "neg", "mul", "add"), exact=False),
    Scope("normal over rows", 2, ("x[M, K]", "y[M, K]", "r[M, 1]", "z[P, K]"),
          ("softmax", "log_softmax", "logsumexp", "exp", "log", "add", "permute", "concat"),
          {"axis": ["0", "1"]}, exact=False),
    # pooling; a mean over windows is a convolution
    Scope("pools", 2, ("x[M, C, H, W]", "y[M, C, H, W]", "s[()]"),
          ("avg_pool2d", "max_pool2d", "add", "mul", "concat", "relu"), _POOL, exact=False),
    Scope("pools and kernels", 2, ("x[M, C, H, W]", "w[O, C, 1, 1]"),
          ("avg_pool2d", "conv2d"), {**_POOL, **_ONE, "stride": ["(s, t)", "(1, 1)"],
                                     "padding": ["(p, q)", "(0, 0)"]}),
    Scope("maxima of pools", 2, ("x[M, C, H, W]", "y[M, C, H, W]"),
          ("max_pool2d", "maximum", "relu"),
          {**_POOL, "kernel": ["(2, 2)", "(3, 3)"], "stride": ["(s, t)", "(1, 1)"],
           "padding": ["(0, 0)"], "dilation": ["(1, 1)"]}, exact=False),
    Scope("means of images", 2, ("x[M, C, H, W]",), ("adaptive_avg_pool2d", "mean", "reshape"),
          {"size": ["(1, 1)", "(M, C, 1, 1)"], "dims": ["(2, 3)"]}),
    Scope("pools as convolutions", 1,
          ("x[M, C, H, W]", "mean = full(size=(C, 1, 3, 2), value=1.0) / 6",
           "nine = full(size=(C, 1, 3, 3), value=1.0) / 9",
           "square = full(size=(C, 1, 2, 2), value=0.25)"),
          ("avg_pool2d", "conv2d"),
          {**_POOL, "kernel": ["(3, 2)", "(3, 3)", "(2, 2)"], "dilation": ["(1, 1)"],
           "groups": ["C"]}),
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


def scopes(names: Sequence[str] = ()) -> Iterator[Scope]:
    """The scopes, in order; all unless named."""
    yield from (s for s in SCOPES if not names or s.name in names)
