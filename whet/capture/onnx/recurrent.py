"""Recurrent networks, unrolled over time and directions.

A layer with the standard's own activations is a chain of the table's cells, its weights brought to
the table's order of gates. Any other (peepholes, clipping, other activations, a GRU that resets
before the product) is written out, gate by gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whet.capture.onnx.call import (
    ROWS,
    Call,
    NoMapping,
    Value,
    cast,
    filled,
    literal,
    onnx,
    permute,
    reshape,
    sizes,
)
from whet.ir.graph import Node, apply
from whet.ir.types import DType

State = tuple[Node, ...]
Step = Callable[[Node, State], State]


@dataclass(frozen=True, slots=True)
class Weights:
    """One direction: input weights, recurrent weights, their biases, peepholes."""

    w: Node
    r: Node
    wb: Node | None
    rb: Node | None
    p: Node | None


@dataclass(frozen=True, slots=True)
class Style:
    """What a layer does otherwise than the table's cells."""

    call: Call
    functions: tuple[str, ...]
    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    clip: float | None

    def function(self, k: int, x: Node) -> Node:
        """The k-th activation of x, clipped before."""
        if self.clip is not None:
            x = apply("clamp", x, low=-self.clip, high=self.clip)
        name = self.functions[k]
        row = {"Affine": None}.get(name, ROWS.get(name))
        if row is None:
            raise NoMapping(f"activation {name}")
        given: dict[str, object] = {}
        if name in ("LeakyRelu", "Elu", "HardSigmoid", "ThresholdedRelu") and self.alphas:
            given["alpha"] = self.alphas[min(k, len(self.alphas) - 1)]
        if name == "HardSigmoid" and self.betas:
            given["beta"] = self.betas[min(k, len(self.betas) - 1)]
        y = row(self.call, x, **given)
        assert isinstance(y, Node)
        return y


def _gates(t: Node | None, order: Sequence[int], count: int) -> Node | None:
    """The blocks of a weight in another order."""
    if t is None:
        return None
    rows = sizes(t)[0] // count
    blocks = [apply("slice", t, axis=0, start=g * rows, stop=(g + 1) * rows, step=1) for g in order]
    return apply("concat", *blocks, axis=0)


def _sum(a: Node | None, b: Node | None) -> Node | None:
    return a if b is None else b if a is None else apply("add", a, b)


def _part(t: Node, k: int, count: int, axis: int) -> Node:
    size = sizes(t)[axis] // count
    return apply("slice", t, axis=axis, start=k * size, stop=(k + 1) * size, step=1)


# -- cells ---------------------------------------------------------------------------------------
def _lstm(style: Style, v: Weights, input_forget: int) -> Step:
    if style.functions == ("Sigmoid", "Tanh", "Tanh") and v.p is None and style.clip is None:
        if not input_forget:
            order = (0, 2, 3, 1)  # the standard's i, o, f, c as i, f, c, o
            w, r, b = (_gates(t, order, 4) for t in (v.w, v.r, _sum(v.wb, v.rb)))

            def whole(x: Node, state: State) -> State:
                h, c = (apply("lstm_cell", x, *state, w, r, b, out=o) for o in ("h1", "c1"))
                return h, c

            return whole

    def step(x: Node, state: State) -> State:
        h, c = state
        z = apply("add", apply("linear", x, v.w, v.wb), apply("linear", h, v.r, v.rb))
        i, o, f, g = (_part(z, k, 4, 1) for k in range(4))
        peep = [None] * 3 if v.p is None else [_part(v.p, k, 3, 0) for k in range(3)]
        if peep[0] is not None and peep[2] is not None:
            i = apply("add", i, apply("mul", peep[0], c))
            f = apply("add", f, apply("mul", peep[2], c))
        i = style.function(0, i)
        f = apply("sub", literal(1, i), i) if input_forget else style.function(0, f)
        new = apply("add", apply("mul", f, c), apply("mul", i, style.function(1, g)))
        if peep[1] is not None:
            o = apply("add", o, apply("mul", peep[1], new))
        return apply("mul", style.function(0, o), style.function(2, new)), new

    return step


def _gru(style: Style, v: Weights, linear_before_reset: int) -> Step:
    plain = style.functions == ("Sigmoid", "Tanh") and style.clip is None
    if plain and linear_before_reset:
        order = (1, 0, 2)  # the standard's z, r, h as r, z, h
        w, r, a, b = (_gates(t, order, 3) for t in (v.w, v.r, v.wb, v.rb))
        return lambda x, state: (apply("gru_cell", x, *state, w, r, a, b),)

    def step(x: Node, state: State) -> State:
        (h,) = state
        p = [_part(apply("linear", x, v.w, v.wb), k, 3, 1) for k in range(3)]
        q = [_part(apply("linear", h, v.r, v.rb), k, 3, 1) for k in range(3)]
        z, r = (style.function(0, apply("add", p[k], q[k])) for k in (0, 1))
        if linear_before_reset:
            recurrent = apply("mul", r, q[2])
        else:
            bias = None if v.rb is None else _part(v.rb, 2, 3, 0)
            recurrent = apply("linear", apply("mul", r, h), _part(v.r, 2, 3, 0), bias)
        new = style.function(1, apply("add", p[2], recurrent))
        kept = apply("mul", apply("sub", literal(1, z), z), new)
        return (apply("add", kept, apply("mul", z, h)),)

    return step


