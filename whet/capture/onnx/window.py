"""Sliding windows: how ONNX states padding, strides and overhang, brought to what records take.

A record pads both ends of a dim alike. Uneven padding is done beforehand, by a `pad` of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.capture.onnx.call import NoMapping, sizes
from whet.ir.graph import Node, apply

Ints = Sequence[int]


@dataclass(frozen=True, slots=True)
class Window:
    """Per spatial dim; `extra`: how far a last window may overhang the padding, below a stride."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    extra: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether both ends of every dim are padded alike."""
        return self.before == self.after

    @property
    def reach(self) -> tuple[int, ...]:
        """How many positions a window spans."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def outputs(self, shape: Ints) -> tuple[int, ...]:
        """Number of windows along each dim of an input."""
        return tuple(
            (n + b + a + e - r) // s + 1
            for n, b, a, e, r, s in zip(
                shape, self.before, self.after, self.extra, self.reach, self.stride, strict=True
            )
        )


def window(
    x: Node,
    kernel: Ints,
    strides: Ints | None,
    dilations: Ints | None,
    pads: Ints | None,
    auto_pad: str,
    ceil_mode: int = 0,
) -> Window:
    """The window of a convolution or pooling over x. Raises `NoMapping` beyond three dims."""
    rank, shape = len(kernel), sizes(x)[2:]
    if not 1 <= rank <= 3 or rank != len(shape):
        raise NoMapping(f"windows of {rank} dims over a tensor of rank {len(x.shape)}")
    stride = tuple(strides or (1,) * rank)
    dilation = tuple(dilations or (1,) * rank)
    given = tuple(pads or (0,) * (2 * rank))
    before, after = given[:rank], given[rank:]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        before, after = same(shape, kernel, stride, dilation, auto_pad)
    elif auto_pad == "VALID":
        before = after = (0,) * rank
    elif auto_pad != "NOTSET":
        raise NoMapping(f"auto_pad {auto_pad}")
    if any(p < 0 for p in (*before, *after)):
        raise NoMapping("negative padding")
    found = Window(tuple(kernel), stride, dilation, before, after, (0,) * rank)
    if not ceil_mode:
        return found
    extra = tuple(
        _overhang(n, b, a, r, s)
        for n, b, a, r, s in zip(shape, before, after, found.reach, stride, strict=True)
    )
    return Window(tuple(kernel), stride, dilation, before, after, extra)


def _overhang(size: int, before: int, after: int, reach: int, stride: int) -> int:
    """What the last window lacks; one that would start beyond the input is left out."""
    rest = (size + before + after - reach) % stride
    if not rest:
        return 0
    last = (size + before + after - reach) // stride + 1
    return 0 if last * stride >= size + before else stride - rest


def same(
    shape: Ints, kernel: Ints, stride: Ints, dilation: Ints, auto_pad: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding that makes ceil(size / stride) windows; an odd sum pads more at the named end."""
    before: list[int] = []
    after: list[int] = []
    for n, k, s, d in zip(shape, kernel, stride, dilation, strict=True):
        total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return tuple(before), tuple(after)


def padded(x: Node, before: Ints, after: Ints, value: float) -> Node:
    """x with its spatial dims padded by a number."""
    for k, (b, a) in enumerate(zip(before, after, strict=True)):
        if b or a:
            x = apply("pad", x, axis=k + 2, before=b, after=a, value=value)
    return x
