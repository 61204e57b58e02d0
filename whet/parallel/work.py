"""What a node costs on a device, read off its record: its class of kernel, operations, bytes.

    Work := kind flops read* written extents          of the whole node
    step(node, choice, mesh)                           of one device's part, for one microbatch

A sum of products is a contraction, "window" where an operand is read through a window, "fused"
where several are chained inside one record. What is read or written at positions that are data is a
"gather"; everything else streams. Views cost nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from whet.ir import cost
from whet.ir import expr as ex
from whet.ir.expr import Call, Index, Reduce
from whet.ir.graph import Attrs, Node
from whet.ir.record import Instance, Let
from whet.ir.types import DType
from whet.parallel.choice import SUMS, Choice, contracts, instance_of, moves_only, out_of
from whet.parallel.cut import known, needed, prepared
from whet.parallel.placed import Step
from whet.parallel.sharding import Axes

DTYPES = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Work:
    """One node, whole.

    Attributes:
        kind: class of kernel, or "view".
        flops: operations.
        read: bytes of each operand that is present.
        written: bytes of the result.
        roles: for contractions, the axes of (batch, m, n, k).
        extents: of the operator's axes.
    """

    kind: str
    flops: int
    read: tuple[int, ...]
    written: int
    roles: tuple[tuple[str, ...], ...] = ()
    extents: Mapping[str, int] | None = None


@functools.lru_cache(maxsize=1 << 16)
def work(node: Node) -> Work:
    """What a node costs."""
    if node.is_leaf or node.op == "item":
        return Work("view", 0, (0,) * len(node.operands), 0)
    if node.op == "opaque":
        reads, written = cost.traffic(node)
        return Work("gather", 0, tuple(map(known, reads)), known(written))
    shapes = tuple(None if a is None else tuple(map(known, a.shape)) for a in node.args)
    widths = tuple(a.dtype.bits // 8 for a in node.operands)
    return _work(node.op, shapes, node.attrs, widths, known(node.type.nbytes))


@functools.lru_cache(maxsize=65536)
def _work(
    op: str,
    shapes: tuple[tuple[int, ...] | None, ...],
    attrs: Attrs,
    widths: tuple[int, ...],
    nbytes: int,
) -> Work:
    instance = prepared(op, shapes, attrs)
    out = str(dict(attrs).get("out", instance.outs[0]))
    extents = {a: known(n) for a, n in instance.extents.items()}
    if moves_only(instance, out) and _injective(instance, out):
        return Work("view", 0, (0,) * len(widths), 0, extents=extents)
    if not instance.operands:
        return Work("view", 0, (), 0, extents=extents)
    flops = known(cost.flops(instance, [out]))
    reads = tuple(
        known(cost.touched(instance, name, [out])) * width
        for name, width in zip(instance.operands, widths, strict=True)
    )
    kind, roles = _kind(instance, out)
    return Work(kind, flops, reads, nbytes, roles, extents)


def _injective(instance: Instance, out: str) -> bool:
    """A view of something as large as itself, or of a part of it: not a broadcast."""
    load = next(ex.loads(instance.let(out).body))
    used = {i.name for i in load.index if isinstance(i, Index)}
    return all(a in used or instance.extents[a] == 1 for a in instance.let(out).axes)


def _kind(instance: Instance, out: str) -> tuple[str, tuple[tuple[str, ...], ...]]:
    lets = needed(instance, out)
    summed = contracts(instance, out)
    if summed is not None:
        products = [
            e for let in lets for e in ex.walk(let.body)
            if isinstance(e, Reduce) and e.kind == "sum" and _product(e) is not None
        ]  # fmt: skip
        pair = _product(products[0])
        assert pair is not None
        left, right = pair
        axes = set(products[0].axes)
        both = (left & right) - axes
        roles = (
            tuple(sorted(both)), tuple(sorted(left - right - axes)),
            tuple(sorted(right - left - axes)), tuple(sorted(axes)),
        )  # fmt: skip
        if not all(math.prod(known(instance.extents[a]) for a in r) > 1 for r in roles[1:]):
            return "stream", ()  # a product of a row or column reads more than it computes
        if len(products) > 1 and len(lets) > 1:
            return "fused", roles
        windows = any(
            len((ex.affine(i) or ({}, 0))[0]) > 1 for x in ex.loads(products[0]) for i in x.index
        )
        return ("window" if windows else "contraction"), roles
    for let in lets:
        for load in ex.loads(let.body):
            if any(any(ex.loads(i)) for i in load.index):
                return "gather", ()
        for e in ex.walk(let.body):
            if isinstance(e, Reduce):
                for x in ex.walk(e.body):
                    if isinstance(x, Call) and x.fn == "==" and any(
                        isinstance(a, Index) for a in x.args
                    ) and any(any(ex.loads(a)) for a in x.args):  # fmt: skip
                        return "gather", ()
    return "stream", ()


def _product(e: Reduce) -> tuple[set[str], set[str]] | None:
    """The axes of the two sides of the first product of loads below a sum over both."""
    for x in ex.walk(e.body):
        if isinstance(x, Call) and x.fn == "*":
            sides = []
            for a in x.args:
                own = [set().union(*(ex.free(i) for i in y.index)) for y in ex.loads(a) if y.index]
                sides.append(set().union(*own) if own else set())
            if all(s & set(e.axes) for s in sides):
                tensors = [{y.tensor for y in ex.loads(a)} for a in x.args]
                if tensors[0] != tensors[1]:
                    return sides[0], sides[1]
    return None


def shared(nodes: Sequence[Node]) -> float:
    """The part of their operations that is left when gradients of one call are computed at once.

    Args:
        nodes: gradients of operands of the same call: what they compute alike counts once.
    """
    lets: dict[tuple[str, object], Let] = {}
    alone = 0
    outs = []
    for n in nodes:
        instance = instance_of(n)
        out = out_of(n, instance)
        outs.append(out)
        alone += known(cost.flops(instance, [out]))
        for let in needed(instance, out):
            lets.setdefault((let.name, let.body), let)
    first = instance_of(nodes[0])
    extents = {k: v for n in nodes for k, v in instance_of(n).extents.items()}
    joint = replace(first, lets=tuple(lets.values()), extents=extents)
    return known(cost.flops(joint, outs)) / max(1, alone)


@functools.lru_cache(maxsize=1 << 14)
def slides(node: Node) -> bool:
    """Whether something is read through a window, without a product of sums."""
    if node.is_leaf or work(node).kind != "stream":
        return False
    instance = instance_of(node)
    return any(
        len((ex.affine(i) or ({}, 0))[0]) > 1
        for let in needed(instance, out_of(node, instance))
        for load in ex.loads(let.body) for i in load.index
    )  # fmt: skip


def evaluated(node: Node, choice: Choice, mesh: Axes) -> tuple[int, int]:
    """(operations, elements that they make) of one device's part, evaluated as the record says."""
    instance, sizes = instance_of(node), dict(mesh)
    local = {a: known(size) for a, size in instance.extents.items()}
    for m, a, _ in choice.cuts:
        if a in local:
            local[a] //= sizes[m]
    count = elements = 0
    for let in needed(instance, out_of(node, instance)):
        inside = {a for e in ex.walk(let.body) if isinstance(e, Reduce) for a in e.axes}
        calls = sum(isinstance(e, Call | Reduce) for e in ex.walk(let.body)) or 1
        count += calls
        elements += calls * math.prod(local[a] for a in {*let.axes, *inside})
    return count, elements


