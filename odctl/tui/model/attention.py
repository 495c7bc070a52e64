"""The hosts that need somebody's eyes, the worst first: what stands under the map where there is room."""

from __future__ import annotations

from odctl.tui.model.fleet_columns import CONDITION_MARKS, HEALING
from odctl.tui.model.heat_map import HeatMap
from odctl.tui.model.host_rows import host_note
from odctl.tui.model.marks import HOST_MARKS
from odctl.tui.model.text import Line, Span, fit, line
from odctl.tui.model.units import age_text, plural

NAME_MAX = 24
STATE_CELLS = 15
MIN_ROOM = 3
"""A title, a host, and how many more: with less, nothing is said."""


def attention_lines(heat: HeatMap, *, room: int, width: int) -> tuple[Line, ...]:
    """At most `room` lines: a title, a line a host with its state and its reason, and how many more there are.

    Of the hosts on the map only: a filter takes them from here, too.
    """
    if room < MIN_ROOM:
        return ()
    conditions, shown = heat.fleet.conditions, heat.arrangement.cell_of_row
    rows = [row for row, condition in enumerate(conditions) if condition >= HEALING and row in shown]
    if not rows:
        return ()
    rows.sort(key=lambda row: -conditions[row])
    fits = rows if len(rows) < room else rows[: room - 2]
    name_width = min(NAME_MAX, max((len(heat.fleet.names[row]) for row in fits), default=0))
    lines = [
        line(Span(f" needs attention: {plural(len(rows), 'host')}", "title"), Span("  n goes to the next", "dim"))
    ]
    lines += [_line(heat, row, name_width, width) for row in fits]
    if len(fits) < len(rows):
        lines.append(line(Span(f"   and {len(rows) - len(fits):,} more", "dim")))
    return tuple(lines)


def _line(heat: HeatMap, row: int, name_width: int, width: int) -> Line:
    """` ✗ sim-00462  lost 2m   connection lost: reset by peer`."""
    host, mark = heat.fleet.hosts[row], CONDITION_MARKS[heat.fleet.conditions[row]]
    age = f" {age_text(host.sample_age_s)}" if host.state in {"stale", "lost"} else ""
    note = host_note(heat.fleet, host)
    state = fit(f"{HOST_MARKS[host.state].word}{age}", STATE_CELLS)
    said = fit(note.text.removeprefix(f"{mark.glyph} "), max(1, width - name_width - STATE_CELLS - 6)).rstrip()
    return line(
        Span(f" {mark.glyph} ", mark.tone),
        Span(f"{fit(host.name, name_width)}  ", "bold"),
        state,
        Span(said, note.tone),
    )
