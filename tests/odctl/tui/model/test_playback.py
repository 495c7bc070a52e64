"""Time as a value: pausing, stepping, playing, going to a moment; and the line that shows it."""

from __future__ import annotations

import msgspec
import pytest

from odctl.tui.model import playback as model
from odctl.tui.model.playback import Playback, TimeError, parse_time
from odctl.tui.model.scrub import cell_of, clock_text, moment_spans, scrub_line, time_of
from odctl.tui.model.text import line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen

T0 = 1_800_000_000.0
"""2027-01-15 08:00:00 UTC."""
TIMES = [T0 + second for second in range(0, 601, 2)]


def test_a_live_session_pauses_at_its_latest_moment_and_goes_live_again() -> None:
    live = Playback()
    paused = model.paused(live, TIMES)
    assert (paused.at_s, paused.is_playing, paused.has_keys) == (TIMES[-1], False, True)
    assert model.at_end(paused, TIMES) == live
    assert model.paused(live, []) == live, "without a moment there is nothing to stand at"


def test_a_recording_begins_standing_and_ends_standing() -> None:
    start = model.of_recording(TIMES)
    assert (start.at_s, start.is_playing, start.has_keys) == (T0, False, True)
    playing = model.toggled(start, TIMES)
    assert playing.is_playing
    end = model.advanced(playing, TIMES, 10_000.0, step_s=2.0)
    assert (end.at_s, end.is_playing) == (TIMES[-1], False)
    assert model.toggled(end, TIMES).at_s == T0, "at its end it begins anew"
    assert model.at_end(start, TIMES).at_s == TIMES[-1]


def test_steps_stop_at_both_ends() -> None:
    start = model.of_recording(TIMES)
    assert model.stepped(start, TIMES, index=0, step=-1).at_s == T0
    assert model.stepped(start, TIMES, index=5, step=1).at_s == TIMES[6]
    assert model.stepped(start, TIMES, index=5, step=-1).at_s == TIMES[4]
    assert model.stepped(start, TIMES, index=len(TIMES) - 1, step=3).at_s == TIMES[-1]
    playing = model.toggled(start, TIMES)
    assert not model.stepped(playing, TIMES, index=3, step=1).is_playing, "a step stands still"


def test_playing_goes_by_its_speed() -> None:
    playing = model.toggled(model.of_recording(TIMES), TIMES)
    assert model.advanced(playing, TIMES, 3.0, step_s=2.0).at_s == T0 + 3
    faster = model.with_speed(model.with_speed(playing, 1), 1)
    assert faster.speed == 5.0
    assert model.advanced(faster, TIMES, 3.0, step_s=2.0).at_s == T0 + 15
    slowest = playing
    for _ in range(20):
        slowest = model.with_speed(slowest, -1)
    assert slowest.speed == model.SPEEDS[0]
    standing = model.of_recording(TIMES)
    assert model.advanced(standing, TIMES, 3.0, step_s=2.0) == standing


def test_a_gap_is_not_waited_through() -> None:
    times = [T0, T0 + 1, T0 + 2, T0 + 7200, T0 + 7201, T0 + 7202]
    playing = model.gone_to(model.toggled(model.of_recording(times), times), times, T0 + 2)
    assert model.advanced(playing, times, 0.5, step_s=1.0).at_s == T0 + 2.5, "its beginning is seen for a step"
    assert model.advanced(playing, times, 1.5, step_s=1.0).at_s == T0 + 7200
    rare = [T0, T0 + 60, T0 + 120, T0 + 180]
    playing = model.toggled(model.of_recording(rare), rare)
    assert model.advanced(playing, rare, 61.0, step_s=60.0).at_s == T0 + 61, "moments that are meant to be rare"


def test_a_live_session_that_catches_up_is_live() -> None:
    paused = model.stepped(Playback(), TIMES, index=len(TIMES) - 1, step=-5)
    playing = model.toggled(paused, TIMES)
    assert model.advanced(playing, TIMES, 4.0, step_s=2.0).at_s == TIMES[-6] + 4
    assert model.advanced(playing, TIMES, 60.0, step_s=2.0).is_live


