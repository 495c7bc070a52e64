"""The line under the screens that says which moment is shown, between which others, and what happened when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from agent.facts.fault import Fault
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.playback import GAP_S, Playback
from odctl.tui.model.text import Line, Span, Tone, line, line_width
from odctl.tui.model.units import bytes_text

KEYS = "space pause/play  , . step  + - speed  g go to  L "
NO_MOMENT = " "


class ScrubLine(NamedTuple):
    """The line, and where in it the bar stands: cells from `bar_start`, `bar_width` of them."""

    line: Line
    bar_start: int
    bar_width: int


def clock_text(at_s: float) -> str:
    """`14:02:31`, UTC as everywhere in the UI."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%H:%M:%S")


def speed_text(speed: float) -> str:
    """`1x`, `0.25x`."""
    return f"{speed:g}x"


def moment_spans(playback: Playback, shown_at_s: float | None, *, now_s: float) -> Line:
    """For the title, instead of "live": `‖ 12 s ago`, or of a recording `▶ REC 14:02:31`. Nothing when live."""
    if playback.is_live or shown_at_s is None:
        return ()
    glyph = "▶" if playback.is_playing else "‖"
    if playback.is_recording:
        return (Span(f" {glyph} REC {clock_text(shown_at_s)}", "key"),)
    return (Span(f" {glyph} {_ago_text(now_s - shown_at_s)} ago", "warn"),)


def recording_spans(num_bytes: int) -> Line:
    """For the title, while a recording is being written."""
    return (Span(f" ◉ REC {bytes_text(num_bytes)}", "fault"),)


def scrub_line(
    playback: Playback,
    times: Sequence[float],
    shown: FleetSnapshot | None,
    *,
    faults: Sequence[Fault],
    step_s: float,
    width: int,
) -> ScrubLine:
    """` ‖ paused 14:02:31 UTC  1x  14:00:02 ───✗──●──── 14:10:02  37/600`.

    Faults stand at the time they were observed.
    """
    if not times or shown is None:
        return ScrubLine(line(Span(" nothing to go back to yet", "dim")), 0, 0)
    index = max(0, bisect_right(times, shown.taken_at_s) - 1)
    state = "▶ playing" if playback.is_playing else "‖ paused"
    left = line(
        Span(f" {state} {clock_text(shown.taken_at_s)} UTC", "key"),
        Span(f"  {speed_text(playback.speed)}  ", "dim"),
        Span(f"{clock_text(times[0])} ", "dim"),
    )
    right = line(Span(f" {clock_text(times[-1])}", "dim"), Span(f"  {index + 1:,}/{len(times):,} ", "dim"))
    start, bar_width = line_width(left), max(1, width - line_width(left) - line_width(right))
    cells = _cells(times, bar_width, step_s=step_s)
    tones: list[Tone] = ["dim"] * bar_width
    for fault in sorted(faults, key=lambda fault: fault.severity == "fault"):
        if times[0] <= fault.observed_at_s <= times[-1]:
            at = cell_of(fault.observed_at_s, times, bar_width)
            cells[at] = "✗" if fault.severity == "fault" else "▲"
            tones[at] = "fault" if fault.severity == "fault" else "warn"
    at = cell_of(shown.taken_at_s, times, bar_width)
    cells[at], tones[at] = "●", "key"
    bar = tuple(Span(cell, tone) for cell, tone in zip(cells, tones, strict=True))
    return ScrubLine((*left, *_joined(bar), *right), start, bar_width)


def keys_line(playback: Playback) -> Line:
    """What the keys do, or how to have them."""
    end = "end" if playback.is_recording else "live"
    if playback.has_keys:
        return line(Span(f" {KEYS}{end}  T keys to the screen", "dim"))
    return line(Span(" T space, comma and the other keys of time", "dim"))


def time_of(cell: int, times: Sequence[float], width: int) -> float:
    """A time in that cell of the bar: of the first cell the first moment, of the last one the last."""
    return times[0] + (times[-1] - times[0]) * cell / max(1, width - 1)


def cell_of(at_s: float, times: Sequence[float], width: int) -> int:
    """The bar's cell in which a time lies."""
    span_s = times[-1] - times[0]
    return min(width - 1, max(0, int((at_s - times[0]) / span_s * width))) if span_s > 0 else 0


def _ago_text(seconds: float) -> str:
    """`12 s`, `3 m 5 s`: whole seconds, since a standing moment recedes by them."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} m {rest} s" if minutes else f"{rest} s"


def _cells(times: Sequence[float], width: int, *, step_s: float) -> list[str]:
    """A stroke where there are moments, or where the next one is near enough; a gap is a gap on the screen."""
    cells = [NO_MOMENT] * width
    for before, after in zip(times, [*times[1:], times[-1]], strict=True):
        first, last = cell_of(before, times, width), cell_of(after, times, width)
        if after - before > max(GAP_S, 3 * step_s):
            last = first
        for at in range(first, last + 1):
            cells[at] = "─"
    return cells


def _joined(spans: Line) -> Line:
    """Neighbours of one tone as one span."""
    out: list[Span] = []
    for span in spans:
        if out and out[-1].tone == span.tone:
            out[-1] = Span(out[-1].text + span.text, span.tone)
        else:
            out.append(span)
    return tuple(out)
