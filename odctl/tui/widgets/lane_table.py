"""A table whose rows are drawn over an axis of time: left and right move along it instead of scrolling sideways."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.strip import Strip

from odctl.tui.model.fault_lanes import STRIP
from odctl.tui.model.table import GAP
from odctl.tui.model.text import Line, Span, line_text
from odctl.tui.model.time_axis import Axis, ticks_text
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.paint import base_style, paint

_MARGIN = 1
"""Cells left of the first column, as the table has them."""


class LaneTable(FleetTable):
    """The screen that it stands on has `action_scrub`. Above the strips stands the time, not a title."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "screen.scrub(-1)", "Past/now", key_display="◀ ▶", id="lanes.past"),
        Binding("right", "screen.scrub(1)", "Towards now", id="lanes.future", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._axis = Axis()
        self._now_s = 0.0

    def show_axis(self, axis: Axis, *, now_s: float) -> None:
        """The stretch of time that the rows are drawn over."""
        if (axis, now_s) != (self._axis, self._now_s):
            self._axis, self._now_s = axis, now_s
            self.refresh(Region(0, 0, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        """The chosen lane is reversed up to its strip alone: full blocks, reversed, would look like nothing."""
        drawn, place = super().render_line(y), self._strip_place()
        if y == 0 or place is None:
            return drawn
        spans, is_cursor = self._line_at(y)
        if not is_cursor:
            return drawn
        plain = paint(spans, drawn.cell_length, base_style(self))
        return Strip.join([drawn.crop(0, place[0]), plain.crop(place[0])])

    def _header(self) -> Line:
        header, place = super()._header(), self._strip_place()
        if place is None:
            return header
        text, (start, width) = line_text(header), place
        ticks = ticks_text(self._axis, width, now_s=self._now_s)
        return (Span(text[:start] + ticks + text[start + width :], "title"),)

    def _strip_place(self) -> tuple[int, int] | None:
        """First cell and width of the strips; None where the table has none."""
        start = _MARGIN
        for column, width in self._columns:
            if column.id == STRIP:
                return start, width
            start += width + GAP
        return None
