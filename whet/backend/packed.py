"""Library kernels that take their weights transformed: oneDNN, MKL, and layouts of our choosing.

    kernel := name, pack: weights -> packed weights, call: operands with packed weights -> value

`kernels(cluster)` lists what can run a cluster, plain ATen first; which one does is
decided by measured time. Weights are transformed once, outside the program's body, and again when a
parameter changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.cluster import Cluster
from whet.ir.graph import Node

Operands = Sequence[Tensor | None]


@dataclass(frozen=True, slots=True)
class Pack:
    """An operand's transformation: it takes the operand's place, or goes last beside it."""

    operand: int
    transform: Callable[[Tensor], Tensor]
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to run a cluster.

    Attributes:
        name: library and variant, as reports and plans call it.
        packs: operands that are transformed ahead of time.
        call: all operands of the cluster, transformed ones in their places, to its value.
        covers: how many of the cluster's nodes the call computes; the rest follow as ATen calls.
    """

    name: str
    packs: tuple[Pack, ...]
    call: Callable[..., Tensor]
    covers: int


def kernels(cluster: Cluster) -> list[Kernel]:
    """Every kernel that can run `cluster`, plain ATen first."""
    found = [Kernel("aten", (), _aten_call(cluster.anchor), 1)]
    if 1 not in cluster.fixed or not cluster.anchor.dtype.is_float:
        return found
    if any(0 in a.shape for a in cluster.operands if a is not None):
        return found  # libraries differ on what a sum of nothing is
    if (make := _MAKERS.get(cluster.anchor.op)) is not None:
        found += make(cluster)
    return found


def finish(cluster: Cluster, kernel: Kernel, value: Tensor, operands: Operands) -> Tensor:
    """What a kernel left of its cluster, by ATen calls."""
    place = len(cluster.anchor.args) + sum(
        cluster.other(k) is not None for k in range(kernel.covers - 1)
    )
    for k in range(kernel.covers - 1, len(cluster.epilogue)):
        node, before = cluster.epilogue[k], cluster.nodes[k]
        args: list[Tensor | None] = []
        for a in node.args:
            if a is before:
                args.append(value)
            else:
                args.append(operands[place])
                place += 1
        value = aten.call(node, args)
    return value


def _aten_call(node: Node) -> Callable[..., Tensor]:
    count = len(node.args)
    return lambda *xs: cast(Tensor, aten.call(node, xs[:count]))


# -- epilogues that oneDNN fuses: operator -> (attribute, scalars, algorithm) ----------------------
def eltwise(node: Node) -> tuple[str, list[float], str] | None:
    """oneDNN's name, scalars and algorithm for an operator that it fuses, or None."""
    match node.op:
        case "relu" | "sigmoid" | "tanh" | "hardswish" | "hardsigmoid":
            return node.op, [], ""
        case "silu":
            return "swish", [], ""
        case "gelu":
            return "gelu", [], "none"
        case "gelu_tanh":
            return "gelu", [], "tanh"
        case "leaky_relu":
            return "leaky_relu", [float(str(node.attr("slope")))], ""
    return None


_NONE: tuple[str, list[float], str] = ("none", [], "")


def _linears(cluster: Cluster) -> Iterator[Kernel]:
    x, w, _ = cluster.anchor.args
    assert x is not None
    assert w is not None
    rows = _rows(x)
    if not isinstance(rows, int):
        return
    op = torch.ops.mkldnn._linear_pointwise

    def pack(t: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(t.contiguous(), rows))

    yield Kernel(
        "onednn", (Pack(1, pack),), lambda x, w, b, *_: cast(Tensor, op(x, w, b, "none", [], "")), 1
    )
    if cluster.epilogue:
        first = cluster.epilogue[0]
        fused = eltwise(first)
        if fused is not None:
            attr, scalars, algorithm = fused
            yield Kernel(
                "onednn+" + first.op, (Pack(1, pack),),
                lambda x, w, b, *_: cast(Tensor, op(x, w, b, attr, scalars, algorithm)), 2,
            )  # fmt: skip
        else:
            yield Kernel(
                "onednn+" + first.op, (Pack(1, pack),),
                lambda x, w, b, o, *_: cast(Tensor, op.binary(x, o, w, b, first.op)), 2,
            )  # fmt: skip
    if cluster.anchor.dtype.name == "f32" and torch.backends.mkl.is_available():
        yield from _mkl_linears(rows)
    yield Kernel(
        "addmm", (Pack(1, lambda t: t.t().contiguous()),),
        lambda x, w, b, *_: _addmm(x, w, b), 1,
    )  # fmt: skip


