"""Random models over the operator table, well conditioned: what float32 gets right, a program must.

    model(seed) -> Model        a Graph of 5 to 40 operators, and values for its leaves

A model grows by moves. Each picks values that are there and puts one operator of the table on
them, with sizes of 1, primes and odd strides as they come. A new value is kept if it is finite, not
large, and hardly moves when its float operands do: otherwise no two computations of it need agree,
and a difference would say nothing. What a program gets wrong is then wrong.
"""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.backend import aten
from whet.errors import WhetError
from whet.ir.graph import Graph, Node, apply, full, leaf
from whet.ir.ops import TABLE
from whet.ir.types import DType, TensorType

SIZES = (1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 37, 64, 67)
MOST = 1 << 16  # elements of a value
LARGE, NOISE, MOVED = 1e4, 1e-5, 2e-3
DTYPES = {"f32": DType.f32, "i64": DType.i64, "bool": DType.bool}


@dataclass(frozen=True)
class Model:
    """A graph, and float32 values of its leaves by name."""

    seed: int
    graph: Graph
    values: Mapping[str, Tensor]

    @property
    def operators(self) -> list[str]:
        return [n.op for n in self.graph.nodes if not n.is_leaf]


def model(seed: int) -> Model:
    """The random model of that number; the same on every machine."""
    return _Growing(seed).model()


@dataclass
class _Growing:
    seed: int
    values: dict[Node, Tensor] = field(default_factory=dict)  # float64, integers and truth values
    leaves: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.noise = torch.Generator().manual_seed(self.seed)

    def model(self) -> Model:
        rng = self.rng
        inputs = tuple(
            self.leaf("input", self.shape(rng.randint(1, 4))) for _ in range(rng.randint(1, 3))
        )
        wanted, grown = rng.randint(5, 40), 0
        for _ in range(20 * wanted):
            if grown >= wanted:
                break
            move = rng.choice(_MOVES)
            try:
                self.keep(move(self, self.some()))
            except (WhetError, RuntimeError, ValueError, IndexError, TypeError):
                continue  # it does not fit; another one will
            grown = sum(not n.is_leaf for n in self.values)
        users = {a for n in self.values for a in n.operands}
        ends = [n for n in self.values if n not in users and not n.is_leaf]
        extra = [n for n in self.values if not n.is_leaf and rng.random() < 0.05]
        outputs = tuple(dict.fromkeys((*ends[-12:], *extra))) or tuple(self.values)[-1:]
        graph = Graph(inputs, outputs)
        kept = {n.name for n in graph.nodes if n.is_leaf}
        return Model(self.seed, graph, {k: v for k, v in self.leaves.items() if k in kept})

    # -- values -----------------------------------------------------------------------------------
    def leaf(self, kind: str, shape: Sequence[int], low: float | None = None) -> Node:
        """A new leaf: an input or a parameter; `low` keeps it positive."""
        name = f"{kind[0]}{len(self.leaves)}"
        node = leaf(kind, name, TensorType(DType.f32, tuple(shape)))
        value = torch.randn(tuple(shape), generator=self.noise)
        value = value.abs() + low if low is not None else value
        if len(shape) > 1 and self.rng.random() < 0.3:  # odd strides
            padded = torch.zeros(*shape[:-1], shape[-1] + 3)
            padded[..., : shape[-1]] = value
            value = padded[..., : shape[-1]]
        self.leaves[name] = value
        self.values[node] = value.double()
        return node

    def weight(self, *shape: int) -> Node:
        """A parameter, scaled so that sums over its trailing axes stay of order one."""
        node = self.leaf("parameter", shape)
        scale = max(1.0, math.prod(shape[1:])) ** -0.5
        self.leaves[node.name] *= scale
        self.values[node] = self.leaves[node.name].double()
        return node

    def shape(self, rank: int) -> list[int]:
        while True:
            found = [self.rng.choice(SIZES) for _ in range(rank)]
            if math.prod(found) <= MOST:
                return found

    def some(self, fit: Callable[[Node], bool] = lambda n: n.dtype is DType.f32) -> Node:
        """One of the values, the newer the likelier."""
        nodes = [n for n in self.values if fit(n)]
        return nodes[-1 - min(int(self.rng.expovariate(0.4)), len(nodes) - 1)]

    def like(self, x: Node) -> Node:
        """A float value that broadcasts against `x`: one that is there, or a new parameter."""

        def fits(n: Node) -> bool:
            if n.dtype is not DType.f32 or len(n.shape) > len(x.shape):
                return False
            return all(a in (b, 1) for a, b in zip(n.shape[::-1], x.shape[::-1], strict=False))

        if self.rng.random() < 0.6:
            return self.some(fits)
        rank = self.rng.randint(0, len(x.shape))
        sizes = [n if self.rng.random() < 0.7 else 1 for n in _shape(x)[len(x.shape) - rank :]]
        return self.leaf("parameter", sizes)

    def keep(self, node: Node) -> Tensor | None:
        """The value of a new node, and of new ones below it, where they are well conditioned."""
        if node in self.values:
            return self.values[node]
        operands: list[Tensor | None] = []
        for a in node.args:
            value = None if a is None else self.keep(a)
            if a is not None and value is None:
                return None
            operands.append(value)
        value = aten.call(node, operands)
        value = value.double() if value.is_floating_point() else value
        if not 0 < value.numel() <= MOST:
            return None
        if value.is_floating_point() and not bool((value.abs() < LARGE).all()):
            return None
        floats = [x for x in operands if x is not None and x.is_floating_point()]
        if floats:
            shaken = [
                x * (1 + NOISE * self._random(x)) + NOISE * self._random(x)
                if x is not None and x.is_floating_point() else x
                for x in operands
            ]  # fmt: skip
            other = aten.call(node, shaken)
            scale = float(value.double().abs().max()) + 1e-3
            if not float((other.double() - value.double()).abs().max()) <= MOVED * scale:
                return None
        self.values[node] = value
        return value

    def _random(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.noise, dtype=torch.float64)


