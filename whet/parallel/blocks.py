"""The repeated blocks of a model, found by structure.

    Model := Block-number*   distinct Layer*       a training step, or a forward pass, in order
    Layer := forward nodes, backward nodes, what enters, what leaves

The forward pass is cut wherever a single value is all that later parts read of earlier ones.
Pieces that are equal up to the names of their leaves are one layer; a row of pieces that repeats
is one layer too, so 96 layers of a transformer cost one. A backward node belongs to the last layer
(counted from the front) whose values it can read, in the order in which gradients flow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whet.ir.graph import Graph, Node, attr_text

SMALL = 400  # nodes of a step that is not worth cutting


@dataclass(frozen=True, slots=True)
class Layer:
    """One distinct block, at its first occurrence.

    Attributes:
        digest: equal exactly for blocks of the same structure.
        forward, backward: nodes in program order, without leaves.
        entering, leaving: the values that forward takes from before, and that later blocks take.
        gradients: of `parameters`, those that are trained: parameter → gradient.
        parameters: leaves that it reads first.
        sent: values that other blocks read, those that flow back too; of a forward pass alone, its
            results as well.
    """

    digest: str
    forward: tuple[Node, ...]
    backward: tuple[Node, ...]
    entering: tuple[Node, ...]
    leaving: tuple[Node, ...]
    gradients: Mapping[Node, Node]
    parameters: tuple[Node, ...]
    sent: tuple[Node, ...] = ()

    @property
    def outside(self) -> tuple[Node, ...]:
        """Values that it reads and other blocks make, activations and what flows back."""
        inside = set(self.nodes)
        reads = (a for n in self.nodes for a in n.operands)
        return tuple(dict.fromkeys(a for a in reads if not a.is_leaf and a not in inside))

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (*self.forward, *self.backward)


@dataclass(frozen=True, slots=True)
class Model:
    """A step as blocks.

    Attributes:
        graph: the whole step.
        layers: the distinct blocks.
        order: which of them stands at each place.
        places: the nodes at each place: parameter names there, for plans.
        batch: samples of the step.
        rows: the block at each place, with the nodes that it has there.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    order: tuple[int, ...]
    places: tuple[tuple[str, ...], ...]
    batch: int
    rows: tuple[Layer, ...] = ()

    @property
    def training(self) -> bool:
        return any(layer.gradients for layer in self.layers)


def model(
    graph: Graph, gradients: Sequence[str], batch: int, *, small: int = SMALL, whole: bool = False
) -> Model:
    """Cut a step into blocks.

    Args:
        graph: its first output is the loss, then one gradient for each of `gradients`; a forward
            pass without gradients has outputs only.
        gradients: names of the trained parameters.
        batch: samples in the graph's inputs.
        small: up to so many nodes, the step is one block.
        whole: one block in any case.
    """
    by_name = {n.name: n for n in graph.nodes if n.op == "parameter"}
    count = len(graph.outputs) - len(gradients)
    grads = {by_name[name]: g for name, g in zip(gradients, graph.outputs[count:], strict=True)}
    ahead = _ancestors(graph, graph.outputs[:count] if gradients else graph.outputs)
    made_up = generated(graph)
    forward = [n for n in graph.nodes if n in ahead and not n.is_leaf and n not in made_up]
    extra = _ancestors(graph, [n for _, n in graph.updates])
    updates = [n for n in graph.nodes if n in extra and n not in ahead and not n.is_leaf
               and n not in made_up]  # fmt: skip
    backward = [n for n in graph.nodes if n not in ahead and n not in extra and not n.is_leaf
                and n not in made_up]  # fmt: skip
    total = len([n for n in graph.nodes if not n.is_leaf])
    if whole or total <= small:
        pieces = [forward]
    else:
        pieces = _pieces(graph, forward)
    block_of = {n: k for k, piece in enumerate(pieces) for n in piece}
    for n in updates:  # statistics go with what they are of
        placed = [block_of[a] for a in n.operands if a in block_of]
        if placed:
            block_of[n] = max(placed)
    for n in reversed(updates):
        if n not in block_of:
            block_of[n] = min((block_of[u] for u in graph.users[n] if u in block_of), default=0)
    readers = _readers(graph, block_of)
    _assign_backward(graph, backward, block_of, readers, grads)
    members: list[list[Node]] = [[] for _ in pieces]
    behind: list[list[Node]] = [[] for _ in pieces]
    for n in (*forward, *updates):
        members[block_of[n]].append(n)
    for n in backward:
        behind[block_of[n]].append(n)
    owner: dict[Node, int] = {}
    for n in graph.nodes:
        if n.op == "parameter":
            owner[n] = min(readers.get(n, {0}))
    made = [
        _layer(k, members[k], behind[k], block_of, owner, grads, graph)
        for k in range(len(pieces))
    ]  # fmt: skip
    return _folded(graph, made, batch)


