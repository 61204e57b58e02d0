"""Recurrent networks, unrolled over layers, directions and time into cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.capture.aten.call import Call, NoMapping, Value, aten, ints, reshape
from whet.ir.graph import Node, apply

State = tuple[Node, ...]
Cell = Callable[[Node, State, Sequence[Node]], State]


def _lstm(x: Node, state: State, weights: Sequence[Node]) -> State:
    w, u, *biases = weights[:4]
    bias = apply("add", *biases) if biases else None
    h, c = (apply("lstm_cell", x, *state, w, u, bias, out=o) for o in ("h1", "c1"))
    return h, c


def _gru(x: Node, state: State, weights: Sequence[Node]) -> State:
    w, u, *biases = weights[:4]
    return (apply("gru_cell", x, *state, w, u, *(biases or (None, None))),)


def _plain(function: str) -> Cell:
    def step(x: Node, state: State, weights: Sequence[Node]) -> State:
        w, u, *biases = weights[:4]
        a, b = biases or (None, None)
        return (
            apply(function, apply("add", apply("linear", x, w, a), apply("linear", *state, u, b))),
        )

    return step


CELLS: dict[str, Cell] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _plain("tanh"),
    "rnn_relu": _plain("relu"),
}


@aten("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def recurrent(
    call: Call,
    x: Node,
    hx: Node | list[Node],
    params: list[Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Value:
    """Layers of cells; answers the sequence and the last state, as the library does."""
    if train and dropout > 0:
        raise NoMapping("draws random numbers")
    cell = CELLS[call.target.split(".")[1]]
    states = hx if isinstance(hx, list) else [hx]
    single = len(x.shape) == 2
    if single:
        x = reshape(x, (ints(x.shape)[0], 1, ints(x.shape)[1]))
        states = [reshape(s, (ints(s.shape)[0], 1, ints(s.shape)[1])) for s in states]
    time = 1 if batch_first and not single else 0
    ways = 2 if bidirectional else 1
    width = len(params) // (num_layers * ways)
    steps = ints(x.shape)[time]
    xs = [apply("select", x, axis=time, index=t) for t in range(steps)]
    last: list[State] = []
    for layer in range(num_layers):
        outs: list[list[Node]] = []
        for way in range(ways):
            k = layer * ways + way
            weights = params[k * width : (k + 1) * width]
            if len(weights) > (4 if has_biases else 2):
                raise NoMapping("projected states")
            state = tuple(apply("select", s, axis=0, index=k) for s in states)
            hidden: list[Node] = []
            for value in reversed(xs) if way else xs:
                state = cell(value, state, weights)
                hidden.append(state[0])
            outs.append(hidden[::-1] if way else hidden)
            last.append(state)
        xs = [
            apply("concat", *both, axis=1) if ways == 2 else both[0]
            for both in zip(*outs, strict=True)
        ]
    results = [apply("stack", *xs, axis=time)]
    results += [apply("stack", *each, axis=0) for each in zip(*last, strict=True)]
    return [
        reshape(r, ints(t.shape)) for r, t in zip(results, call.types, strict=True) if t is not None
    ]


@aten("lstm_cell")
def lstm_cell(
    call: Call,
    x: Node,
    hx: list[Node],
    w_ih: Node,
    w_hh: Node,
    b_ih: Node | None = None,
    b_hh: Node | None = None,
) -> Value:
    """One step of an LSTM: its hidden and its cell state."""
    biases = [b for b in (b_ih, b_hh) if b is not None]
    return list(_lstm(x, tuple(hx), [w_ih, w_hh, *biases]))


@aten("gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def state_cell(
    call: Call,
    x: Node,
    hx: Node,
    w_ih: Node,
    w_hh: Node,
    b_ih: Node | None = None,
    b_hh: Node | None = None,
) -> Node:
    """One step of a GRU or of a plain recurrent network."""
    biases = [b for b in (b_ih, b_hh) if b is not None]
    name = call.target.split(".")[1].removesuffix("_cell")
    return CELLS[name](x, (hx,), [w_ih, w_hh, *biases])[0]
