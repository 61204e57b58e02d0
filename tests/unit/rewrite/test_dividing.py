"""What may pay on several devices is proven like everything else, in every form."""

from __future__ import annotations

import pytest

from whet.rewrite.conjecture import Statement
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.dividing import DIVIDING
from whet.rewrite.forms import forms
from whet.rewrite.prove import prove
from whet.rewrite.rule import Rule


@pytest.mark.parametrize("name", DIVIDING)
def test_every_form_is_proven(name):
    for form in forms(DIVIDING[name]):
        verdict = prove(Statement(DIVIDING[name], form))
        assert isinstance(verdict, Rule), verdict


def test_names_are_not_taken():
    assert not set(DIVIDING) & set(CONJECTURES)