def generated(graph: Graph) -> set[Node]:
    """Values that depend on no input and no parameter: every device makes its own."""
    found: set[Node] = set()
    for n in graph.nodes:
        if not n.is_leaf and all(a in found or a.op == "constant" for a in n.operands):
            found.add(n)
    return found


def _ancestors(graph: Graph, roots: Sequence[Node]) -> set[Node]:
    need = set(roots)
    for n in reversed(graph.nodes):
        if n in need:
            need.update(n.operands)
    return need


def _pieces(graph: Graph, forward: Sequence[Node]) -> list[list[Node]]:
    """The forward pass cut where one value only is live, of those that depend on an input."""
    fed: set[Node] = set(graph.inputs)
    weighted: set[Node] = set()
    for n in forward:
        if any(a in fed for a in n.operands):
            fed.add(n)
        if any(a.op == "parameter" or a in weighted for a in n.operands):
            weighted.add(n)
    real = [n for n in forward if n in fed and n in weighted]
    place = {n: k for k, n in enumerate(real)}
    last = {n: place[n] for n in real}
    for n in real:
        for a in n.operands:
            if a in place:
                last[a] = place[n]
    live: dict[Node, int] = {}
    cuts = []
    for k, n in enumerate(real[:-1]):
        live = {m: e for m, e in live.items() if e > k}
        if last[n] > k:
            live[n] = last[n]
        if len(live) == 1 and n in live:
            cuts.append(k)
    cuts = _chosen(real, cuts, graph)
    number: dict[Node, int] = {}
    at = 0
    ends = set(cuts)
    for k, n in enumerate(real):
        number[n] = at
        if k in ends:
            at += 1
    # What needs no input or no weight goes with its first reader.
    readers: dict[Node, int] = {}
    for n in reversed(forward):
        k = number.get(n, readers.get(n, at))
        number[n] = k
        for a in n.operands:
            readers[a] = min(readers.get(a, at), k)
    pieces: list[list[Node]] = [[] for _ in range(at + 1)]
    for n in forward:
        pieces[number[n]].append(n)
    return [p for p in pieces if p]


def _chosen(real: Sequence[Node], cuts: Sequence[int], graph: Graph) -> list[int]:
    """Of the places to cut, those where ways part or join: a residual begins or ends there.

    Where that finds next to nothing, the places before each use of a weight.
    """
    inside = set(real)
    forks = []
    for k in cuts:
        readers = [u for u in graph.users[real[k]] if u in inside]
        joined = {a for a in real[k].operands if a in inside}
        if len(readers) > 1 or len(joined) > 1:
            forks.append(k)
    if len(forks) > 3:
        return forks
    ends = set(cuts)
    return [
        k
        for k in cuts
        if any(a.op == "parameter" or _from_weight(a) for a in real[k + 1].operands) and k in ends
    ]


def _from_weight(n: Node) -> bool:
    return len(n.operands) == 1 and n.operands[0].op == "parameter"


def _readers(graph: Graph, block_of: Mapping[Node, int]) -> dict[Node, set[int]]:
    found: dict[Node, set[int]] = {}
    for n in graph.nodes:
        if n in block_of:
            for a in n.operands:
                found.setdefault(a, set()).add(block_of[n])
    # A view of a parameter is read where its users are.
    for n in reversed(graph.nodes):
        if n in block_of and _from_weight(n):
            found.setdefault(n.operands[0], set()).update(found.get(n, set()))
    return found


def _assign_backward(
    graph: Graph,
    backward: Sequence[Node],
    block_of: dict[Node, int],
    readers: Mapping[Node, set[int]],
    grads: Mapping[Node, Node],
) -> None:
    ends = set(backward)
    of = {g: min(readers.get(p, {0})) for p, g in grads.items()}
    top = max(block_of.values(), default=0)
    for n in backward:
        bound = min((block_of[a] for a in n.operands if a in ends), default=top)
        places = []
        for a in n.operands:
            if a in ends:
                continue
            here = readers.get(a, set()) | ({block_of[a]} if a in block_of else set())
            fits = [k for k in here if k <= bound]
            if fits and (a in block_of or a.op == "parameter"):
                places.append(max(fits))
        block_of[n] = min([bound, *places, *([of[n]] if n in of else [])])
    for n in reversed(backward):  # a view of what flows back goes with those who read it
        below = [block_of[u] for u in graph.users[n] if u in ends]
        if len(n.operands) == 1 and below and max(below) < block_of[n]:
            block_of[n] = max(below)


