"""A table whose rows are drawn over an axis of time: left and right move along it instead of scrolling sideways."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType

from odctl.tui.widgets.fleet_table import FleetTable


class LaneTable(FleetTable):
    """The screen that it stands on has `action_scrub`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "screen.scrub(-1)", "Into the past", key_display="◀ ▶", id="lanes.past"),
        Binding("right", "screen.scrub(1)", "Towards now", id="lanes.future", show=False),
    ]