def _mkl_linears(rows: int) -> Iterator[Kernel]:
    op = torch.ops.mkl._mkl_linear

    def pack(t: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkl._mkl_reorder_linear_weight(t.contiguous(), rows))

    def call(x: Tensor, w: Tensor, b: Tensor | None, *rest: Tensor) -> Tensor:
        return cast(Tensor, op(x, rest[-1], w, b, rows))

    # The packed form keeps no shape, so the plain weight goes along.
    yield Kernel("mkl", (Pack(1, pack, beside=True),), call, 1)


def _addmm(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    found = flat @ w if b is None else torch.addmm(b, flat, w)
    return found.reshape(*x.shape[:-1], w.shape[-1])


def _matmuls(cluster: Cluster) -> Iterator[Kernel]:
    x, w = cluster.anchor.args
    assert x is not None
    assert w is not None
    rows = _rows(x)
    if len(w.shape) != 2 or not isinstance(rows, int):
        return
    op = torch.ops.mkldnn._linear_pointwise

    def pack(t: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(t.t().contiguous(), rows))

    yield Kernel(
        "onednn", (Pack(1, pack),), lambda x, w, *_: cast(Tensor, op(x, w, None, "none", [], "")), 1
    )


def _rows(x: Node) -> Any:
    rows: Any = 1
    for n in x.shape[:-1]:
        rows = rows * n
    return rows


def _convs(cluster: Cluster) -> Iterator[Kernel]:
    node = cluster.anchor
    x, w = node.args[0], node.args[1]
    assert x is not None
    assert w is not None
    a = dict(node.attrs)
    rank = len(x.shape) - 2
    a["dilation"] = aten.spread(cast(Any, a["dilation"]), w.shape[2:])
    if rank == 2:
        layout = torch.channels_last
        yield Kernel(
            "channels-last", (Pack(1, lambda t: t.contiguous(memory_format=layout)),),
            lambda x, w, b, *_: aten.CALLS[node.op](a, x.contiguous(memory_format=layout), w, b), 1,
        )  # fmt: skip
    if rank == 1 or not all(isinstance(n, int) for n in x.shape):
        return
    layout = torch.channels_last if rank == 2 else torch.channels_last_3d
    geometry = [list(cast(Any, a[k])) for k in ("padding", "stride", "dilation")]
    groups = cast(int, a["groups"])
    op = torch.ops.mkldnn._convolution_pointwise
    size = list(cast(Any, x.shape))

    def pack(t: Tensor) -> Tensor:
        return cast(
            Tensor,
            torch.ops.mkldnn._reorder_convolution_weight(t.contiguous(), *geometry, groups, size),
        )

    def kernel(name: str, call: Callable[..., Tensor], covers: int) -> Kernel:
        return Kernel(name, (Pack(1, pack),), call, covers)

    def plain(attr: str, scalars: list[float], algorithm: str) -> Callable[..., Tensor]:
        def call(x: Tensor, w: Tensor, b: Tensor | None, *_: Tensor) -> Tensor:
            x = x.contiguous(memory_format=layout)
            return cast(Tensor, op(x, w, b, *geometry, groups, attr, scalars, algorithm))

        return call

    yield kernel("onednn", plain(*_NONE), 1)
    if not cluster.epilogue:
        return
    first = cluster.epilogue[0]
    fused = eltwise(first)
    if fused is not None:
        yield kernel("onednn+" + first.op, plain(*fused), 2)
        return
    last = cluster.epilogue[1] if len(cluster.epilogue) > 1 else None
    unary = (eltwise(last) if last is not None and last.op == "relu" else None) or _NONE
    name = "onednn+" + "+".join([first.op] + (["relu"] if unary is not _NONE else []))
    attr = None if unary is _NONE else unary[0]

    def binary(x: Tensor, w: Tensor, b: Tensor | None, other: Tensor, *_: Tensor) -> Tensor:
        inputs = (t.contiguous(memory_format=layout) for t in (x, other))
        return cast(
            Tensor, op.binary(*inputs, w, b, *geometry, groups, first.op, 1.0, attr, [], None)
        )

    yield kernel(name, binary, 2 if attr is None else 3)


_MAKERS: dict[str, Callable[[Cluster], Iterator[Kernel]]] = {
    "linear": _linears,
    "matmul": _matmuls,
    "conv1d": _convs,
    "conv2d": _convs,
    "conv3d": _convs,
}