def _layer(
    k: int,
    members: Sequence[Node],
    behind: Sequence[Node],
    block_of: Mapping[Node, int],
    owner: Mapping[Node, int],
    grads: Mapping[Node, Node],
    graph: Graph,
) -> Layer:
    inside = {*members, *behind}
    entering = dict.fromkeys(
        a for n in members for a in n.operands if a in block_of and block_of[a] < k
    )
    leaving = dict.fromkeys(
        n for n in members
        if n in graph.outputs or any(block_of[u] > k and u not in inside for u in graph.users[n])
    )  # fmt: skip
    own = tuple(
        dict.fromkeys(
            a for n in (*members, *behind) for a in n.operands
            if a.op == "parameter" and owner.get(a) == k
        )
    )  # fmt: skip
    gradients = {p: grads[p] for p in own if p in grads}
    sent = _sent((*members, *behind), graph, results=not grads)
    return Layer(
        _digest(members, behind, own, grads), tuple(members), tuple(behind), tuple(entering),
        tuple(leaving), gradients, own, sent,
    )  # fmt: skip


def _sent(nodes: Sequence[Node], graph: Graph, *, results: bool) -> tuple[Node, ...]:
    """What others read of a block's nodes, and what the whole hands out if that is asked for."""
    inside, out = set(nodes), set(graph.outputs) if results else set()
    return tuple(n for n in nodes if n in out or any(u not in inside for u in graph.users[n]))


def _digest(
    members: Sequence[Node],
    behind: Sequence[Node],
    own: Sequence[Node],
    trained: Mapping[Node, Node],
) -> str:
    """Of the structure: leaves and what comes from outside count by their order and type."""
    number: dict[Node, str] = {}
    lines = []

    def name(a: Node | None) -> str:
        if a is None:
            return "-"
        if a not in number:
            kind = "own" if a in known else a.op if a.is_leaf else "outside"
            number[a] = f"{kind}{len(number)}:{a.type!r}"
        return number[a]

    known = {p for p in own if p in trained}
    for direction, nodes in (("f", members), ("b", behind)):
        for n in nodes:
            attrs = ",".join(f"{k}={attr_text(v)}" for k, v in n.attrs)
            lines.append(f"{direction} {n.op}({','.join(map(name, n.args))};{attrs}){n.type!r}")
            number[n] = f"n{len(number)}"
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()


def _folded(graph: Graph, pieces: Sequence[Layer], batch: int) -> Model:
    """Equal pieces become one layer; rows of pieces that repeat are joined first."""
    row = list(pieces)
    for period in range(2, 7):
        row = _joined(graph, row, period)
    distinct: dict[str, int] = {}
    layers: list[Layer] = []
    order = []
    for piece in row:
        if piece.digest not in distinct:
            distinct[piece.digest] = len(layers)
            layers.append(piece)
        order.append(distinct[piece.digest])
    places = tuple(tuple(p.name for p in piece.parameters) for piece in row)
    return Model(graph, tuple(layers), tuple(order), places, batch, tuple(row))


def _joined(graph: Graph, row: list[Layer], period: int) -> list[Layer]:
    """Replace what repeats with this period, three times or more, by joint pieces."""
    found: list[Layer] = []
    k = 0
    while k < len(row):
        unit = [p.digest for p in row[k : k + period]]
        times = 1
        while [p.digest for p in row[k + times * period : k + (times + 1) * period]] == unit:
            times += 1
        if times >= 2 and len(unit) == period and len(set(unit)) > 1:
            found += [
                _merged(graph, row[k + t * period : k + (t + 1) * period]) for t in range(times)
            ]
            k += times * period
        else:
            found.append(row[k])
            k += 1
    return found


def _merged(graph: Graph, pieces: Sequence[Layer]) -> Layer:
    inside = {n for p in pieces for n in p.forward}
    gradients = {k: v for p in pieces for k, v in p.gradients.items()}
    leaving = dict.fromkeys(n for n in pieces[-1].leaving)
    every = tuple(n for p in pieces for n in p.nodes)
    sent = set(_sent(every, graph, results=not gradients))
    text = "+".join(p.digest for p in pieces)
    return Layer(
        hashlib.blake2b(text.encode(), digest_size=12).hexdigest(),
        tuple(n for p in pieces for n in p.forward),
        tuple(n for p in reversed(pieces) for n in p.backward),
        tuple(dict.fromkeys(n for p in pieces for n in p.entering if n not in inside)),
        tuple(leaving),
        gradients,
        tuple(n for p in pieces for n in p.parameters),
        tuple(n for p in pieces for n in p.sent if n in sent),
    )
