"""The engine "native": the whole body as one shared object with one entry, called without Python.

    graph, kernels → pieces (whet.backend.cut) → memory plan → C text → Native → Runner → Bound

    folder := native.json  native-DIGEST.so
    Native := library, kinds of inputs and outputs, constants, arena bytes, torch, processor

A `Native` is all that loading needs besides the graph, whose part above the body (`prologue`) makes
the constants: no compiler, no search. `whet.run.calling` calls it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.artifact import this_processor
from whet.backend.cluster import Cluster
from whet.backend.cut import Make, cut
from whet.backend.link import link
from whet.backend.lowered import Lowered, Step
from whet.backend.packed import Kernel
from whet.backend.piece import Body, Generated, Piece, Value
from whet.backend.transform import How, named, transformed
from whet.errors import StoreError, UnsupportedError
from whet.fuse.partition import Partition
from whet.ir.cost import node_cost, traffic
from whet.ir.graph import Graph, Node
from whet.run import spread
from whet.run.entry import TYPES, entry
from whet.run.memory import plan
from whet.store import Store

FORMAT = 1
MANIFEST = "native.json"
NAME = "whet_program"
CALL = Path(__file__).with_name("call.c")


@dataclass(frozen=True, slots=True)
class Kind:
    """A dense tensor's type, as the call checks it."""

    type: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A constant as the program takes it.

    Attributes:
        node: digest of the graph's value.
        how: what is done to it ahead of time; see `whet.backend.transform`.
        handle: the program takes a handle of it, else its address.
        shape, strides: how the handle sees it.
    """

    node: str
    how: How
    handle: bool
    shape: tuple[int, ...] | None
    strides: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Made:
    """One call of a program, for profiles.

    Attributes:
        name: "generated", or library and variant.
        operators: what it computes, joined by "+".
        flops, bytes: arithmetic operations, and bytes of operands and results that it must touch.
    """

    name: str
    operators: str
    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Native:
    """A compiled body. Immutable; save it, or call what `runner()` gives.

    Attributes:
        library: the shared object.
        inputs, outputs: kinds of tensors, in the graph's order.
        constants: how each derived value is taken, in the order of `Lowered.derived`.
        arena: bytes of working memory for one call.
        peak, bound: bytes of values that a call needs at most, what libraries hold among it, and
            what no memory plan could go below.
        calls: what each call of the body is, in order.
        torch_version, processor: what it was built for, and runs with.
    """

    library: bytes
    inputs: tuple[Kind, ...]
    outputs: tuple[Kind, ...]
    constants: tuple[View, ...]
    arena: int
    peak: int
    bound: int
    calls: tuple[Made, ...]
    torch_version: str
    processor: str

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes library and manifest.

        Raises:
            StoreError: the folder cannot be written.
        """
        place = Path(folder)
        digest = hashlib.sha256(self.library).hexdigest()
        manifest = {
            f: getattr(self, f) for f in ("arena", "peak", "bound")
        } | {
            "format": FORMAT,
            "inputs": [asdict(k) for k in self.inputs],
            "calls": [asdict(c) for c in self.calls],
            "outputs": [asdict(k) for k in self.outputs],
            "constants": [asdict(c) for c in self.constants],
            "library": digest,
            "torch": self.torch_version,
            "processor": self.processor,
        }  # fmt: skip
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / f"native-{digest[:16]}.so").write_bytes(self.library)
            (place / MANIFEST).write_text(json.dumps(manifest, indent=1))
        except OSError as fault:
            raise StoreError("the program cannot be saved", where=place, got=fault) from fault


