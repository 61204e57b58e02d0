"""Calling conventions: what fits, why not, and the same call written differently."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from whet.run.signature import FixedArgument, Signature, TensorArgument, described

F32 = torch.float32


def signature(args: Any, kwargs: dict[str, Any]) -> Signature:
    """The one that capture would make of a call, its results the arguments reversed."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    arguments = tuple(
        TensorArgument(f"a{k}", tuple(v.shape), v.dtype)
        if isinstance(v, Tensor)
        else FixedArgument(f"a{k}", v)
        for k, v in enumerate(leaves)
    )
    results = (("result", 0), ("argument", 0), ("value", None), ("value", 3))
    return Signature(arguments, results, spec, pytree.tree_flatten({"y": [1, 2], "z": (3, 4)})[1])


X, Y = torch.randn(2, 3), torch.randn(4)


def test_there_and_back_as_json() -> None:
    for made in (
        signature((X, [Y, 3]), {"k": {"m": 1.5, "f": True, "s": "text", "n": None}}),
        signature((X,), {}),
        signature((), {}),
    ):
        again = Signature.from_json(json.loads(json.dumps(made.to_json())))
        assert again == made
        assert str(again) == str(made)


def test_flat_calls_are_recognised() -> None:
    made = signature((X, Y), {})
    assert made.fits((X, Y))
    for args in ((X,), (X, Y, Y), (Y, X), (X, Y.double()), (X, 3.0), (X, Y.to_sparse()),
                 (X, torch.nn.Parameter(Y)), (X, Y.to("meta"))):  # fmt: skip
        assert not made.fits(args)
    assert signature((), {}).fits(())
    for made in (signature(((X, Y),), {}), signature((X,), {"y": Y}), signature((X, 3), {})):
        assert not made.fits((X, Y))


def test_misfits_say_which_and_why() -> None:
    made = signature((X, 3), {"flag": True})
    leaves = made.flatten((X, 3), {"flag": True})
    assert leaves is not None
    assert made.misfit(leaves) is None
    for args, flag, reason in (
        ((X, 4), True, "a1: was captured as 3, got 4"),
        ((X, 3.0), True, "a1: was captured as 3, got 3.0"),
        ((X, 3), 1, "a2: was captured as True, got 1"),
        ((X.bfloat16(), 3), True, "a0: expected float32, got bfloat16"),
        ((X[0], 3), True, "a0: expected rank 2, got rank 1"),
        ((X[:1], 3), True, "a0: expected shape [2, 3], got [1, 3]"),
        ((X.to("meta"), 3), True, "a0: expected device cpu, got meta"),
        ((X.to_sparse(), 3), True, "a0: expected a dense tensor, got sparse_coo"),
        ((7, 3), True, "a0: expected a tensor, got int"),
    ):
        leaves = made.flatten(args, {"flag": flag})
        assert leaves is not None
        assert made.misfit(leaves) == reason
    assert made.flatten((X,), {"flag": True}) is None
    assert made.flatten((X, 3), {}) is None
    assert made.flatten(([X], 3), {"flag": True}) is None


def test_results_become_a_tree() -> None:
    made = signature((X,), {})
    got = made.unflatten([Y], [X])
    assert got == {"y": [Y, X], "z": (None, 3)}
    assert got["y"][1] is X


def f(
    x: Any, y: Any = 1, /, z: Any = None, *rest: Any, k: Any = 2.0, t: Any = X, **more: Any
) -> None:
    """A call with everything."""


@pytest.mark.parametrize(
    ("captured", "call"),
    [
        (((X,), {}), ((X, 1, None), {})),
        (((X,), {}), ((X,), {"k": 2.0, "t": X})),
        (((X, 1, None), {"k": 2.0}), ((X,), {})),
        (((X, 1, Y), {}), ((X, 1), {"z": Y})),
        (((X,), {"z": Y}), ((X, 1, Y), {})),
    ],
)
def test_the_same_call_written_differently(captured: Any, call: Any) -> None:
    made = signature(*captured)
    args, kwargs = made.rearranged(*call, inspect.signature(f))
    leaves, want = made.flatten(args, kwargs), made.flatten(*captured)
    assert leaves is not None
    assert want is not None
    assert all(a is b or a == b for a, b in zip(leaves, want, strict=True))
    assert made.misfit(leaves) is None


@pytest.mark.parametrize(
    "call",
    [
        ((X, 5), {}),
        ((X,), {"k": 3.0}),
        ((X,), {"t": X.clone()}),
        ((X, 1, None, 4), {}),
        ((X,), {"other": 1}),
        ((), {}),
        ((X,), {"x": X}),
    ],
)
def test_another_call_stays_another(call: Any) -> None:
    made = signature((X,), {})
    args, kwargs = made.rearranged(*call, inspect.signature(f))
    assert made.flatten(args, kwargs) is None


def test_calls_are_described_by_types() -> None:
    text = described((X, [Y, 3]), {"k": 2.0, "long": "a" * 99})
    assert text.startswith("(float32[2, 3], ['float32[4]', 3], k=2.0, long='aaaa")
    assert len(text) < 130
