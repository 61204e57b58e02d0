"""How a constant is transformed ahead of time, as data: it is stored with the program, and done
again when a parameter changes.

    how := ()                                          as it is
         | ("onednn-linear", rows)                     w[n, k], for x of so many rows
         | ("onednn-matmul", rows)                     w[k, n]
         | ("onednn-conv", padding, stride, dilation, groups, sizes of the image)
         | ("mkl", rows)                               w[n, k], as MKL's packed product reads it
         | ("turned",)                                 the transpose of a matrix
         | ("channels-last",)                          the order in memory that images have
         | ("tile", sizes, split, order)               padded with zeros to sizes, each axis split,
                                                       the parts reordered: blocked layouts
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

How = tuple[Any, ...]
_ROW, _OPERAND_B, _TRANSPOSED = 101, 162, 112  # MKL's names for these


def transformed(tensor: Tensor, how: How) -> Tensor:
    """`tensor` as a kernel takes it."""
    if not how:
        return tensor
    name, *arguments = how
    return _TABLE[name](tensor, *arguments)


def named(how: How) -> str:
    """What a transformation is called in reports."""
    return str(how[0]) if how else "as it is"


def _onednn_linear(w: Tensor, rows: int) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), rows))


def _onednn_matmul(w: Tensor, rows: int) -> Tensor:
    return _onednn_linear(w.t(), rows)


def _onednn_conv(w: Tensor, *geometry: Any) -> Tensor:
    *lists, groups, sizes = geometry
    order = torch.ops.mkldnn._reorder_convolution_weight
    given = [list(x) for x in lists]
    return cast(Tensor, order(w.contiguous(), *given, groups, list(sizes)))


def _mkl(w: Tensor, rows: int) -> Tensor:
    """Bytes that MKL alone reads."""
    n, k = w.shape
    w = w.contiguous()
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    size = library.cblas_sgemm_pack_get_size
    size.restype = ctypes.c_size_t
    found = torch.empty(size(_OPERAND_B, rows, n, k), dtype=torch.uint8)
    library.cblas_sgemm_pack(
        _ROW, _OPERAND_B, _TRANSPOSED, rows, n, k, ctypes.c_float(1.0),
        ctypes.c_void_p(w.data_ptr()), k, ctypes.c_void_p(found.data_ptr()),
    )  # fmt: skip
    return found


def _channels_last(w: Tensor) -> Tensor:
    return w.contiguous(memory_format=torch.channels_last)


def _tile(w: Tensor, sizes: list[int], split: list[int], order: list[int]) -> Tensor:
    if list(w.shape) != list(sizes):
        padded = w.new_zeros(sizes)
        padded[tuple(slice(n) for n in w.shape)] = w
        w = padded
    return w.reshape(split).permute(order).contiguous()


_TABLE: dict[str, Callable[..., Tensor]] = {
    "onednn-linear": _onednn_linear,
    "onednn-matmul": _onednn_matmul,
    "onednn-conv": _onednn_conv,
    "mkl": _mkl,
    "turned": lambda w: w.t().contiguous(),
    "channels-last": _channels_last,
    "tile": _tile,
}
