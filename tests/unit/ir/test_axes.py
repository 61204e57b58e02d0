"""Sharding axes hold what they promise: every claim is tried by really cutting the operator."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.unit.ir.cases import Case, case, every, table
from whet.ir.axes import Axis, classify, part
from whet.ir.interp import run_instance
from whet.ir.ops import instance
from whet.ir.record import Instance, Slots

COMBINE = {
    "sum": lambda a, b: a + b,
    "prod": lambda a, b: a * b,
    "max": torch.maximum,
    "min": torch.minimum,
}


def atoms(t: Tensor, bound: Instance, slots: Slots) -> Tensor:
    return t.permute(slots.dims).reshape([bound.extents[a] for a in slots.flat])


def whole(t: Tensor, slots: Slots) -> Tensor:
    """Back from atomic axes to the tensor's own dims."""
    sizes, at = [], 0
    for axes in slots.axes:
        sizes.append(math.prod(t.shape[at : at + len(axes)]))
        at += len(axes)
    return t.reshape(sizes).permute([slots.dims.index(d) for d in range(len(slots.dims))])


def cut(c: Case, axis: str, start: int, size: int) -> dict[str, Tensor]:
    """The operands, those that have `axis` narrowed along it."""
    bound, found = c.instance, {}
    given = (x for x in c.operands if x is not None)
    for (name, slots), x in zip(bound.operands.items(), given, strict=True):
        t = atoms(x, bound, slots)
        if axis in slots.flat:
            t = t.narrow(slots.flat.index(axis), start, size)
        found[name] = whole(t, slots)
    return found


def results(bound: Instance, operands: dict[str, Tensor]) -> list[Tensor]:
    """Every result, in atomic axes."""
    return [
        atoms(run_instance(bound, operands, out=o), bound, bound.results[o]) for o in bound.outs
    ]


def check_cut(c: Case, axis: str, how: Axis) -> None:
    bound, size = c.instance, c.instance.extents[axis]
    full = results(bound, cut(c, axis, 0, size))
    halves = []
    for k, (start, n) in enumerate(((0, size // 2), (size // 2, size - size // 2))):
        operands = cut(c, axis, start, n)
        if k:
            operands |= {o: torch.zeros_like(operands[o]) for o in how.once}
        halves.append(results(part(bound, axis, n), operands))
    for out, want, a, b in zip(bound.outs, full, *halves, strict=True):
        if how.kind == "free":
            got = torch.cat([a, b], bound.results[out].flat.index(axis))
        else:
            got = COMBINE[how.combine](a, b)
        torch.testing.assert_close(got, want, equal_nan=True, msg=lambda m: f"{c} {axis}: {m}")


def check_halo(c: Case, axis: str, how: Axis) -> None:
    """What the windows do not reach may be anything: it is poisoned."""
    bound, size = c.instance, c.instance.extents[axis]
    (full,) = results(bound, cut(c, axis, 0, size))
    start, stop = size // 2, size
    operands = cut(c, axis, 0, size)
    for w in how.windows:
        slots = bound.operands[w.tensor]
        ranges = [
            [k * n for k in (range(start, stop) if a == axis else range(bound.extents[a]))]
            for a, n in w.coefficients
        ]
        reached = {w.constant + sum(p) for p in itertools.product(*ranges)}
        t = atoms(operands[w.tensor], bound, slots).clone()
        if not t.is_floating_point():
            return
        for at in range(t.shape[w.dim]):
            if at not in reached:
                t.select(w.dim, at).fill_(math.nan)
        operands[w.tensor] = whole(t, slots)
    (got,) = results(bound, operands)
    dim = bound.results[bound.outs[0]].flat.index(axis)
    torch.testing.assert_close(
        got.narrow(dim, start, stop - start), full.narrow(dim, start, stop - start), equal_nan=True
    )


@pytest.mark.parametrize("row", every(), ids=lambda r: f"{r[0]}-{r[1]}")
def test_every_axis_is_what_it_is_said_to_be(row: tuple[str, int]) -> None:
    c = case(*row)
    bound = c.instance
    kinds = classify(bound)
    assert set(kinds) >= {a for s in bound.results.values() for a in s.flat}
    for axis, how in kinds.items():
        assert how.kind in ("free", "partial", "halo", "none")
        assert how.reason
        if bound.extents[axis] < 2:
            continue
        if how.kind in ("free", "partial"):
            check_cut(c, axis, how)
        elif how.kind == "halo":
            check_halo(c, axis, how)


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("matmul", 1, {"b0": "free", "b1": "free", "m": "free", "n": "free", "k": "partial"}),
        ("linear", 0, {"b0": "free", "b1": "free", "o": "free", "k": "partial"}),
        ("conv2d", 2, {"n": "free", "g": "free", "o": "free", "c": "partial", "h": "halo",
                       "u": "halo", "i": "none", "r": "none"}),
        ("softmax", 1, {"b0": "free", "b1": "free", "i": "none"}),
        ("layer_norm", 0, {"b0": "free", "r0": "none"}),
        ("batch_norm", 0, {"n": "free", "c": "free", "s0": "free"}),
        ("group_norm", 0, {"n": "free", "g": "free", "c": "none"}),
        ("attention", 0, {"b0": "free", "h": "free", "g": "free", "i": "free", "e": "free",
                          "j": "none", "d": "none"}),
        ("attention", 5, {"i": "none", "h": "free"}),
        ("embedding", 0, {"b0": "free", "e": "free", "v": "none"}),
        ("gather", 0, {"b0": "free", "b1": "free", "k": "free", "i": "none"}),
        ("concat", 0, {"b0": "free", "k": "none"}),
        ("cumsum", 0, {"i": "none", "b0": "free"}),
        ("slice", 0, {"k": "halo", "b0": "free"}),
        ("argmax", 0, {"b0": "free", "i": "none"}),
        ("mean", 0, {"r0": "partial", "b0": "free"}),
        ("var", 0, {"r0": "none", "b0": "free"}),
        ("max_pool2d", 0, {"n": "free", "c": "free", "h": "halo", "r": "none"}),
        ("arange", 0, {"i": "none"}),
        ("rope", 0, {"t": "none", "d": "free", "b0": "free"}),
        ("lstm_cell", 0, {"n": "free", "t": "none", "k": "none"}),
    ],
)  # fmt: skip
def test_known_axes(name: str, row: int, expected: dict[str, str]) -> None:
    kinds = classify(case(name, row).instance)
    assert {a: kinds[a].kind for a in expected} == expected


def test_reductions_say_how_parts_combine() -> None:
    for name, combine in (("sum", "sum"), ("amax", "max"), ("amin", "min"), ("prod", "prod")):
        assert classify(table()[name][0].instance).popitem()[1].combine == combine


def test_a_bias_is_added_by_one_part_only() -> None:
    assert classify(case("linear", 0).instance)["k"].once == ("v",)
    assert classify(case("linear", 1).instance)["k"].once == ()


def test_halo_windows_carry_coefficients() -> None:
    attrs = {"groups": 1, "stride": (3, 1), "padding": (2, 0), "dilation": (2, 1)}
    bound = instance("conv2d", ((1, 2, 15, 9), (4, 2, 3, 2), None), tuple(sorted(attrs.items())))
    (window,) = classify(bound)["h"].windows
    assert dict(window.coefficients) == {"h": 3, "r": 2}
    assert (window.tensor, window.constant) == ("x", -2)
    assert bound.operands["x"].flat[window.dim] == "i"