def _shape(n: Node) -> tuple[int, ...]:
    return tuple(int(str(k)) for k in n.shape)


# -- moves: value -> an operator on it -------------------------------------------------------------
Move = Callable[[_Growing, Node], Node]


def _pointwise(arity: int) -> tuple[str, ...]:
    """Operators of `arity` operands over one group of axes, without attributes."""
    found = []
    for name, op in TABLE.items():
        if op.record is not None and not op.record.patterns and len(op.record.operands) == arity:
            texts = {ast.unparse(o.slice).strip("(),") for _, o, _ in op.record.operands}
            if texts == {"*b"} and not name.startswith("bitwise"):
                found.append(name)
    return tuple(found)


UNARY, BINARY = _pointwise(1), _pointwise(2)


def _unary(m: _Growing, x: Node) -> Node:
    return apply(m.rng.choice(UNARY), x)


def _binary(m: _Growing, x: Node) -> Node:
    pair = [x, m.like(x)]
    m.rng.shuffle(pair)
    return apply(m.rng.choice(BINARY), *pair)


def _tame(m: _Growing, x: Node) -> Node:
    """Arithmetic that always fits: most of what models are made of."""
    op = m.rng.choice(("add", "sub", "mul", "maximum", "relu", "tanh", "sigmoid", "gelu", "silu"))
    return apply(op, x, m.like(x)) if op in BINARY else apply(op, x)


def _attributed(m: _Growing, x: Node) -> Node:
    name, attrs = m.rng.choice((
        ("leaky_relu", {"slope": 0.1}), ("elu", {"alpha": 1.2}),
        ("softplus", {"beta": 1.5, "threshold": 4.0}), ("clamp", {"low": -0.7, "high": 1.1}),
        ("clamp", {"low": -math.inf, "high": 0.5}),
    ))  # fmt: skip
    return apply(name, x, **attrs)


def _number(m: _Growing, x: Node) -> Node:
    return apply(m.rng.choice(("add", "mul", "sub")), x, full(m.rng.uniform(-2, 2), DType.f32))


def _where(m: _Growing, x: Node) -> Node:
    y = m.like(x)
    test = apply(m.rng.choice(("lt", "ge", "gt")), x, full(m.rng.uniform(-1, 1), DType.f32))
    return apply("where", test, x, y)


def _cast(m: _Growing, x: Node) -> Node:
    counted = m.some(lambda n: n.dtype is not DType.f32)
    return apply("cast", counted, dtype=DType.f32)


