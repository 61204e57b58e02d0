"""Errors say what was expected, what came, where, and what to try."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from whet import errors
from whet.errors import InputError, WhetError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def test_the_four_rows_in_order():
    error = InputError(
        "input 0 has another shape",
        expected="float32[1, 3, 224, 224]",
        got="float32[1, 3, 64, 64]",
        where="model.py:12",
        hint="optimize for this shape too",
    )
    assert str(error) == (
        "input 0 has another shape\n"
        "  expected: float32[1, 3, 224, 224]\n"
        "  got:      float32[1, 3, 64, 64]\n"
        "  where:    model.py:12\n"
        "  try:      optimize for this shape too"
    )


def test_absent_rows_are_left_out():
    assert str(WhetError("no store")) == "no store"
    assert str(WhetError("no store", hint="mkdir it")) == "no store\n  try:      mkdir it"


def test_a_falsy_value_is_not_absent():
    assert str(WhetError("rank", expected=1, got=0)) == "rank\n  expected: 1\n  got:      0"


def test_an_empty_value_keeps_its_row():
    assert str(WhetError("name", got="")).splitlines()[1].strip() == "got:"


def test_further_lines_stand_under_the_first():
    record = "y[i] = x[j]\n         ^ unbound"
    first, second = str(WhetError("bad record", where=record)).splitlines()[1:]
    assert first == "  where:    y[i] = x[j]"
    assert first.index("x[j]") - second.index("^") == len("y[i] = ") - len("         ")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_is_a_whet_error_with_a_docstring(kind):
    assert issubclass(kind, WhetError)
    assert kind.__doc__
    assert inspect.getdoc(kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_the_way_to_another_process(kind):
    error = kind("what", expected=("a", 1), got=None, where="there", hint="this")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert twin.expected == ("a", 1)
