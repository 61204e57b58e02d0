"""Costs say where they come from, and no sum or comparison loses that."""

from __future__ import annotations

import math

import pytest

from whet.errors import SearchError
from whet.search import Cost, Source


@pytest.mark.parametrize("one", Source)
@pytest.mark.parametrize("other", Source)
def test_a_sum_has_the_weaker_source(one, other):
    order = [Source.MEASURED, Source.PREDICTED, Source.SIMULATED]
    total = Cost(1.0, 10, one, 0.1) + Cost(2.0, 20, other, 0.2)
    assert total.source is order[max(order.index(one), order.index(other))]
    assert (total.seconds, total.bytes) == (3.0, 30)
    assert total.spread == pytest.approx(0.3)


def test_nothing_is_neutral_and_impossible_stays_so():
    cost = Cost(1.5, 8, Source.SIMULATED, 0.5)
    assert cost + Cost.NONE == cost
    assert sum([cost, cost], Cost.NONE) == cost * 2
    assert (cost + Cost.IMPOSSIBLE).seconds == math.inf


@pytest.mark.parametrize("bad", [{"seconds": -1.0}, {"seconds": math.nan}, {"spread": -1.0}])
def test_a_cost_that_is_none_is_refused(bad):
    with pytest.raises(SearchError, match="a cost cannot be this") as error:
        Cost(**{"seconds": 1.0, **bad})
    assert next(iter(bad)) in str(error.value)


def test_a_prediction_never_beats_a_measurement():
    measured, predicted = Cost(2.0), Cost(1.0, source=Source.PREDICTED)
    assert not predicted.beats(measured)
    assert Cost(1.5).beats(measured)
    assert Cost(0.5).beats(predicted)
    assert not measured.beats(measured)


def test_every_printed_cost_shows_its_source():
    assert str(Cost(0.00125)) == "1.25 ms (measured)"
    assert str(Cost(0.1, 0, Source.SIMULATED, 0.02)) == "100 ms ± 20 ms (simulated)"
    assert str(Cost.IMPOSSIBLE) == "impossible (measured)"