def load_native(folder: str | os.PathLike[str]) -> tuple[Native, ctypes.CDLL]:
    """Loads what `Native.save` wrote; needs no compiler.

    Raises:
        StoreError: the folder holds no program, or a damaged one.
        UnsupportedError: it was built for another torch or another processor.
    """
    place = Path(folder)
    try:
        m = json.loads((place / MANIFEST).read_text())
        if m["format"] != FORMAT:
            raise ValueError(f"format {m['format']}, not {FORMAT}")
        built, here = (m["torch"], m["processor"]), (torch.__version__, this_processor())
        if built != here:
            raise UnsupportedError(
                "a native program made for another torch or another processor",
                expected=", ".join(built), got=", ".join(here), where=place,
                hint="optimize again on this machine",
            )  # fmt: skip
        file = place / f"native-{m['library'][:16]}.so"
        library = file.read_bytes()
        if hashlib.sha256(library).hexdigest() != m["library"]:
            raise ValueError(f"{file.name} does not have the digest of its name")
        kinds = [
            tuple(Kind(k["type"], tuple(k["shape"])) for k in m[name])
            for name in ("inputs", "outputs")
        ]
        views = tuple(
            View(c["node"], _how(c["how"]), c["handle"], _sizes(c["shape"]), _sizes(c["strides"]))
            for c in m["constants"]
        )
        calls = tuple(Made(**c) for c in m["calls"])
        native = Native(
            library, kinds[0], kinds[1], views, m["arena"], m["peak"], m["bound"], calls, *built
        )
        return native, ctypes.CDLL(str(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise StoreError(
            "the native program cannot be loaded", where=place,
            expected=f"{MANIFEST} and the library it names", got=f"{type(fault).__name__}: {fault}",
            hint="optimize again: it is compiled anew",
        ) from fault  # fmt: skip


def _how(found: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(map(_how, found)) if isinstance(found, list) else found


def _sizes(found: list[int] | None) -> tuple[int, ...] | None:
    return None if found is None else tuple(found)


# -- building --------------------------------------------------------------------------------------
def native(
    graph: Graph,
    choose: Callable[[Cluster, list[Kernel]], Kernel],
    values: Mapping[str, Tensor] | None = None,
    partition: Partition | None = None,
    make: Make | None = None,
    store: Store | None = None,
) -> tuple[Native, Lowered]:
    """A graph as a native program.

    Args:
        graph: over concrete shapes.
        choose: which library kernel runs a cluster.
        values: parameters and constants as they are now; see `prologue`.
        partition, make: groups that generated kernels run, and what makes these; see `cut`.
        store: where compiled objects are kept.

    Returns:
        The program, and the prologue that derives its constants.

    Raises:
        UnsupportedError: a node has neither loops nor a library call from C, or nothing compiles.
    """
    names: dict[str, str] = {}

    def noted(cluster: Cluster, options: list[Kernel]) -> Kernel:
        kernel = choose(cluster, options)
        names[cluster.key] = kernel.name
        return kernel

    program = build(cut(graph, noted, partition, make), store)
    return program, prologue(graph, program, names, values)


def build(body: Body, store: Store | None = None) -> Native:
    """Pieces as a native program: memory planned, entry written, all linked into one library."""
    planned = plan(body)
    written = entry(body, planned, NAME)
    apart = spread.text(torch.get_num_threads())
    units = {"entry": written.text, "call": CALL.read_text(), "spread": apart}
    for p in body.pieces:
        if isinstance(p.call, Generated):
            units[p.call.symbol] = p.call.text
    return Native(
        link(units, store),
        tuple(_kind(v) for v in body.inputs),
        tuple(_kind(v if isinstance(v, Value) else Value(v.node)) for v in body.results),
        tuple(View(c.packed.node.digest, c.packed.how, c.handle, c.shape, c.strides)
              for c in written.constants),
        written.arena, planned.peak, planned.bound,
        tuple(map(_made, body.pieces)),
        torch.__version__, this_processor(),
    )  # fmt: skip


def _made(piece: Piece) -> Made:
    nodes = piece.nodes
    moved = 0
    for v in dict.fromkeys(piece.operands):
        if v is not None:
            reads = (
                int(str(read))
                for n in nodes
                for a, read in zip(n.operands, traffic(n)[0], strict=True)
                if a is v.node
            )
            whole = int(str(v.node.type.nbytes))
            moved += min(whole, sum(reads) or whole)
    moved += sum(int(str(v.node.type.nbytes)) for v in piece.results)
    work = sum(int(str(node_cost(n).flops)) for n in _distinct(nodes))
    name = "generated" if isinstance(piece.call, Generated) else piece.call.name
    return Made(name, "+".join(n.op for n in nodes) or "copy", work, moved)


def _distinct(nodes: Sequence[Node]) -> list[Node]:
    """One of those that are results of one application."""
    found: dict[object, Node] = {}
    for n in nodes:
        found.setdefault((n.op, n.args, tuple(kv for kv in n.attrs if kv[0] != "out")), n)
    return list(found.values())


def _kind(v: Value) -> Kind:
    return Kind(TYPES[v.node.dtype.name], v.shape)


def prologue(
    graph: Graph,
    program: Native,
    chosen: Mapping[str, str],
    values: Mapping[str, Tensor] | None = None,
) -> Lowered:
    """The steps that compute a program's constants from parameters, in the order it takes them.

    Args:
        graph: that the program is of.
        chosen: kernel by cluster key, for the plan.
        values: parameters and constants as they are now; of those that lie with gaps or in another
            order, dense copies are made.
    """
    loose = {k for k, t in (values or {}).items() if not t.is_mkldnn and not t.is_contiguous()}
    nodes = {n.digest: n for n in graph.nodes}
    below = _below({nodes[c.node] for c in program.constants})
    steps: list[Step] = []
    leaves: dict[str, Node] = {}
    slots: dict[Node, str] = {}
    for k, node in enumerate(graph.nodes):
        if node not in below:
            continue
        slots[node] = f"p{k}"
        if node.is_leaf:
            leaves[slots[node]] = node
        else:
            operands = tuple(None if a is None else slots[a] for a in node.args)
            steps.append(Step(slots[node], aten.bound(node), operands, node, "aten"))
    made: dict[tuple[str, How], str] = {}
    for c in program.constants:
        key = c.node, c.how
        if key not in made:
            node = nodes[c.node]
            made[key] = slots[node]
            if c.how:
                made[key] = f"w{len(made)}"
                call = partial(transformed, how=c.how)
                steps.append(Step(made[key], call, (slots[node],), node, named(c.how)))
            elif not node.is_leaf or node.name in loose:
                made[key] = f"d{len(made)}"
                steps.append(Step(made[key], Tensor.contiguous, (slots[node],), node, "dense"))
    derived = tuple(made[c.node, c.how] for c in program.constants)
    counts = Counter(c.name for c in program.calls)
    inputs = tuple(f"x{k}" for k in range(len(graph.inputs)))
    return Lowered(graph, leaves, derived, tuple(steps), (), (), counts, chosen, inputs)


def _below(roots: set[Node]) -> set[Node]:
    found, stack = set(roots), list(roots)
    while stack:
        for a in stack.pop().operands:
            if a not in found:
                found.add(a)
                stack.append(a)
    return found
