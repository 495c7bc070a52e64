"""The axis of time: zoom, scrub, fit and the labels above it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from odctl.tui.model.time_axis import SPANS_S, Axis, length_text, span_text, ticks_text

NOW_S = 1_700_000_000.0


def test_zooming_keeps_the_present_or_else_the_middle() -> None:
    live = Axis()
    assert live.zoomed(1, now_s=NOW_S) == Axis(span_s=900.0)
    held = Axis(span_s=3600.0, end_s=NOW_S - 7200)
    closer = held.zoomed(1, now_s=NOW_S)
    assert closer.end(NOW_S) - closer.span_s / 2 == held.end(NOW_S) - held.span_s / 2
    assert Axis(span_s=SPANS_S[0]).zoomed(1, now_s=NOW_S).span_s == SPANS_S[0]
    assert Axis(span_s=SPANS_S[-1]).zoomed(-1, now_s=NOW_S).span_s == SPANS_S[-1]


def test_scrubbing_past_the_present_follows_it() -> None:
    past = Axis(span_s=80.0).scrubbed(-1, now_s=NOW_S)
    assert past.end_s == NOW_S - 10.0
    assert past.scrubbed(1, now_s=NOW_S) == Axis(span_s=80.0)


def test_a_fitted_axis_shows_all_of_it_with_room_beside() -> None:
    axis = Axis().around(NOW_S - 500, NOW_S - 460, now_s=NOW_S)
    assert axis.start(NOW_S) < NOW_S - 500
    assert axis.end(NOW_S) > NOW_S - 460
    assert axis.span_s == 52.0
    assert axis.zoomed(1, now_s=NOW_S).span_s == 30.0, "zooming goes on from the nearest step"
    assert axis.zoomed(-1, now_s=NOW_S).span_s == 60.0


@given(st.sampled_from(SPANS_S), st.integers(1, 200), st.floats(0, 1e6))
def test_labels_fill_the_width_and_stand_at_their_times(span_s: float, width: int, ago_s: float) -> None:
    axis = Axis(span_s=span_s, end_s=NOW_S - ago_s)
    text = ticks_text(axis, width, now_s=NOW_S)
    assert len(text) == width
    if width >= 40:
        assert "▏" in text


def test_labels_are_in_utc_and_as_fine_as_the_zoom_needs() -> None:
    assert ticks_text(Axis(span_s=3600.0), 60, now_s=NOW_S).split() == ["▏21:15Z", "▏21:30Z", "▏21:45Z", "▏22:00Z"]
    assert "▏22:13:14Z" in ticks_text(Axis(span_s=10.0), 60, now_s=NOW_S)
    assert span_text(Axis(), now_s=NOW_S) == "last 1h"
    assert span_text(Axis(span_s=30.0, end_s=NOW_S), now_s=NOW_S) == "30s until 2023-11-14 22:13:20Z"
    assert length_text(27.3) == "27.3s"
