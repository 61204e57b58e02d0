"""Resampling: along each dim an output is a fixed mix of inputs, known at import.

    nearest          one input each: an index_select
    linear, cubic    a row of weights each: a product with a constant matrix

so every combination of modes the standard has comes down to two operators; where it is what the
table's own interpolation computes, that one is taken.

Source of the coordinates and kernels: the ONNX operator specification, Resize, versions 10 to 19.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from whet.capture.aten.call import torch_dtype
from whet.capture.onnx.call import Call, NoMapping, axes_in, literal, moved, onnx, reshape, sizes
from whet.ir.graph import Node, apply


@dataclass(frozen=True, slots=True)
class Line:
    """One dim on its way: sizes before and after, the scale that is given, what is cropped."""

    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def _half_pixel(a: Line, k: int) -> float:
    return (k + 0.5) / a.scale - 0.5


def _symmetric(a: Line, k: int) -> float:
    """Sizes that the scale does not hit exactly are centred."""
    return (a.size / 2) * (1 - a.out / (a.size * a.scale)) + _half_pixel(a, k)


def _crop(a: Line, k: int) -> float:
    last = a.size - 1
    if a.out == 1:
        return 0.5 * (a.start + a.end) * last
    return a.start * last + k * (a.end - a.start) * last / (a.out - 1)


# coordinate_transformation_mode: where output k of a line lies among its inputs
PLACES: dict[str, Callable[[Line, int], float]] = {
    "half_pixel":           _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel":   lambda a, k: _half_pixel(a, k) if a.out > 1 else 0.0,
    "align_corners":        lambda a, k: k * (a.size - 1) / (a.out - 1) if a.out > 1 else 0.0,
    "asymmetric":           lambda a, k: k / a.scale,
    "tf_crop_and_resize":   _crop,
}  # fmt: skip
NEAREST: dict[str, Callable[[float, Line], int]] = {
    "round_prefer_floor": lambda p, a: math.ceil(p - 0.5),
    "round_prefer_ceil":  lambda p, a: math.floor(p + 0.5),
    "floor":              lambda p, a: math.floor(p),
    "ceil":               lambda p, a: math.ceil(p),
    "simple":             lambda p, a: math.ceil(p) if a.scale < 1 else math.floor(p),
}  # fmt: skip


def _hat(t: float) -> float:
    return max(0.0, 1 - abs(t))


def _cubic(a: float) -> Callable[[float], float]:
    """Keys' kernel."""

    def kernel(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    return kernel


def _weights(
    line: Line, places: Sequence[float], kernel: Callable[[float], float], reach: int,
    shrink: float, exclude: bool,
) -> torch.Tensor:  # fmt: skip
    """The matrix [out, in]; `shrink` below 1 widens the kernel, and makes weights sum to one."""
    rows = torch.zeros(line.out, line.size, dtype=torch.float64)
    wide = math.ceil(reach / shrink)
    for k, place in enumerate(places):
        near = range(math.floor(place) - wide, math.floor(place) + wide + 1)
        pairs = [(i, kernel((i - place) * shrink)) for i in near]
        pairs = [(i, w) for i, w in pairs if w and (not exclude or 0 <= i < line.size)]
        total = sum(w for _, w in pairs) if exclude or shrink < 1 else 1.0
        for i, w in pairs:
            rows[k, min(max(i, 0), line.size - 1)] += w / total
    return rows


@onnx("Upsample")
def upsample(call: Call, x: Node, scales: Node, mode: str = "nearest") -> Node:
    """Resampling as before version 10."""
    return resize(call, x, None, scales, mode=mode)


@onnx("Resize")
def resize(
    call: Call, x: Node, roi: Node | None = None, scales: Node | None = None,
    shape: Node | None = None, antialias: int = 0, axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Node:  # fmt: skip
    """Resampling along any dims, in every mode of the standard."""
    if call.opset < 11:  # one way only, and the scales stand where later the region does
        coordinate_transformation_mode, nearest_mode = "asymmetric", "simple"
        scales = scales or roi
        roi = None
    rank = len(x.shape)
    along = axes_in(axes, rank) if axes is not None else tuple(range(rank))
    lines = _lines(call, x, along, roi, scales, shape, keep_aspect_ratio_policy)
    place = PLACES.get(coordinate_transformation_mode)
    if place is None:
        raise NoMapping(f"coordinates {coordinate_transformation_mode}")
    places = {d: [place(a, k) for k in range(a.out)] for d, a in lines.items()}
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    if coordinate_transformation_mode == "align_corners":
        if any(a.size * a.scale != a.out and a.out > 1 for a in lines.values()):
            raise NoMapping(
                "aligned corners at a scale that rounds, which runtimes read in two ways"
            )
    same = [d for d, a in lines.items() if a.out == a.size and a.scale == 1 and not crops]
    places = {d: p for d, p in places.items() if d not in same}
    if mode == "nearest":
        return _cropped(call, _nearest(call, x, lines, places, nearest_mode), lines, places,
                        extrapolation_value, crops)  # fmt: skip
    half = coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel")
    if mode == "linear" and half and not antialias and _is_plain(x, lines, places):
        return apply("interpolate_bilinear", x, size=tuple(lines[d].out for d in (2, 3)))
    if mode not in ("linear", "cubic"):
        raise NoMapping(f"mode {mode}")
    kernel, reach = (_hat, 1) if mode == "linear" else (_cubic(cubic_coeff_a), 2)
    y = x
    for d, line_places in places.items():
        shrink = min(1.0, lines[d].scale) if antialias else 1.0
        w = _weights(lines[d], line_places, kernel, reach, shrink, bool(exclude_outside))
        matrix = call.constant(w.to(torch_dtype(x.dtype)))
        y = moved(apply("linear", moved(y, d, rank - 1), matrix, None), rank - 1, d)
    return _cropped(call, y, lines, places, extrapolation_value, crops)


def _lines(
    call: Call, x: Node, along: Sequence[int], roi: Node | None, scales: Node | None,
    shape: Node | None, policy: str,
) -> dict[int, Line]:  # fmt: skip
    region = call.static(roi, "the region").reshape(-1).tolist() if roi is not None else []
    old = [sizes(x)[d] for d in along]
    given = call.static(scales, "the scales").reshape(-1).tolist() if scales is not None else []
    if given:
        new = [math.floor(n * s) for n, s in zip(old, given, strict=True)]
    elif shape is not None:
        new = list(call.ints(shape, "the sizes"))
        given = [m / n for m, n in zip(new, old, strict=True)]
        if policy != "stretch":
            one = (min if policy == "not_larger" else max)(given)
            given = [one] * len(old)
            new = [math.floor(one * n + 0.5) for n in old]
    else:
        raise NoMapping("neither scales nor sizes")
    if not x.dtype.is_float:
        raise NoMapping(f"resampling of {x.dtype}")
    count = len(along)
    ends = region if len(region) == 2 * count else [0.0] * count + [1.0] * count
    return {
        d: Line(old[k], new[k], given[k], ends[k], ends[k + count]) for k, d in enumerate(along)
    }


def _nearest(
    call: Call, x: Node, lines: dict[int, Line], places: dict[int, list[float]], how: str
) -> Node:
    picked = {
        d: [min(max(NEAREST[how](p, lines[d]), 0), lines[d].size - 1) for p in ps]
        for d, ps in places.items()
    }
    even = all(
        at == [k * lines[d].size // lines[d].out for k in range(lines[d].out)]
        for d, at in picked.items()
    )
    if even and len(x.shape) == 4 and picked and set(picked) <= {2, 3}:
        out = tuple(lines[d].out if d in lines else sizes(x)[d] for d in (2, 3))
        return apply("interpolate_nearest", x, size=out)
    for d, at in picked.items():
        x = apply("index_select", x, call.constant(at), axis=d)
    return x


def _is_plain(x: Node, lines: dict[int, Line], places: dict[int, list[float]]) -> bool:
    """Whether the table's bilinear interpolation says the same."""
    if len(x.shape) != 4 or not set(places) <= {2, 3} or not {2, 3} <= set(lines):
        return False
    return all(lines[d].scale == lines[d].out / lines[d].size and lines[d].out > 1 for d in (2, 3))


def _cropped(
    call: Call, y: Node, lines: dict[int, Line], places: dict[int, list[float]], value: float,
    crops: bool,
) -> Node:  # fmt: skip
    """y with a number where an output lies outside of the input."""
    if not crops:
        return y
    for d, ps in places.items():
        outside = torch.tensor([not 0 <= p <= lines[d].size - 1 for p in ps])
        if bool(outside.any()):
            shape = [lines[d].out if k == d else 1 for k in range(len(y.shape))]
            y = apply("where", reshape(call.constant(outside), shape), literal(value, y), y)
    return y