def arithmetic(node: Node) -> str:
    """The dtype that a node computes in."""
    floats = [a.dtype for a in (*node.operands, node) if a.dtype.is_float]
    best = floats[0] if floats else DType.f32
    return DTYPES.get(best.value, DTYPES.get(best.name, "float32"))


def step(node: Node, choice: Choice, mesh: Axes, after: tuple[int, ...] = ()) -> Step | None:
    """One device's part of a node as a step, for one microbatch; None for views.

    Args:
        mesh: with the axes in time, which cut the work as those of devices do.
    """
    whole = work(node)
    if whole.kind == "view":
        return None
    sizes = dict(mesh)
    cuts = [c for c in choice.cuts if c[1:] != SUMS]
    parts = math.prod(sizes[m] for m, _, _ in cuts)
    by_axis: dict[str, int] = {}
    for m, a, _ in cuts:
        by_axis[a] = by_axis.get(a, 1) * sizes[m]
    dims: tuple[int, ...] = ()
    if whole.roles and whole.extents is not None:
        dims = tuple(
            math.prod(whole.extents[a] // by_axis.get(a, 1) for a in axes) for axes in whole.roles
        )
    if whole.kind == "gather":
        read = sum(min(r, whole.written) for r in whole.read) // parts
    else:
        read = sum(
            r // (s.parts(sizes) if s is not None else 1)
            for r, s in zip(whole.read, choice.operands, strict=True)
            if s is not None
        )
    written = whole.written // choice.result.parts(sizes)
    return Step(
        node.op, whole.kind, whole.flops // parts, read, written, dims, arithmetic(node),
        after=after,
    )  # fmt: skip


__all__ = ["Work", "arithmetic", "evaluated", "instance_of", "out_of", "slides", "step", "work"]
