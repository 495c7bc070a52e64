from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.planner.learning.averages import MovingAverage
from agent.planner.learning.drift import PageHinkley
from agent.planner.learning.weights import LEAST, MOST, ObjectiveWeights, Slack, adapt_weights


def test_an_average_is_right_from_its_first_value_on() -> None:
    average = MovingAverage().with_value(7.0)
    assert average.mean == pytest.approx(7.0)
    assert average.variance == pytest.approx(0.0)


@settings(deadline=None)
@given(st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=1, max_size=60))
def test_an_average_weighs_later_values_more_and_stays_among_them(values: list[float]) -> None:
    average = MovingAverage()
    for value in values:
        average = average.with_value(value)
    weights = [0.9 ** (len(values) - 1 - index) for index in range(len(values))]
    by_hand = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
    assert average.mean == pytest.approx(by_hand)
    assert average.deviation is not None
    assert average.deviation <= max(values) - min(values) + 1e-3 * max(values)


def test_nothing_has_no_average() -> None:
    assert MovingAverage().mean is None
    assert MovingAverage().variance is None


def test_noise_alone_raises_no_alarm_and_a_change_does() -> None:
    test = PageHinkley()
    for index in range(200):
        test = test.with_value(0.1 if index % 2 else -0.1)
    assert not test.is_alarmed
    seen = 0
    while not test.is_alarmed:
        test, seen = test.with_value(1.0), seen + 1
        assert seen < 10


@settings(deadline=None)
@given(st.lists(st.builds(Slack, latency=st.floats(-3, 3), throughput=st.floats(-3, 3)), max_size=80))
def test_weights_sum_to_one_and_keep_their_bounds(slacks: list[Slack]) -> None:
    weights = ObjectiveWeights()
    for slack in slacks:
        weights = adapt_weights(weights, slack)
    values = (weights.latency, weights.throughput, weights.energy, weights.cost)
    assert sum(values) == pytest.approx(1.0)
    assert all(LEAST - 1e-9 <= value <= MOST + 1e-9 for value in values)


def test_the_objective_that_misses_its_target_comes_to_count_most() -> None:
    weights = ObjectiveWeights()
    for _ in range(40):
        weights = adapt_weights(weights, Slack(latency=-0.5, throughput=0.3))
    assert weights.latency > 0.7
    assert weights.throughput == pytest.approx(LEAST)