def test_what_was_evicted_meanwhile_is_played_from_the_oldest_moment() -> None:
    playing = Playback(at_s=T0 - 500, is_playing=True)
    assert model.advanced(playing, TIMES, 1.0, step_s=2.0).at_s == T0 + 1


@pytest.mark.parametrize(
    ("text", "at_s"),
    [
        ("08:01:30", T0 + 90),
        ("8:02", T0 + 120),
        ("2027-01-15 08:03", T0 + 180),
        ("2027-01-15T08:03:01", T0 + 181),
        ("-90s", T0 + 210),
        ("+1m", T0 + 360),
        ("+ 1m", None),
        ("-1.5", T0 + 298.5),
        ("50%", T0 + 300),
        ("150%", T0 + 600),
        ("23:59", T0 + 16 * 3600 - 60),
        ("soon", None),
        ("25:00", None),
        ("08:61", None),
        ("2027-02-30 08:00", None),
        ("", None),
    ],
)
def test_times_are_read_as_people_write_them(text: str, at_s: float | None) -> None:
    if at_s is None:
        with pytest.raises(TimeError, match="no time"):
            parse_time(text, TIMES, at_s=T0 + 300)
    else:
        assert parse_time(text, TIMES, at_s=T0 + 300) == at_s


def test_a_time_of_the_clock_may_be_of_yesterday() -> None:
    over_midnight = [T0 - 9 * 3600, T0]
    assert parse_time("23:30", over_midnight, at_s=T0) == T0 - 8.5 * 3600
    with pytest.raises(TimeError, match="no moment"):
        parse_time("23:30", [], at_s=T0)


@pytest.mark.parametrize("width", [80, 140])
def test_the_line_shows_the_moment_between_the_others_and_the_faults(width: int) -> None:
    shown = frozen.snapshot(taken_at_s=TIMES[150], faults=())
    fault = msgspec.structs.replace(frozen.faults()[0], observed_at_s=T0 + 120)
    faults = [fault, msgspec.structs.replace(fault, observed_at_s=T0 + 480, severity="warning")]
    bar = scrub_line(model.of_recording(TIMES), TIMES, shown, faults=faults, step_s=2.0, width=width)
    text = line_text(bar.line)
    assert line_width(bar.line) == width
    for said in ("‖ paused 08:05:00 UTC", "1x", "08:00:00", "08:10:00", "151/301"):
        assert said in text
    inside = text[bar.bar_start : bar.bar_start + bar.bar_width]
    assert inside.index("✗") < inside.index("●") < inside.index("▲")
    assert inside.index("●") == cell_of(TIMES[150], TIMES, bar.bar_width)
    assert set(inside) == {"─", "✗", "●", "▲"}
    middle = time_of(inside.index("✗"), TIMES, bar.bar_width)
    assert abs(middle - (T0 + 120)) <= 600 / bar.bar_width


def test_a_gap_in_time_is_a_gap_on_the_line() -> None:
    times = [*[T0 + second for second in range(60)], *[T0 + 1000 + second for second in range(60)]]
    shown = frozen.snapshot(taken_at_s=times[0])
    bar = scrub_line(model.of_recording(times), times, shown, faults=(), step_s=1.0, width=140)
    inside = line_text(bar.line)[bar.bar_start : bar.bar_start + bar.bar_width]
    assert inside.strip("●─").isspace()
    assert scrub_line(Playback(), [], None, faults=(), step_s=1.0, width=80).bar_width == 0
    one = scrub_line(model.of_recording([T0]), [T0], shown, faults=(), step_s=1.0, width=80)
    assert "1/1" in line_text(one.line)


def test_the_title_says_how_long_ago_or_when() -> None:
    paused = Playback(at_s=T0)
    assert line_text(moment_spans(paused, T0, now_s=T0 + 12.4)) == " ‖ 12 s ago"
    assert line_text(moment_spans(paused, T0, now_s=T0 + 185)) == " ‖ 3 m 5 s ago"
    playing = Playback(at_s=T0, is_playing=True, is_recording=True)
    assert line_text(moment_spans(playing, T0, now_s=T0)) == " ▶ REC 08:00:00"
    assert moment_spans(Playback(), T0, now_s=T0) == ()
    assert clock_text(T0) == "08:00:00"
