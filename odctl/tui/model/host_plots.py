"""Fifteen minutes of one host as strips, and the values under a cursor that stands at a moment, not at a cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from odctl.fleet.history import HISTORY_S
from odctl.fleet.snapshot import HostView
from odctl.tui.model.bars import time_strip
from odctl.tui.model.marks import HOST_MARKS
from odctl.tui.model.readings import NONE
from odctl.tui.model.text import Line, Span, fit, line
from odctl.tui.model.units import age_text, percent_text, rate_text

TITLE_CELLS = 8
VALUE_CELLS = 9
SMALL_LANES = 4
"""On a short terminal: those that say most, in this order."""
_ORDER_OF_WEIGHT = ("gpu", "cpu", "net ↓", "net ↑", "temp", "power", "vram", "ram", "disk")


class Lane(NamedTuple):
    title: str
    points: list[tuple[float, float | None]]
    top: float | None
    """Full height; the highest value when None."""
    text: Callable[[float], str]


def host_lanes(host: HostView) -> list[Lane]:
    """What was measured of it. A lane without any value is left out: there is no such device or sensor."""
    rows = host.history.rows()

    def lane(title: str, field: str, top: float | None, text: Callable[[float], str]) -> Lane:
        return Lane(title, [(row.at_s, getattr(row, field)) for row in rows], top, text)

    lanes = [
        lane("cpu", "cpu", 1.0, _percent),
        lane("ram", "memory", 1.0, _percent),
        lane("gpu", "gpu", 1.0, _percent),
        lane("vram", "gpu_memory", 1.0, _percent),
        lane("power", "power_w", None, lambda watts: f"{watts:.0f}W"),
        lane("temp", "hottest_c", 100.0, lambda celsius: f"{celsius:.0f}°"),
        lane("net ↓", "received_bytes_per_s", None, rate_text),
        lane("net ↑", "sent_bytes_per_s", None, rate_text),
        lane("disk", "disk_bytes_per_s", None, rate_text),
    ]
    return [each for each in lanes if any(value is not None for _, value in each.points)]


def plot_cells(width: int) -> int:
    """Cells of a strip on a screen of this width; each stands for `HISTORY_S / plot_cells` seconds."""
    return max(1, width - TITLE_CELLS - VALUE_CELLS)


def step_cursor(at_s: float | None, step: int, *, width: int, now_s: float) -> float | None:
    """The moment `step` cells from the cursor; None is now. It stays within the fifteen minutes."""
    cell_s = HISTORY_S / plot_cells(width)
    moved_s = (now_s if at_s is None else at_s) + step * cell_s
    if moved_s >= now_s:
        return None
    return max(now_s - HISTORY_S + cell_s / 2, moved_s)


def plot_lines(
    host: HostView, *, width: int, now_s: float, cursor_s: float | None = None, most: int | None = None
) -> tuple[Line, ...]:
    """Strips with the value under the cursor, or the newest without one, and the axis below."""
    lanes = host_lanes(host)
    if most is not None and len(lanes) > most:
        kept = sorted(lanes, key=lambda each: _ORDER_OF_WEIGHT.index(each.title))[:most]
        lanes = [each for each in lanes if each in kept]
    if not lanes:
        return ()
    cells = plot_cells(width)
    index = None if cursor_s is None else _cell_of(cursor_s, cells, now_s)
    lines = [lane_line(each, width=width, now_s=now_s, index=index) for each in lanes]
    return (*lines, _axis(cells, index, cursor_s, now_s=now_s))


def lane_line(lane: Lane, *, width: int, now_s: float, index: int | None = None) -> Line:
    """One strip. Under the cursor stands its cell's highest value, which is what is drawn."""
    cells = plot_cells(width)
    drawn = time_strip(lane.points, cells, end_s=now_s, span_s=HISTORY_S, top=lane.top)
    title = Span(fit(f" {lane.title}", TITLE_CELLS), "title")
    if index is None:
        last = lane.points[-1][1] if lane.points else None
        return line(title, Span(drawn, "bar"), Span(fit(_text(lane, last), VALUE_CELLS, is_right=True)))
    value = _highest_in(lane.points, index, cells, now_s)
    mark = drawn[index] if drawn[index] != " " else "│"
    return line(
        title,
        Span(drawn[:index], "bar"),
        Span(mark, "key"),
        Span(drawn[index + 1 :], "bar"),
        Span(fit(_text(lane, value), VALUE_CELLS, is_right=True), "key"),
    )


def host_strip_lines(host: HostView, *, width: int, now_s: float) -> tuple[Line, ...]:
    """CPU and network of one host over 15 minutes: what stands under the fleet's table."""
    if host.sample is None:
        mark = HOST_MARKS[host.state]
        hint = f"  {host.way_out}" if host.way_out else ""
        return (line(" ▸ ", Span(host.name, "bold"), " ", mark.span, f" {host.reason}", Span(hint, "dim")),)
    lanes = [lane for lane in host_lanes(host) if lane.title in {"cpu", "gpu", "net ↑"}]
    title = line(" ▸ ", Span(host.name, "bold"), Span("  last 15 minutes", "dim"))
    return (title, *[lane_line(lane, width=width, now_s=now_s) for lane in lanes])


def _axis(cells: int, index: int | None, cursor_s: float | None, *, now_s: float) -> Line:
    left, right = "-15 min ", " now"
    if index is None or cursor_s is None:
        rule = "─" * max(0, cells - len(left) - len(right))
        keys = fit("← →", VALUE_CELLS, is_right=True)
        return line(Span(" " * TITLE_CELLS), Span(f"{left}{rule}{right}"[:cells], "dim"), Span(keys, "dim"))
    at = datetime.fromtimestamp(cursor_s, UTC).strftime("%H:%M:%S")
    said = f" {age_text(now_s - cursor_s)} ago "
    # Beside the mark where there is room: to its right in the left half, to its left in the other.
    drawn = list("─" * cells)
    start = index + 1 if index < cells // 2 else index - len(said)
    if 0 <= start <= cells - len(said):
        drawn[start : start + len(said)] = said
    text = "".join(drawn)
    return line(
        Span(" " * TITLE_CELLS),
        Span(text[:index], "dim"),
        Span("▲", "key"),
        Span(text[index + 1 :], "dim"),
        Span(fit(at, VALUE_CELLS, is_right=True), "key"),
    )


def _cell_of(at_s: float, cells: int, now_s: float) -> int:
    return min(cells - 1, max(0, int((at_s - (now_s - HISTORY_S)) / HISTORY_S * cells)))


def _highest_in(points: Sequence[tuple[float, float | None]], index: int, cells: int, now_s: float) -> float | None:
    known = [
        value
        for at_s, value in points
        if value is not None and at_s >= now_s - HISTORY_S and _cell_of(at_s, cells, now_s) == index
    ]
    return max(known) if known else None


def _text(lane: Lane, value: float | None) -> str:
    return NONE if value is None else lane.text(value)


def _percent(fraction: float) -> str:
    return percent_text(fraction).strip()
