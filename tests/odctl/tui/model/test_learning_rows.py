"""Error bars, and what the learning tables say of a report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odctl.inventory import Learning
from odctl.learning import LearningReport
from odctl.tui.model.bars import error_bar
from odctl.tui.model.learning_rows import (
    SelectionRows,
    StrategyRows,
    learning_summary,
    ratio_of,
    ratio_span,
    strategy_page,
)
from odctl.tui.model.text import line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui import measured_fleet as measured


def test_an_error_bar_shows_value_deviation_and_mark() -> None:
    assert error_bar(5.0, deviation=2.0, mark=9.0, top=10.0, width=11) == "···├─●─┤·▾·"
    assert error_bar(5.0, deviation=0.0, mark=5.0, top=10.0, width=11) == "·····◉·····"


@given(st.floats(0, 10), st.floats(0, 10), st.one_of(st.none(), st.floats(0, 20)), st.integers(3, 80))
def test_an_error_bar_fills_its_cells_whatever_it_shows(
    value: float, deviation: float, mark: float | None, width: int
) -> None:
    drawn = error_bar(value, deviation=deviation, mark=mark, top=10.0, width=width)
    assert len(drawn) == width
    assert "●" in drawn or "◉" in drawn or "▾" in drawn


def test_every_cell_of_every_row_is_said_and_sortable() -> None:
    report = measured.report()
    for rows in (StrategyRows(report), SelectionRows(report, now_s=frozen.NOW_S)):
        assert rows.keys
        assert len(set(rows.keys)) == len(rows.keys)
        for column in rows.columns:
            values = rows.values(column.id)
            assert len(values) == len(rows.keys)
            for row in range(len(rows.keys)):
                said = line_text(rows.cell(row, column.id, column.width))
                assert said or values[row] in (None, ""), f"{column.id} of {rows.keys[row]} says nothing"


def test_a_ratio_is_told_by_its_glyph() -> None:
    assert [ratio_span(ratio).text for ratio in (2.0, 1.0, 0.5)] == ["▲ 2.00", "● 1.00", "▾ 0.50"]
    newest = measured.report().history[-1]
    assert ratio_of(newest) is None, "nothing was measured of it"


@pytest.mark.parametrize("width", [80, 140])
def test_the_page_of_a_strategy_fits_its_width(width: int) -> None:
    report = measured.report()
    for key in StrategyRows(report).keys:
        page = strategy_page(report, key, width=width)
        assert len(page) == 3
        assert all(line_width(each) <= width for each in page[1:])
    assert strategy_page(report, "gone", width=width) == ()


def test_the_summary_says_what_is_on_and_who_is_silent() -> None:
    off = learning_summary(LearningReport(settings=Learning(enabled=False)), now_s=frozen.NOW_S)
    assert "learning ○ off" in line_text(off[0])
    told = learning_summary(measured.silent(measured.report(), "cpu04"), now_s=frozen.NOW_S)
    assert "no answer from cpu04" in line_text(told[-1])