def _linear(m: _Growing, x: Node) -> Node:
    n = m.rng.choice(SIZES)
    bias = m.leaf("parameter", (n,)) if m.rng.random() < 0.6 else None
    return apply("linear", x, m.weight(n, _shape(x)[-1]), bias)


def _matmul(m: _Growing, x: Node) -> Node:
    *batch, _, k = _shape(x)
    if m.rng.random() < 0.3:
        dims = (*range(len(batch)), len(batch) + 1, len(batch))
        return apply("matmul", apply("mul", x, full(k**-0.5, DType.f32)),
                     apply("permute", x, dims=dims))  # fmt: skip
    shape = (*batch, k, m.rng.choice(SIZES)) if m.rng.random() < 0.5 else (k, m.rng.choice(SIZES))
    w = m.weight(*shape)
    return apply("matmul", apply("mul", x, full(k**-0.5, DType.f32)), w)


def _einsum(m: _Growing, x: Node) -> Node:
    b = _shape(x)[-1]
    if len(x.shape) == 2:
        return apply("einsum", x, m.weight(b, 5), equation=m.rng.choice(("ab,bc->ca", "ab,bc->ac")))
    return apply(
        "einsum", x, m.weight(b), equation="abc,c->ba" if len(x.shape) == 3 else "abcd,d->adb"
    )


def _image(m: _Growing) -> Node:
    """A value of rank 4, or one of another rank seen as images."""
    x = m.some()
    shape = _shape(x)
    if len(shape) == 4:
        return x
    if len(shape) == 3:
        return apply("reshape", x, size=(1, *shape))
    return m.some(lambda n: n.dtype is DType.f32 and len(n.shape) == 4)


