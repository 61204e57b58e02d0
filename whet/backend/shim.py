"""Library calls from C: torch's C shim (oneDNN, ATen) and MKL, as pieces of a native program.

    kernel name (whet.backend.packed)   →   function, arguments

No header is needed: libraries' functions are declared here. A tensor is a handle; the program makes
handles for its memory. The names and the choice among them are those of `whet.backend.packed`,
whose times decide here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from whet.backend import aten
from whet.backend.boxed import boxed
from whet.backend.cluster import Cluster
from whet.backend.library import Operand, read_call, resolve
from whet.backend.packed import Kernel, eltwise
from whet.backend.piece import (
    Argument,
    Handle,
    Library,
    Packed,
    Piece,
    Pointer,
    Value,
    channels_last,
    dense,
)
from whet.backend.transform import How
from whet.errors import UnsupportedError
from whet.ir.graph import Node

# What a library function takes, as C declares it; every one returns 0 where it succeeded.
PROTOTYPES: dict[str, str] = {
    "aoti_torch_cpu__linear_pointwise":
        "int F(Tensor, Tensor, Tensor *, const char *, const double **, int64_t, const char **,"
        " Tensor *);",
    "aoti_torch_cpu__linear_pointwise_binary":
        "int F(Tensor, Tensor, Tensor, Tensor *, const char *, Tensor *);",
    "aoti_torch_cpu_mkldnn__convolution_pointwise":
        "int F(Tensor, Tensor, Tensor *, const int64_t *, int64_t, const int64_t *, int64_t,"
        " const int64_t *, int64_t, int64_t, const char *, const double **, int64_t,"
        " const char **, Tensor *);",
    "aoti_torch_cpu_mkldnn__convolution_pointwise_binary":
        "int F(Tensor, Tensor, Tensor, Tensor *, const int64_t *, int64_t, const int64_t *,"
        " int64_t, const int64_t *, int64_t, int64_t, const char *, double *, const char **,"
        " const double **, int64_t, const char **, Tensor *);",
    "aoti_torch_cpu_convolution":
        "int F(Tensor, Tensor, Tensor *, const int64_t *, int64_t, const int64_t *, int64_t,"
        " const int64_t *, int64_t, int32_t, const int64_t *, int64_t, int64_t, Tensor *);",
    "aoti_torch_cpu_mm_out": "int F(Tensor, Tensor, Tensor);",
    "aoti_torch_cpu_bmm_out": "int F(Tensor, Tensor, Tensor);",
    "aoti_torch_cpu_addmm_out": "int F(Tensor, Tensor, Tensor, Tensor, double, double);",
    "cblas_sgemm_compute":
        "void F(int, int, int, int, int, int, const float *, int, const float *, int, float,"
        " float *, int);",
}  # fmt: skip

_NOTHING = ("&whet_nil", "0", "&whet_none")  # no scalars, no algorithm
_ROW, _PLAIN, _PACKED = 101, 111, 151  # MKL's names for these


def piece(
    cluster: Cluster, kernel: Kernel, place: Callable[[Node], Value | Packed]
) -> tuple[Piece, int]:
    """A cluster's kernel as a piece.

    Args:
        cluster: over concrete sizes.
        kernel: one of `whet.backend.packed.kernels(cluster)`.
        place: what an operand is and how it lies; a constant comes as `Packed`.

    Returns:
        The piece, and how many of the cluster's nodes it computes.

    Raises:
        UnsupportedError: there is no C call for it.
    """
    rows = _ROWS.get(cluster.anchor.op)
    if rows is None or cluster.anchor.dtype.name not in ("f32", "f64", "bf16"):
        raise UnsupportedError("no library call from C", got=f"{kernel.name} for {cluster!r}")
    covered = cluster.nodes[: kernel.covers]
    count = len(cluster.anchor.args) + sum(
        cluster.other(k) is not None for k in range(kernel.covers - 1)
    )
    operands = [None if a is None else place(a) for a in cluster.operands[:count]]
    if kernel.packs:
        weight = operands[1]
        assert isinstance(weight, Packed)
        operands[1] = Packed(weight.node, _how(cluster, kernel))
    return rows(cluster, kernel, covered, operands), kernel.covers


def _how(cluster: Cluster, kernel: Kernel) -> How:
    """What the kernel wants done to the weight."""
    x = cluster.anchor.args[0]
    assert x is not None
    library = kernel.name.partition("+")[0]
    match library, cluster.anchor.op:
        case "onednn", "linear" | "matmul":
            return f"onednn-{cluster.anchor.op}", _count(x.shape[:-1])
        case "onednn", _:
            a: dict[str, Any] = dict(cluster.anchor.attrs)
            return "onednn-conv", *(a[k] for k in (*_GEOMETRY, "groups")), Value(x).shape
        case "mkl", _:
            return "mkl", _count(x.shape[:-1])
        case "addmm", _:
            return ("turned",)
        case "channels-last", _:
            return ("channels-last",)
    raise UnsupportedError("no library call from C", got=kernel.name)


Operands = list[Value | Packed | None]
Row = Callable[[Cluster, Kernel, Sequence[Node], Operands], Piece]


def _bias(index: int) -> Handle:
    return Handle(index, optional=True)


def _unary(node: Node | None) -> tuple[str, str, str, str]:
    """Attribute, scalars, their number and algorithm of a fused epilogue, as C."""
    fused = None if node is None else eltwise(node)
    if fused is None:
        return ('"none"', *_NOTHING)
    attr, scalars, algorithm = fused
    if scalars:
        numbers = ", ".join(f"&(const double){{{s!r}}}" for s in scalars)
        listed = f"(const double *[]){{{numbers}}}"
    else:
        listed = "&whet_nil"
    return f'"{attr}"', listed, str(len(scalars)), f'&(const char *){{"{algorithm}"}}'


def _linear(cluster: Cluster, kernel: Kernel, nodes: Sequence[Node], operands: Operands) -> Piece:
    """x · wᵀ + b, and x · w where w is packed."""
    result = Value(nodes[-1])
    library = kernel.name.partition("+")[0]
    x = cluster.anchor.args[0]
    assert x is not None
    m = _count(x.shape[:-1])
    k, n = int(str(x.shape[-1])), int(str(nodes[-1].shape[-1]))
    arguments: tuple[Argument, ...]
    if library == "onednn":
        if len(operands) == 2:  # matmul has no bias
            operands = [*operands, None]
        if len(operands) == 4:  # a second operand: added or multiplied
            attr = f'"{nodes[-1].op}"'
            arguments = (Handle(0), Handle(3), Handle(1, packed=True), _bias(2), attr)
            return _call(
                kernel, "aoti_torch_cpu__linear_pointwise_binary", arguments, nodes, operands,
                result, 1,
            )  # fmt: skip
        unary = _unary(nodes[1] if len(nodes) > 1 else None)
        arguments = (Handle(0), Handle(1, packed=True), _bias(2), *unary)
        return _call(
            kernel, "aoti_torch_cpu__linear_pointwise", arguments, nodes, operands, result, 1
        )
    if library == "mkl":
        return _mkl(kernel, nodes, operands, result, (m, n, k))
    return _plain(cluster, kernel, nodes, operands, result, (m, n, k))


def _mkl(
    kernel: Kernel, nodes: Sequence[Node], operands: Operands, result: Value,
    sizes: tuple[int, int, int],
) -> Piece:  # fmt: skip
    """MKL's packed product, into the result's own memory; the bias lies there already."""
    m, n, k = sizes
    before, beta = "", "0.0f"
    if operands[2] is not None:
        beta = "1.0f"
        each = f"__builtin_memcpy((float *)p3 + i * {n}, p2, {4 * n});"
        before = f"for (long i = 0; i < {m}; i++) {each}"
    arguments: tuple[Argument, ...] = (
        *map(str, (_ROW, _PLAIN, _PACKED, m, n, k)), Pointer(0), str(k), Pointer(1), str(k), beta,
        Pointer(3), str(n),
    )  # fmt: skip
    call = Library("mkl", "cblas_sgemm_compute", arguments, before=before)
    return Piece(tuple(nodes), tuple(operands), (result,), call)


def _plain(
    cluster: Cluster, kernel: Kernel, nodes: Sequence[Node], operands: Operands, result: Value,
    sizes: tuple[int, int, int],
) -> Piece:  # fmt: skip
    """ATen's own product of two matrices, into the result's memory."""
    m, n, k = sizes
    turned = (n, k) if kernel.name == "aten" and cluster.anchor.op == "linear" else None
    w = Handle(1, shape=(k, n), strides=(1, k) if turned else (n, 1))
    x, out = Handle(0, shape=(m, k), strides=(k, 1)), Handle(len(operands), shape=(m, n))
    if len(operands) > 2 and operands[2] is not None:
        bias = Handle(2, shape=(m, n), strides=(0, 1))
        arguments: tuple[Argument, ...] = (out, bias, x, w, "1.0", "1.0")
        return _call(kernel, "aoti_torch_cpu_addmm_out", arguments, nodes, operands, result, 0)
    return _call(kernel, "aoti_torch_cpu_mm_out", (out, x, w), nodes, operands, result, 0)


def _matmul(cluster: Cluster, kernel: Kernel, nodes: Sequence[Node], operands: Operands) -> Piece:
    x, w = cluster.anchor.args
    assert x is not None
    assert w is not None
    if len(w.shape) == 2 and len(x.shape) >= 2:
        return _linear(cluster, kernel, nodes, operands)
    result = Value(nodes[-1])
    *batch, m, n = result.shape
    k = int(str(x.shape[-1]))
    xs, ws = Value(x).shape, Value(w).shape
    if len(xs) < 2 or len(ws) < 2 or list(xs[:-2]) != batch or list(ws[:-2]) != batch:
        raise UnsupportedError("no library call from C", got=f"matmul of {x.type} and {w.type}")
    b = _count(tuple(batch))
    arguments = (
        Handle(2, shape=(b, m, n)), Handle(0, shape=(b, m, k)), Handle(1, shape=(b, k, n)),
    )  # fmt: skip
    return _call(kernel, "aoti_torch_cpu_bmm_out", arguments, nodes, operands, result, 0)


def _conv(cluster: Cluster, kernel: Kernel, nodes: Sequence[Node], operands: Operands) -> Piece:
    anchor = cluster.anchor
    a: dict[str, Any] = dict(anchor.attrs)
    assert anchor.args[1] is not None
    a["dilation"] = aten.spread(a["dilation"], anchor.args[1].shape[2:])
    geometry: list[str] = []
    order = ("stride", "padding", "dilation") if _is_plain(kernel) else _GEOMETRY
    for name in order:
        geometry += [f"(const int64_t[]){{{', '.join(map(str, a[name]))}}}", str(len(a[name]))]
    result = Value(nodes[-1])
    image = anchor.args[0]
    if len(result.shape) == 5 and image is not None and 1 in (image.shape[1], result.shape[1]):
        # With one channel, strides do not tell the library which order of axes is meant.
        raise UnsupportedError("no library call from C", got="a volume of one channel")
    last = len(result.shape) > 3 and kernel.name != "aten"
    if last:
        result = Value(nodes[-1], channels_last(result.shape))
    if _is_plain(kernel):
        zero = f"(const int64_t[]){{{', '.join('0' for _ in a['stride'])}}}"
        arguments: tuple[Argument, ...] = (
            Handle(0), Handle(1, packed=True), _bias(2), *geometry, "0", zero,
            str(len(a["stride"])), str(a["groups"]),
        )  # fmt: skip
        name = "aoti_torch_cpu_convolution"
    elif len(operands) == 3:
        unary = _unary(nodes[1] if len(nodes) > 1 else None)
        arguments = (
            Handle(0), Handle(1, packed=True), _bias(2), *geometry, str(a["groups"]), *unary,
        )  # fmt: skip
        name = "aoti_torch_cpu_mkldnn__convolution_pointwise"
    else:
        attr = f'"{nodes[1].op}"'
        relu = '&(const char *){"relu"}' if len(nodes) > 2 else "0"
        arguments = (
            Handle(0), Handle(3), Handle(1, packed=True), _bias(2), *geometry, str(a["groups"]),
            attr, "&(double){1.0}", relu, "&whet_nil", "0", "0",
        )  # fmt: skip
        name = "aoti_torch_cpu_mkldnn__convolution_pointwise_binary"
    return _call(kernel, name, arguments, nodes, operands, result, 1)


_GEOMETRY = ("padding", "stride", "dilation")


def _is_plain(kernel: Kernel) -> bool:
    return not kernel.name.startswith("onednn")


def _attention(
    cluster: Cluster, kernel: Kernel, nodes: Sequence[Node], operands: Operands
) -> Piece:
    a: dict[str, Any] = dict(cluster.anchor.attrs)
    mask = operands[3]
    if (a["causal"] and mask is not None) or cluster.anchor.dtype.name == "bf16":
        raise UnsupportedError("no library call from C", got="attention, masked twice")
    if mask is not None and mask.node.dtype is not cluster.anchor.dtype:
        raise UnsupportedError("no library call from C", got="attention with another mask type")
    scale = a["scale"]
    if scale is None:
        scale = int(str(cluster.operands[0].shape[-1])) ** -0.5  # type: ignore[union-attr]
    given = [Operand(0), Operand(1), Operand(2), None if mask is None else Operand(3), 0.0]
    options = {"scale": float(scale), "enable_gqa": a["group"] != 1}
    target = "aten.scaled_dot_product_attention.default"
    count = 3 if mask is None else 4
    symbol, source = boxed(target, [*given, bool(a["causal"])], options, count, 1)
    arguments = tuple(Handle(k) for k in range(count))
    call = Library(kernel.name, symbol, arguments, 1, source=source)
    return Piece(tuple(nodes), tuple(operands), (Value(nodes[-1]),), call)


def opaque(node: Node, operands: Operands, results: Sequence[Value]) -> Piece:
    """A library call without a record, as it was written down.

    Args:
        node: the call.
        operands: row-major, as for every engine.
        results: one for each of its results.

    Raises:
        UnsupportedError: it cannot be made from C, or hands out its operands' memory.
    """
    target, args, kwargs = read_call(str(node.attr("statics")))
    schema = cast(Any, resolve(target))._schema
    if any(r.alias_info is not None for r in (*schema.arguments, *schema.returns)):
        raise UnsupportedError("a library call that hands out its operands' memory", got=target)
    if len(schema.returns) != len(results) or any(str(r.type) != "Tensor" for r in schema.returns):
        raise UnsupportedError("a library call with results that are no tensors", got=target)
    symbol, source = boxed(target, args, kwargs, len(operands), len(results))
    arguments = tuple(Handle(k) for k in range(len(operands)))
    call = Library(target, symbol, arguments, len(results), source=source)
    return Piece((node,), tuple(operands), tuple(results), call)


def _call(
    kernel: Kernel, function: str, arguments: Sequence[Argument], nodes: Sequence[Node],
    operands: Operands, result: Value, gives: int,
) -> Piece:  # fmt: skip
    call = Library(kernel.name, function, tuple(arguments), gives)
    return Piece(tuple(nodes), tuple(operands), (result,), call)


def _count(sizes: Sequence[Any]) -> int:
    total = 1
    for n in sizes:
        total *= int(str(n))
    return total


_ROWS: dict[str, Row] = {
    "linear": _linear,
    "matmul": _matmul,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "attention": _attention,
}


def wanted(cluster: Cluster, kernel: Kernel, k: int, value: Value) -> tuple[int, ...]:
    """Strides in which the call takes operand `k`, which lies as `value`."""
    shape = value.shape
    if cluster.anchor.op == "attention":
        return value.strides if value.strides[-1] == 1 else dense(shape)
    if cluster.anchor.op.startswith("conv") and kernel.name != "aten" and len(shape) > 3:
        return channels_last(shape)
    return dense(shape)
