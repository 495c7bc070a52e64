"""How learning went: measurements in order, and the regret as it stood after each."""

from __future__ import annotations

import pytest

from agent.planner.learning import course
from agent.planner.learning.course import course_of, median_error
from agent.planner.learning.state import replay
from agent.planner.learning.summary import regret_so_far, summarise
from tests.agent.planner.learning.test_state import chosen, measured

LESSONS = (
    chosen("pipeline 2", at_s=0.0),
    *(measured("pipeline 2", 0.010, at_s=float(at_s)) for at_s in range(1, 4)),
    chosen("tensor 2", at_s=4.0, plan_hash="b"),
    *(measured("tensor 2", 0.020, at_s=float(at_s), failed=1, plan_hash="b") for at_s in range(5, 7)),
)


def test_the_last_measurements_regret_is_the_regret_so_far() -> None:
    found = course_of(LESSONS)
    assert [(each.at_s, each.arm) for each in found] == [
        (1.0, "pipeline 2"),
        (2.0, "pipeline 2"),
        (3.0, "pipeline 2"),
        (5.0, "tensor 2"),
        (6.0, "tensor 2"),
    ]
    assert [each.regret for each in found[:3]] == [0.0, 0.0, 0.0], "the only strategy is the best one"
    assert found[-1].regret == regret_so_far(summarise(replay(LESSONS))) == pytest.approx(0.4)
    assert (found[-1].requests, found[-1].failed) == (4, 1)


def test_the_oldest_are_left_out_and_counted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = course_of(LESSONS)
    monkeypatch.setattr(course, "TOLD_MEASUREMENTS", 2)
    assert course_of(LESSONS) == whole[-2:]


def test_the_median_error_is_that_of_what_was_predicted() -> None:
    found = course_of(LESSONS)
    assert [each.ratio for each in found] == pytest.approx([1.0, 1.0, 1.0, 2.0, 2.0])
    assert median_error(found) == 0.0
    assert median_error(found[2:]) == pytest.approx(1.0)
    assert median_error([]) is None