def _conv(m: _Growing, x: Node) -> Node:
    if len(x.shape) not in (3, 5):
        x = _image(m)
    _, c, *sizes = _shape(x)
    groups = m.rng.choice([g for g in (1, 1, 1, 2, 3, c) if c % g == 0])
    out = groups * m.rng.choice((1, 2, 3, 5) if groups > 1 else (1, 3, 8, 13, 16))
    kernel = [min(m.rng.choice((1, 1, 2, 3, 5)), n + 2) for n in sizes]
    at = {
        "groups": groups,
        "stride": tuple(m.rng.choice((1, 1, 2, 3)) for _ in kernel),
        "padding": tuple(m.rng.randint(0, k // 2 + 1) for k in kernel),
        "dilation": tuple(m.rng.choice((1, 1, 1, 2)) for _ in kernel),
    }
    weight = m.weight(out, c // groups, *kernel)
    bias = m.leaf("parameter", (out,)) if m.rng.random() < 0.5 else None
    return apply(f"conv{len(kernel)}d", x, weight, bias, **at)


def _transposed(m: _Growing, x: Node) -> Node:
    x = _image(m)
    c = _shape(x)[1]
    kernel = [m.rng.choice((1, 2, 3)) for _ in range(2)]
    return apply(
        "conv_transpose2d", x, m.weight(c, m.rng.choice((1, 3, 4)), *kernel), None, groups=1,
        stride=tuple(m.rng.choice((1, 2)) for _ in kernel), padding=(0, 0), dilation=(1, 1),
        output_padding=(0, 0),
    )  # fmt: skip


def _pool(m: _Growing, x: Node) -> Node:
    if len(x.shape) not in (3, 5):
        x = _image(m)
    kernel = tuple(min(m.rng.choice((1, 2, 3)), n) for n in _shape(x)[2:])
    rank = len(kernel)
    at = {
        "kernel": kernel, "stride": tuple(m.rng.choice((1, 2)) for _ in kernel),
        "padding": tuple(m.rng.randint(0, k // 2) for k in kernel), "extra": (0,) * rank,
    }  # fmt: skip
    match m.rng.randint(0, 2):
        case 0:
            return apply(f"max_pool{rank}d", x, **at, dilation=(1,) * rank)
        case 1:
            return apply(f"avg_pool{rank}d", x, **at, include_padding=m.rng.random() < 0.5)
    size = tuple(m.rng.choice((1, 2, 3)) for _ in kernel)
    return apply(f"adaptive_avg_pool{rank}d", x, size=size)


def _resize(m: _Growing, x: Node) -> Node:
    x = _image(m)
    size = tuple(m.rng.choice((n, 2 * n, n + 1)) for n in _shape(x)[2:])
    return apply(m.rng.choice(("interpolate_nearest", "interpolate_bilinear")), x, size=size)


def _attention(m: _Growing, x: Node) -> Node:
    if len(x.shape) == 3:
        x = apply("reshape", x, size=(1, *_shape(x)))
    b, h, n, d = _shape(x)
    if m.rng.random() < 0.5:
        k, v, long = x, x, n
    else:
        long = m.rng.choice(SIZES[:8])
        k, v = m.weight(b, h, long, d), m.weight(b, h, long, m.rng.choice((d, 5)))
    mask = m.leaf("parameter", (1, 1, n, long)) if m.rng.random() < 0.3 else None
    causal = mask is None and m.rng.random() < 0.4
    return apply("attention", x, k, v, mask, scale=d**-0.5, causal=causal, group=1)


def _norm(m: _Growing, x: Node) -> Node:
    n, c = _shape(x)[-1], _shape(x)[1] if len(x.shape) > 1 else 1
    pair = [m.leaf("parameter", (n,)) if m.rng.random() < 0.6 else None for _ in range(2)]
    match m.rng.randint(0, 3):
        case 0:
            return apply("layer_norm", x, *pair, size=(n,), eps=1e-3)
        case 1:
            return apply("rms_norm", x, pair[0], size=(n,), eps=1e-3)
        case 2:
            mean, var = m.leaf("parameter", (c,)), m.leaf("parameter", (c,), low=0.3)
            return apply("batch_norm", x, mean, var, None, None, eps=1e-3)
    groups = m.rng.choice([g for g in (1, 2, 3, c) if c % g == 0])
    return apply("group_norm", x, None, None, groups=groups, eps=1e-2)


def _reduce(m: _Growing, x: Node) -> Node:
    dims = tuple(d for d in range(len(x.shape)) if m.rng.random() < 0.5) or (-1,)
    name = m.rng.choice(("sum", "mean", "mean", "amax", "amin", "var"))
    if name == "sum":
        x = apply("mul", x, full(math.prod(_shape(x)) ** -0.5, DType.f32))
    extra = {"correction": 0} if name == "var" else {}
    return apply(name, x, dims=dims, **extra)


def _along(m: _Growing, x: Node) -> Node:
    axis = m.rng.randrange(-len(x.shape), len(x.shape))
    name = m.rng.choice(("softmax", "log_softmax", "logsumexp", "cumsum", "cummax"))
    return apply(name, x, axis=axis)


def _indices(m: _Growing, x: Node) -> Node:
    return apply(m.rng.choice(("argmax", "argmin")), x, axis=m.rng.randrange(len(x.shape)))


def _lookup(m: _Growing, x: Node) -> Node:
    axis = m.rng.randrange(len(x.shape))
    ids = apply("argmax", x, axis=axis)
    if m.rng.random() < 0.5:
        return apply("embedding", m.weight(_shape(x)[axis], m.rng.choice(SIZES[:6])), ids)
    return apply(
        "index_select", x, apply("reshape", ids, size=(math.prod(_shape(ids)),)), axis=axis
    )


def _gather(m: _Growing, x: Node) -> Node:
    axis = m.rng.randrange(len(x.shape))
    ids = apply("argmax", x, axis=axis)
    shape = list(_shape(x))
    shape[axis] = 1
    return apply("gather", x, apply("reshape", ids, size=tuple(shape)), axis=axis)


def _permute(m: _Growing, x: Node) -> Node:
    dims = list(range(len(x.shape)))
    m.rng.shuffle(dims)
    return apply("permute", x, dims=tuple(dims))


def _reshape(m: _Growing, x: Node) -> Node:
    shape = list(_shape(x))
    axis = m.rng.randrange(len(shape))
    if len(shape) < 5 and m.rng.random() < 0.6:
        factor = m.rng.choice([n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0])
        shape[axis : axis + 1] = [factor, shape[axis] // factor]
    elif len(shape) > 1:
        axis = min(axis, len(shape) - 2)
        shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    return apply("reshape", x, size=tuple(shape))


def _slice(m: _Growing, x: Node) -> Node:
    axis = m.rng.randrange(len(x.shape))
    n = _shape(x)[axis]
    if m.rng.random() < 0.3:
        return apply("select", x, axis=axis, index=m.rng.randrange(n))
    start = m.rng.randrange(n)
    stop = m.rng.randint(start + 1, n)
    return apply("slice", x, axis=axis, start=start, stop=stop, step=m.rng.choice((1, 1, 2, 3)))


def _join(m: _Growing, x: Node) -> Node:
    axis = m.rng.randrange(len(x.shape))
    shape = list(_shape(x))
    others = [x]
    for _ in range(m.rng.randint(1, 3)):
        if m.rng.random() < 0.5:
            others.append(apply(m.rng.choice(("relu", "neg", "tanh")), m.rng.choice(others)))
        else:
            shape[axis] = m.rng.choice(SIZES[:6])
            others.append(m.leaf("parameter", shape))
    m.rng.shuffle(others)
    if all(o.shape == x.shape for o in others) and m.rng.random() < 0.3:
        return apply("stack", *others, axis=axis)
    return apply("concat", *others, axis=axis)


def _arrange(m: _Growing, x: Node) -> Node:
    axis = m.rng.randrange(len(x.shape))
    match m.rng.randint(0, 5):
        case 0:
            return apply("flip", x, axis=axis)
        case 1:
            return apply("roll", x, axis=axis, shift=m.rng.randint(-3, 3))
        case 2:
            return apply(m.rng.choice(("tril", "triu")), x, diagonal=m.rng.randint(-2, 2))
        case 3:
            return apply("expand", x, size=(m.rng.choice((1, 2, 3)), *_shape(x)))
        case 4:
            n = _shape(x)[axis]
            before = m.rng.randint(-min(1, n - 1), 2)
            return apply("pad", x, axis=axis, before=before, after=m.rng.randint(0, 2), value=0.5)
    n = m.rng.randint(1, _shape(x)[axis])
    shape = list(_shape(x))
    shape[axis] = n
    part = m.leaf("parameter", shape)
    start = m.rng.randint(0, _shape(x)[axis] - n)
    return apply("slice_scatter", x, part, axis=axis, start=start, step=1)


def _cell(m: _Growing, x: Node) -> Node:
    x = apply("reshape", x, size=(math.prod(_shape(x)[:-1]), _shape(x)[-1]))
    rows, n = _shape(x)
    hidden = m.rng.choice(SIZES[:8])
    h = m.leaf("parameter", (rows, hidden))
    if m.rng.random() < 0.5:
        gates = (
            m.weight(4 * hidden, n),
            m.weight(4 * hidden, hidden),
            m.leaf("parameter", (4 * hidden,)),
        )
        cell = m.leaf("parameter", (rows, hidden))
        c1 = apply("lstm_cell", x, h, cell, *gates, out="c1")
        h1 = apply("lstm_cell", x, h, cell, *gates, out="h1")
        return apply("mul", c1, h1)
    return apply(
        "gru_cell", x, h, m.weight(3 * hidden, n), m.weight(3 * hidden, hidden), None, None
    )


def _rope(m: _Growing, x: Node) -> Node:
    n, d = _shape(x)[-2:]
    return apply("rope", x, m.leaf("parameter", (n, d)), m.leaf("parameter", (n, d)))


def _shuffle(m: _Growing, x: Node) -> Node:
    return apply("pixel_shuffle", _image(m), factor=(2, 1) if m.rng.random() < 0.5 else (1, 3))


_MOVES: Sequence[Move] = (
    *[_tame] * 10, *[_unary] * 4, *[_binary] * 4, *[_linear] * 3, *[_norm] * 3, *[_reduce] * 3,
    *[_along] * 3, *[_conv] * 4, *[_pool] * 2, *[_join] * 3, *[_permute] * 3, *[_reshape] * 3,
    *[_slice] * 3, *[_arrange] * 3, *[_matmul] * 2, _attributed, _number, _where, _cast, _einsum,
    _transposed, _resize, _attention, _attention, _indices, _lookup, _gather, _cell, _rope,
    _shuffle,
)  # fmt: skip
