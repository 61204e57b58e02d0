"""Random well-formed graphs over the operator table, for property tests.

    @given(graphs())                      concrete sizes, every kind of node
    @given(graphs(opaque=False))          what can be evaluated without a library
    @given(graphs(symbolic=True))         the first dim of inputs is the size N
    feeds(graph, seed)                    tensors for its leaves

A graph grows by moves: each puts one operator on a value that is there, with attributes that fit
and weights of its own. Pointwise operators of the table take part by themselves; the others have a
row in `MOVES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from whet.ir.graph import Graph, Node, apply, full, item, leaf, opaque
from whet.ir.interp import FLOAT64, Ring, sample
from whet.ir.ops import TABLE
from whet.ir.types import DType, Poly, TensorType

Draw = Callable[[st.SearchStrategy], object]
FLOATS = (DType.f32, DType.f64, DType.f16, DType.bf16)
SIZES = st.integers(1, 4)
SHAPES = st.lists(SIZES, max_size=4) | st.tuples(*[SIZES] * 4)  # images as often as all others


def _pointwise(arity: int) -> tuple[str, ...]:
    """Operators that take `arity` operands of one group of axes and no attributes."""
    found = []
    for name, op in TABLE.items():
        if op.record is not None and not op.record.patterns and len(op.record.operands) == arity:
            slices = {o.slice for _, o, _ in op.record.operands}
            if {_text(s) for s in slices} == {"*b"} and not name.startswith("bitwise"):
                found.append(name)
    return tuple(found)


def _text(e: object) -> str:
    import ast

    assert isinstance(e, ast.expr)
    return ast.unparse(e).strip("(),")


UNARY, BINARY = _pointwise(1), _pointwise(2)
PARTIAL = ("floor_divide", "remainder", "fmod", "pow")  # not of all integers


def _weight(x: Node, *shape: int) -> Node:
    """A parameter named after its type, so that one name never has two types."""
    dtype = x.dtype if x.dtype.is_float else DType.f32
    kind = f"{dtype.name}_{'x'.join(map(str, shape))}"
    return leaf("parameter", f"w_{kind}", TensorType(dtype, shape))


def _axis(draw: Draw, x: Node) -> int:
    """An axis of known size."""
    known = [k for k, n in enumerate(x.shape) if isinstance(n, int)]
    return int(str(draw(st.sampled_from(known))))


def _last(x: Node) -> int:
    return int(str(x.shape[-1]))


def _split(draw: Draw, x: Node) -> Node:
    axis = _axis(draw, x)
    size = int(str(x.shape[axis]))
    factors = [n for n in range(1, size + 1) if size % n == 0]
    first = int(str(draw(st.sampled_from(factors))))
    shape = (*x.shape[:axis], first, size // first, *x.shape[axis + 1 :])
    return apply("reshape", x, size=shape)


def _slice(draw: Draw, x: Node) -> Node:
    axis = _axis(draw, x)
    size = int(str(x.shape[axis]))
    start = int(str(draw(st.integers(0, size))))
    stop = int(str(draw(st.integers(start, size))))
    step = int(str(draw(st.integers(1, 3))))
    return apply("slice", x, axis=axis, start=start, stop=stop, step=step)


def _convolution(draw: Draw, x: Node) -> Node:
    groups = int(str(draw(st.sampled_from([n for n in (1, 2) if int(str(x.shape[1])) % n == 0]))))
    channels = int(str(x.shape[1]))
    w = _weight(x, 2 * groups, channels // groups, 2, 1)
    bias = _weight(x, 2 * groups) if draw(st.booleans()) else None
    at = {"stride": (1, 2), "padding": (1, 0), "dilation": (1, 1)}
    return apply("conv2d", x, w, bias, groups=groups, **at)


def _permute(draw: Draw, x: Node) -> Node:
    dims = draw(st.permutations(range(x.type.rank)))
    assert isinstance(dims, list)
    return apply("permute", x, dims=tuple(dims))


def _norm(draw: Draw, x: Node) -> Node:
    gamma = _weight(x, _last(x)) if draw(st.booleans()) else None
    beta = _weight(x, _last(x)) if draw(st.booleans()) else None
    return apply("layer_norm", x, gamma, beta, size=(_last(x),), eps=1e-05)


def _reduce(draw: Draw, x: Node) -> Node:
    name = str(draw(st.sampled_from(["sum", "mean", "amax", "amin", "prod"])))
    dims = draw(st.sets(st.integers(0, x.type.rank - 1), min_size=1))
    assert isinstance(dims, set)
    return apply(name, x, dims=tuple(sorted(dims)))


def _embedding(draw: Draw, x: Node) -> Node:
    """Look rows up at where the largest elements are: indices that are in range."""
    axis = _axis(draw, x)
    table = _weight(x, int(str(x.shape[axis])), 3)
    return apply("embedding", table, apply("argmax", x, axis=axis))


def _gradient(draw: Draw, x: Node) -> Node:
    y = apply("softmax", x, axis=-1)
    return apply("softmax~x", x, apply("tanh", y), axis=-1)


def _softmax(draw: Draw, x: Node) -> Node:
    return apply("softmax", x, axis=draw(st.integers(-x.type.rank, x.type.rank - 1)))


def _cast(draw: Draw, x: Node) -> Node:
    return apply("cast", x, dtype=draw(st.sampled_from([*FLOATS, DType.i64, DType.bool])))


def _pad(draw: Draw, x: Node) -> Node:
    return apply("pad", x, axis=_axis(draw, x), before=draw(SIZES), after=0, value=-0.5)


def _constant(draw: Draw, x: Node) -> Node:
    c = leaf("constant", f"c_{x.dtype.name}", TensorType(x.dtype, ()))
    return apply("add", x, c)


def _number(draw: Draw, x: Node) -> Node:
    return apply("mul", x, full(draw(st.floats(allow_nan=False)), x.dtype))


def any_(x: Node) -> bool:
    return True


def floats(x: Node) -> bool:
    return x.dtype.is_float


def ranked(x: Node) -> bool:
    return x.type.rank > 0


def rows(x: Node) -> bool:
    """Floats whose last dim has a known size."""
    return floats(x) and ranked(x) and isinstance(x.shape[-1], int)


def sized(x: Node) -> bool:
    """Some dim has a known size."""
    return any(isinstance(n, int) for n in x.shape)


def images(x: Node) -> bool:
    return floats(x) and x.type.rank == 4 and all(isinstance(n, int) and n for n in x.shape[1:])


def small(x: Node) -> bool:
    return x.type.rank < 4


# name: when it applies, what it does
MOVES: Mapping[str, tuple[Callable[[Node], bool], Callable[[Draw, Node], Node]]] = {
    "linear": (rows, lambda d, x: apply("linear", x, _weight(x, d(SIZES), _last(x)), None)),
    "matmul": (lambda x: rows(x) and x.type.rank > 1,
               lambda d, x: apply("matmul", x, _weight(x, _last(x), d(SIZES)))),
    "conv2d": (images, _convolution),
    "layer_norm": (rows, _norm),
    "reduce": (lambda x: floats(x) and ranked(x), _reduce),
    "softmax": (lambda x: floats(x) and ranked(x), _softmax),
    "gradient": (lambda x: floats(x) and ranked(x), _gradient),
    "embedding": (lambda x: floats(x) and sized(x) and 0 not in x.shape, _embedding),
    "argmax": (sized, lambda d, x: apply("argmax", x, axis=_axis(d, x))),
    "cumsum": (ranked, lambda d, x: apply("cumsum", x, axis=-1)),
    "permute": (any_, _permute),
    "split": (lambda x: sized(x) and x.type.rank < 5, _split),
    "flatten": (ranked, lambda d, x: apply("reshape", x, size=(x.type.numel,))),
    "slice": (sized, _slice),
    "pad": (sized, _pad),
    "expand": (small, lambda d, x: apply("expand", x, size=(d(SIZES), *x.shape))),
    "stack": (small, lambda d, x: apply("stack", x, x, axis=0)),
    "concat": (ranked, lambda d, x: apply("concat", *[x] * d(st.integers(1, 3)), axis=-1)),
    "clamp": (any_, lambda d, x: apply("clamp", x, low=-1.5, high=2.0)),
    "number": (floats, _number),
    "cast": (any_, _cast),
    "constant": (floats, _constant),
}  # fmt: skip


def _opaque(draw: Draw, x: Node) -> Node:
    """A call with two results, one of which is taken."""
    types = (x.type, TensorType(DType.i64, x.shape))
    node = opaque("aten.sort.default", (x,), "sort(%0, dim=-1)", types)
    return item(node, 0) if draw(st.booleans()) else apply("cast", item(node, 1), dtype=DType.f32)


@st.composite
def graphs(
    draw: st.DrawFn, *, most: int = 12, symbolic: bool = False, opaque: bool = True
) -> Graph:
    """A well-formed graph.

    Args:
        most: operators at most, besides what a move needs.
        symbolic: inputs of rank 1 and more have the symbolic size N first.
        opaque: whether library calls occur; a graph without is evaluated as it is.
    """
    inputs = []
    for k in range(draw(st.integers(1, 3))):
        shape: tuple[int | Poly, ...] = tuple(draw(SHAPES))
        if symbolic and shape:
            shape = (Poly.symbol("N"), *shape[1:])
        dtype = draw(st.sampled_from([*FLOATS, DType.i64]))
        inputs.append(leaf("input", f"x{k}", TensorType(dtype, shape)))
    values = list(inputs)
    for _ in range(draw(st.integers(0, most))):
        x = draw(st.sampled_from(values))
        last = "opaque" if opaque else "move"
        kind = draw(st.sampled_from(("unary", "binary", "move", "move", "move", last)))
        if kind == "unary":
            y = apply(draw(st.sampled_from(UNARY)), x)
        elif kind == "binary":
            same = [v for v in values if v.shape == x.shape or not v.shape]
            names = BINARY if floats(x) else [n for n in BINARY if n not in PARTIAL]
            y = apply(draw(st.sampled_from(names)), x, draw(st.sampled_from(same or [x])))
        elif kind == "opaque":
            y = _opaque(draw, x)
        else:
            fitting = [name for name, (fits, _) in MOVES.items() if fits(x)]
            y = MOVES[draw(st.sampled_from(fitting))][1](draw, x)
        values.append(y)
    outputs = tuple(draw(st.lists(st.sampled_from(values), min_size=1, max_size=3)))
    updates = []
    for x in inputs:
        same = [v for v in values if v.type == x.type and v is not x]
        if same and draw(st.booleans()):
            updates.append((x, draw(st.sampled_from(same))))
    bare = Graph(tuple(inputs), outputs, tuple(updates), _Data())
    constants = {n.name: torch.ones(()) for n in bare.leaves("constant")}
    places = {
        n: f"model.py:{k}: y = f(x)  # {n.op}"
        for k, n in enumerate(bare.nodes)
        if not n.is_leaf and draw(st.booleans())
    }
    return Graph(bare.inputs, bare.outputs, bare.updates, constants, places)


class _Data(dict[str, object]):
    """Data for any scalar constant, until it is known which there are."""

    def get(self, key: object, default: object = None) -> object:
        return torch.ones(())


def feeds(graph: Graph, seed: int = 0, ring: Ring = FLOAT64, **sizes: int) -> dict[str, Tensor]:
    """A random tensor for each input and parameter; `sizes` are values of symbols."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for n in graph.nodes:
        if n.op in ("input", "parameter"):
            shape = tuple(s.substitute(sizes) if isinstance(s, Poly) else s for s in n.shape)
            found[n.name] = sample(TensorType(n.dtype, shape), ring, generator)
    return found
