from __future__ import annotations

import pytest

from odctl.fleet.history import DeploymentRow, History
from odctl.tui.model.fleet_summary import fleet_lines, token_rates, tokens_line
from odctl.tui.model.text import line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen


def rows(*points: tuple[float, float]) -> list[DeploymentRow]:
    return [DeploymentRow(at_s=at_s, tokens_per_s=rate, running=1, queued=0) for at_s, rate in points]


def test_rates_of_deployments_that_are_asked_at_different_moments_add_up() -> None:
    first = rows((0.0, 10.0), (1.0, 20.0), (2.0, 30.0), (9.0, 40.0))
    second = rows((0.5, 100.0), (2.5, 200.0))
    assert token_rates([first, second], 5, end_s=10.0, span_s=10.0) == [115.0, 230.0, None, None, 40.0]


def test_rows_from_before_the_time_shown_are_left_out() -> None:
    assert token_rates([rows((-5.0, 9.0), (10.0, 1.0))], 2, end_s=10.0, span_s=10.0) == [None, 1.0]


@pytest.mark.parametrize("width", [80, 140])
def test_the_strip_ends_in_the_present_rate_and_fits(width: int) -> None:
    found = tokens_line(frozen.snapshot(), width=width)
    assert found is not None
    text = line_text(found)
    assert line_width(found) <= width
    assert text.startswith(" tok/s 15m ")
    assert "up to" in text


def test_without_deployments_there_is_no_strip_and_without_a_word_of_them_it_says_so() -> None:
    assert tokens_line(frozen.snapshot(deployments=()), width=80) is None
    silent = frozen.deployment(history=History())
    found = tokens_line(frozen.snapshot(deployments=(silent,)), width=80)
    assert found is not None
    assert "no deployment has told its rate yet" in line_text(found)


def test_memory_of_a_lost_gpu_is_neither_used_nor_there() -> None:
    text = "\n".join(line_text(found) for found in fleet_lines(frozen.snapshot(), width=140))
    assert "3 GPUs" in text
    assert "36.0G/48.0G" in text
