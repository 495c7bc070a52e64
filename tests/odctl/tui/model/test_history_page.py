"""Generations of a deployment: predicted against measured, and what no journal has any more is said."""

from __future__ import annotations

import pytest

from odctl.tui.model.history_page import HistoryRows, entry_choice, entry_key, entry_page
from odctl.tui.model.text import line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.histories import FIRST, history

WIDTHS = (78, 138)


def test_rows_are_newest_first_with_measured_over_predicted() -> None:
    entries = history().of("chat")
    rows = HistoryRows(entries, (), now_s=frozen.NOW_S)
    assert [line_text(rows.cell(row, "generation", 4)) for row in range(3)] == ["3", "2", "1"]
    assert [line_text(rows.cell(row, "state", 11)) for row in range(3)] == [
        "● current", "○ replaced", "○ replaced",
    ]  # fmt: skip
    assert line_text(rows.cell(0, "age", 5)) == "1h"
    assert line_text(rows.cell(0, "ttft", 14)) == "400 ms ×0.95"
    assert line_text(rows.cell(0, "time_per_token", 14)) == "36 ms ×1.16"
    assert line_text(rows.cell(0, "throughput", 18)) == "—", "a single stream is held against no full batch"
    assert rows.values("throughput") == [None, None, None]
    assert len(set(rows.keys)) == 3


@pytest.mark.parametrize("width", WIDTHS)
def test_a_generation_tells_how_it_came_to_be_and_how_it_did(width: int) -> None:
    entry = history().of("chat")[2]
    lines = entry_page(entry, frozen.snapshot(), width=width)
    assert all(line_width(spans) <= width for spans in lines), "nothing is cut off at the right"
    text = "\n".join(line_text(spans) for spans in lines)
    for said in (
        "chat generation 3  ● current",
        "rollback by ann@desk:41",
        "to generation 2",
        "switched 7.5 s after its apply began",
        "measured over predicted: time to first token ×0.95, time per token ×1.16",
        "not yet",
        "window",
        "r0s1t0",
    ):
        assert said in text.replace("\n   ", " "), said


def test_a_plan_that_is_lost_cannot_be_gone_back_to() -> None:
    entry = history(knows_first=False).of("chat")[0]
    assert entry_choice(entry) is None
    text = "\n".join(line_text(spans) for spans in entry_page(entry, None, width=78))
    assert "its plan is in no journal any more" in text
    rows = HistoryRows([entry], (entry_key(entry),), now_s=frozen.NOW_S)
    assert line_text(rows.cell(0, "layout", 20)) == "its plan is lost"
    assert line_text(rows.cell(0, "ttft", 14)) == "—"
    assert line_text(rows.cell(0, "mark", 1)) == "◆"


def test_a_generation_is_a_plan_to_apply() -> None:
    choice = entry_choice(history().of("chat")[0])
    assert choice is not None
    assert (choice.plan, choice.origin) == (FIRST, "generation 1")