def _rnn(style: Style, v: Weights, _: int) -> Step:
    def step(x: Node, state: State) -> State:
        both = apply("add", apply("linear", x, v.w, v.wb), apply("linear", *state, v.r, v.rb))
        return (style.function(0, both),)

    return step


@dataclass(frozen=True, slots=True)
class Kind:
    """One operator: gates, states, what its activations are by default, its cell."""

    gates: int
    states: int
    functions: tuple[str, ...]
    cell: Callable[[Style, Weights, int], Step]


KINDS = {
    "LSTM": Kind(4, 2, ("Sigmoid", "Tanh", "Tanh"), _lstm),
    "GRU": Kind(3, 1, ("Sigmoid", "Tanh"), _gru),
    "RNN": Kind(1, 1, ("Tanh",), _rnn),
}


# -- layers --------------------------------------------------------------------------------------
@onnx("LSTM", "GRU", "RNN")
def recurrent(
    call: Call, x: Node, w: Node, r: Node, b: Node | None = None, lengths: Node | None = None,
    initial_h: Node | None = None, initial_c: Node | None = None, p: Node | None = None,
    activation_alpha: Sequence[float] = (), activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None, clip: float | None = None,
    direction: str = "forward", hidden_size: int | None = None, input_forget: int = 0,
    layout: int = 0, linear_before_reset: int = 0, output_sequence: int = 0,
) -> Value:  # fmt: skip
    """A layer; answers the sequence of its hidden states, and its last states."""
    kind = KINDS[call.node.op]
    ways = 2 if direction == "bidirectional" else 1
    if layout:
        x = permute(x, (1, 0, 2))
    steps, batch, _ = sizes(x)
    hidden = sizes(r)[2]
    given = (initial_h, initial_c)[: kind.states]
    starts = [permute(s, (1, 0, 2)) if s is not None and layout else s for s in given]
    names = tuple(activations or kind.functions * ways)
    count = len(kind.functions)
    flag = input_forget if call.node.op == "LSTM" else linear_before_reset
    xs = [apply("select", x, axis=0, index=t) for t in range(steps)]
    mask = _mask(call, lengths, steps, batch)
    outs: list[list[Node]] = []
    last: list[State] = []
    for way in range(ways):
        style = Style(
            call, names[way * count : (way + 1) * count], tuple(activation_alpha),
            tuple(activation_beta), clip,
        )  # fmt: skip
        step = kind.cell(style, _weights(w, r, b, p, way, kind.gates), flag)
        zero = filled(0, x.dtype, (batch, hidden))
        state = tuple(zero if s is None else apply("select", s, axis=0, index=way) for s in starts)
        backwards = direction == "reverse" or way == 1
        order = list(range(steps))[::-1] if backwards else list(range(steps))
        seen: list[Node] = [xs[0]] * steps
        for t in order:
            new = step(xs[t], state)
            shown = new[0]
            if mask is not None:
                # Beyond a sequence's end its state stays, and what is shown is zero. Read from
                # behind, a shorter sequence so starts where it ends.
                inside = mask[t]
                state = tuple(apply("where", inside, n, s) for n, s in zip(new, state, strict=True))
                shown = apply("where", inside, shown, literal(0, shown))
            else:
                state = new
            seen[t] = shown
        outs.append(seen)
        last.append(state)
    return _results(outs, last, layout)


def _weights(w: Node, r: Node, b: Node | None, p: Node | None, way: int, gates: int) -> Weights:
    def own(t: Node) -> Node:
        return apply("select", t, axis=0, index=way)

    wb = rb = None
    if b is not None:
        wb, rb = (_part(own(b), k, 2, 0) for k in (0, 1))
    return Weights(own(w), own(r), wb, rb, None if p is None else own(p))


def _mask(call: Call, lengths: Node | None, steps: int, batch: int) -> list[Node] | None:
    """For each step which sequences of the batch it belongs to; None where all are whole."""
    if lengths is None:
        return None
    known = call.known(lengths)
    if known is not None and bool((known == steps).all()):
        return None
    ends = reshape(cast(lengths, DType.i64), (batch, 1))
    return [apply("gt", ends, literal(t, ends)) for t in range(steps)]


def _results(outs: list[list[Node]], last: list[State], layout: int) -> Value:
    """Sequence [time, way, batch, hidden] and last states [way, batch, hidden]; batch first."""
    sides = [apply("stack", *side, axis=0) for side in outs]
    y = apply("stack", *sides, axis=2 if layout else 1)
    if layout:
        y = permute(y, (1, 0, 2, 3))
    ends = [apply("stack", *each, axis=1 if layout else 0) for each in zip(*last, strict=True)]
    return [y, *ends]
