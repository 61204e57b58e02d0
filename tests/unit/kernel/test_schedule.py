"""Every move does what its docstring shows, and its text reads back."""

from __future__ import annotations

import re
import textwrap

import numpy as np
import pytest

from whet.kernel.interpret import run
from whet.kernel.loops import Kernel, KernelError
from whet.kernel.move import Move, parse
from whet.kernel.schedule import Illegal, apply, moves, read, show
from whet.kernel.text import parse as kernel

SHOWN = re.compile(r"before:\n(.*?)\n *move: (.*?)\n *after:\n(.*?)\n *$", re.DOTALL)


def shown(cls: type[Move]) -> tuple[Kernel, Move, Kernel]:
    """The example in a move's docstring."""
    found = SHOWN.search(cls.__doc__ or "")
    assert found, f"{cls.name} shows no before, move and after"
    before, move, after = found.groups()
    return kernel(textwrap.dedent(before)), parse(move), kernel(textwrap.dedent(after))


@pytest.mark.parametrize("name", sorted(moves()))
def test_a_move_does_what_it_shows(name: str) -> None:
    before, move, after = shown(moves()[name])
    made = apply(before, (move,))
    assert not isinstance(made, Illegal), made
    assert str(made) == str(after)
    rng = np.random.default_rng(0)
    data = {b.name: rng.standard_normal(b.sizes) for b in before.inputs}
    want, got = run(before, data), run(made, data)
    for y in want:
        np.testing.assert_allclose(got[y], want[y])


@pytest.mark.parametrize("name", sorted(moves()))
def test_a_schedule_reads_back(name: str) -> None:
    _, move, _ = shown(moves()[name])
    assert read(show((move, move))) == (move, move)


def test_what_is_no_move_says_which_there_are() -> None:
    with pytest.raises(KernelError, match="not a move"):
        read("paint(i, red)")
