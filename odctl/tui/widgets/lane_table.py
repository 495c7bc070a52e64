"""A table whose rows are drawn over an axis of time: left and right move along it instead of scrolling sideways."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.geometry import Region

from odctl.tui.model.fault_lanes import STRIP
from odctl.tui.model.table import GAP
from odctl.tui.model.text import Line, Span, line_text, line_width
from odctl.tui.model.time_axis import Axis, ticks_text
from odctl.tui.widgets.fleet_table import FleetTable


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

    def _header(self) -> Line:
        header = super()._header()
        text = line_text(header)
        offset = line_width(header[:1])
        for column, width in self._columns:
            if column.id == STRIP:
                ticks = ticks_text(self._axis, width, now_s=self._now_s)
                return (Span(text[:offset] + ticks + text[offset + width :], "title"),)
            offset += width + GAP
        return header
