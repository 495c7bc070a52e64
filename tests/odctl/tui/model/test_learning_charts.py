"""Scatter, regret and drift as lines: what is drawn where, and that nothing is wider than it may be."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.planner.learning.course import Measurement
from agent.planner.learning.records import Figures
from odctl.learning import LearningReport
from odctl.tui.model.canvas import Canvas, beside
from odctl.tui.model.learning_charts import buckets_of, charts_page, regret_chart, scatter
from odctl.tui.model.run_page import entry_of, measurements_of, run_page
from odctl.tui.model.text import line, line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui import measured_fleet as measured


def test_dots_fill_a_cell_from_its_corners() -> None:
    canvas = Canvas(1, 1)
    canvas.dot(0, 0, "ok")
    assert line_text(canvas.lines()[0]) == "⠁"
    for x in (0, 1):
        for y in range(4):
            canvas.dot(x, y, "dim")
    assert canvas.lines() == [(("⣿", "ok"),)]
    canvas.dot(2, 0, "ok")
    canvas.dot(-1, 9, "ok")
    assert canvas.lines() == [(("⣿", "ok"),)], "what is off the canvas is not drawn"


@given(st.integers(-9, 30), st.integers(-9, 30), st.integers(-9, 30), st.integers(-9, 30))
def test_a_stroke_never_leaves_the_canvas(x0: int, y0: int, x1: int, y1: int) -> None:
    canvas = Canvas(5, 3)
    canvas.stroke((x0, y0), (x1, y1), "bar")
    canvas.blob(x0, y0, "ok")
    assert [line_width(each) for each in canvas.lines()] == [5, 5, 5]


def test_blocks_stand_beside_each_other() -> None:
    lines = beside([[line("ab")], [line("c"), line("d")]], [3, 2], gap=1)
    assert [line_text(each) for each in lines] == ["ab  c ", "    d "]


def test_measurements_above_the_diagonal_are_slower_than_predicted() -> None:
    """The diagonal's dots lie on it; a plan twice as slow is drawn above its prediction."""

    def place(found_s: float) -> int:
        one = msgspec.structs.replace(
            measured.report().measurements[0],
            predicted=Figures(time_per_token_s=0.020),
            measured=Figures(time_per_token_s=found_s),
        )
        anchors = [_of(one, 0.010, 0.010), _of(one, 0.050, 0.050), one]
        drawn = scatter(anchors, width=40, height=10)[1:-2]
        tone = "warn" if found_s > 0.025 else "heal" if found_s < 0.016 else "ok"
        rows = [
            row for row, spans in enumerate(drawn) if any(span.tone == tone and span.text.strip() for span in spans)
        ]
        return rows[0]

    assert place(0.040) < place(0.012)


def _of(one: Measurement, promised: float, found: float) -> Measurement:
    return msgspec.structs.replace(
        one,
        predicted=Figures(time_per_token_s=promised),
        measured=Figures(time_per_token_s=found),
    )


def test_wide_ranges_are_drawn_on_a_logarithmic_scale_and_say_so() -> None:
    one = measured.report().measurements[0]
    near = [_of(one, 0.010, 0.012), _of(one, 0.011, 0.013)]
    far = [*near, _of(one, 0.9, 1.1)]
    assert any("─ linear ─" in line_text(each) for each in scatter(near, width=40, height=6))
    assert any("─ log ─" in line_text(each) for each in scatter(far, width=40, height=6))


def test_the_legend_counts_what_was_slower_and_faster() -> None:
    legend = line_text(scatter(measured.report().measurements, width=60, height=6)[-1])
    assert "● 6 right  ▲ 4 slower  ▾ 0 faster" in legend


def test_regret_rises_where_the_worse_strategy_served_and_drift_is_marked() -> None:
    text = "\n".join(line_text(each) for each in regret_chart(measured.report(), width=50, height=6))
    assert "14.7%│" in text
    assert "0%│" in text
    assert text.count("▲") == 2, "the title's, and the alarm's below the line"
    assert "needed" in line_text(regret_chart(LearningReport(), width=50, height=6)[1])


@pytest.mark.parametrize("width", [40, 78, 138])
@pytest.mark.parametrize("bucket", ["", "short prompts, one at a time, deep model", "gone"])
def test_charts_fit_their_width_whatever_is_chosen(width: int, bucket: str) -> None:
    page = charts_page(measured.report(), bucket=bucket, width=width, now_s=frozen.NOW_S)
    drawn = [each for each in page if "⡀" in line_text(each) or "│" in line_text(each)]
    assert all(line_width(each) <= width for each in drawn)
    text = "\n".join(line_text(each) for each in page)
    assert "tensor 2 of chat took 1.72 times what was predicted" in text, "every alarm is there"
    if bucket == "gone":
        assert "nothing was measured of it yet" in text
    else:
        assert "10 measurements" in text
        assert "pipeline 2" in text


def test_buckets_are_those_that_were_measured() -> None:
    assert buckets_of(measured.report()) == ("short prompts, one at a time, deep model",)
    assert buckets_of(LearningReport()) == ()


@pytest.mark.parametrize("width", [80, 140])
def test_a_run_says_what_was_promised_and_measured_and_what_is_lost(width: int) -> None:
    report = measured.report()
    pipeline, tensor, unasked = report.history
    assert len(measurements_of(report, pipeline)) == 6
    assert len(measurements_of(report, tensor)) == 4
    assert measurements_of(report, unasked) == ()
    page = run_page(report, tensor, None, why_no_entry="its journal is lost", width=width, now_s=frozen.NOW_S)
    text = " ".join(line_text(each).strip() for each in page)
    for said in ("chat generation 2", "likelihood of 31%", "promised: 25.0 ms per token", "its journal is lost"):
        assert said in text, said
    assert text.count("▲ 1.") == 5, "the run as a whole, and each of its four measurements"
    assert all(line_width(each) <= width for each in page)
    page = run_page(report, unasked, None, why_no_entry="x", width=width, now_s=frozen.NOW_S)
    assert any("nothing was measured of it" in line_text(each) for each in page)
    assert entry_of((), tensor) is None
