"""Control flow and sequences, as far as they are settled at import.

A branch on a known condition is taken; on an unknown one both are computed, and one is chosen. A
loop runs as often as is known at import, a scan over the length of what it scans. A sequence is a
list of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whet.capture.aten.call import cut
from whet.capture.onnx.call import (
    Call,
    NoMapping,
    Value,
    axis_in,
    onnx,
    reshape,
    sizes,
)
from whet.capture.onnx.model import OnnxGraph
from whet.ir.graph import Node, apply

_TURNS = 1 << 12  # a loop that turns more often is not unrolled


@onnx("If")
def if_(call: Call, condition: Node, then_branch: OnnxGraph, else_branch: OnnxGraph) -> Value:
    """One of two graphs."""
    known = call.known(condition)
    if known is not None:
        return call.walk.body(then_branch if bool(known.reshape(())) else else_branch, [])
    one, other = (call.walk.body(g, []) for g in (then_branch, else_branch))
    chosen: list[Value] = []
    for a, b in zip(one, other, strict=True):
        if not isinstance(a, Node) or not isinstance(b, Node) or a.type != b.type:
            raise NoMapping(
                f"branches of different types, and the condition depends on "
                f"{call.walk.blame(condition)}"
            )
        chosen.append(apply("where", reshape(condition, ()), a, b))
    return chosen


@onnx("Loop")
def loop(
    call: Call, count: Node | None, condition: Node | None, *carried: Value, body: OnnxGraph
) -> Value:
    """A graph, over and over; what it collects is stacked."""
    turns = int(call.scalar(count, "the number of turns")) if count is not None else _TURNS + 1
    going = condition is None or bool(call.scalar(condition, "the condition"))
    state = list(carried)
    collected: list[list[Node]] = [[] for _ in range(len(body.outputs) - 1 - len(state))]
    turn = 0
    while going and turn < turns:
        if turn == _TURNS:
            raise NoMapping(f"a loop of more than {_TURNS} turns")
        # The condition stands where the body's first output does; the body sees the turn's number.
        number = call.constant(torch.tensor(turn))
        entry = call.constant(torch.tensor(True))
        ongoing, *rest = call.walk.body(body, [number, entry, *state])
        state, found = rest[: len(state)], rest[len(state) :]
        for each, value in zip(collected, found, strict=True):
            assert isinstance(value, Node)
            each.append(value)
        assert isinstance(ongoing, Node)
        going = bool(call.scalar(ongoing, "the condition"))
        turn += 1
    return [*state, *(_stacked(c, 0) for c in collected)]


def _stacked(values: Sequence[Node], axis: int) -> Node:
    if not values:
        raise NoMapping("a loop that never turns, with something to collect")
    return apply("stack", *values, axis=axis)


@onnx("Scan")
def scan(
    call: Call, *values: Node, body: OnnxGraph, num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None, directions: Sequence[int] | None = None,
) -> Value:  # fmt: skip
    """A graph over the slices of some inputs."""
    if call.opset < 9:
        raise NoMapping("scans of version 8")
    split = len(values) - num_scan_inputs
    state: list[Value] = list(values[:split])
    scanned = values[split:]
    axes = scan_input_axes or (0,) * num_scan_inputs
    ways = scan_input_directions or (0,) * num_scan_inputs
    places = [axis_in(a, len(s.shape)) for a, s in zip(axes, scanned, strict=True)]
    turns = sizes(scanned[0])[places[0]]
    outs = len(body.outputs) - split
    collected: list[list[Node]] = [[] for _ in range(outs)]
    for turn in range(turns):
        slices = [
            apply("select", s, axis=k, index=turns - 1 - turn if way else turn)
            for s, k, way in zip(scanned, places, ways, strict=True)
        ]
        results = call.walk.body(body, [*state, *slices])
        state = results[:split]
        for each, value in zip(collected, results[split:], strict=True):
            assert isinstance(value, Node)
            each.append(value)
    out_axes = scan_output_axes or (0,) * outs
    out_ways = scan_output_directions or (0,) * outs
    stacked = [
        _stacked(c[::-1] if way else c, axis_in(a, len(c[0].shape) + 1) if c else 0)
        for c, a, way in zip(collected, out_axes, out_ways, strict=True)
    ]
    return [*state, *stacked]


# -- sequences -----------------------------------------------------------------------------------
@onnx("SequenceEmpty")
def sequence_empty(call: Call, dtype: int = 1) -> Value:
    """A sequence of nothing."""
    return [[]]


@onnx("SequenceConstruct")
def sequence_construct(call: Call, *xs: Node) -> Value:
    """A sequence of tensors."""
    return [list(xs)]


@onnx("SequenceInsert")
def sequence_insert(call: Call, xs: list[Value], x: Node, position: Node | None = None) -> Value:
    """One more, at the end by default."""
    at = len(xs) if position is None else int(call.scalar(position, "the position"))
    at = at + len(xs) if at < 0 else at
    return [[*xs[:at], x, *xs[at:]]]


@onnx("SequenceErase")
def sequence_erase(call: Call, xs: list[Value], position: Node | None = None) -> Value:
    """One less, the last by default."""
    at = len(xs) - 1 if position is None else int(call.scalar(position, "the position")) % len(xs)
    return [[*xs[:at], *xs[at + 1 :]]]


@onnx("SequenceAt")
def sequence_at(call: Call, xs: list[Value], position: Node) -> Value:
    """One of a sequence."""
    return [xs[int(call.scalar(position, "the position"))]]


@onnx("SequenceLength")
def sequence_length(call: Call, xs: list[Value]) -> Value:
    """How many there are."""
    return [call.constant(torch.tensor(len(xs)))]


@onnx("ConcatFromSequence")
def concat_from_sequence(call: Call, xs: list[Node], axis: int, new_axis: int = 0) -> Value:
    """All of a sequence, one after the other or side by side."""
    rank = len(xs[0].shape) + bool(new_axis)
    return [apply("stack" if new_axis else "concat", *xs, axis=axis_in(axis, rank))]


@onnx("SplitToSequence")
def split_to_sequence(
    call: Call, x: Node, split: Node | None = None, axis: int = 0, keepdims: int = 1
) -> Value:
    """A dim cut into pieces of a length, of given lengths, or each position for itself."""
    k = axis_in(axis, len(x.shape))
    size = sizes(x)[k]
    if split is None:
        pieces = [cut(x, k, i, i + 1) for i in range(size)]
        if not keepdims:
            pieces = [apply("select", x, axis=k, index=i) for i in range(size)]
        return [list(pieces)]
    lengths = list(call.ints(split, "the lengths"))
    if not split.shape:
        each = lengths[0]
        lengths = [min(each, size - i) for i in range(0, size, each)]
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [[cut(x, k, end - n, end) for n, end in zip(lengths, ends, strict=True)]]
