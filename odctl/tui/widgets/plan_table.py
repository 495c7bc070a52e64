"""The list of plans: rows are marked in an order, for the first of them is what the others are held against."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from odctl.tui.widgets.fleet_table import FleetTable


class PlanTable(FleetTable):
    """Says which row is to be marked; who keeps the marks shows them as a column."""

    HELP = (
        "A plan each. Marked ones are compared, the one that was marked first being what others are held against."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Mark", id="plan_table.mark"),
        Binding(
            "ctrl+backslash", "clear_marks", "Clear marks", key_display="^\\", id="plan_table.unmark", show=False
        ),
    ]

    class MarkAsked(Message):
        """The mark of this row is to be put, or taken away; None: all marks are to go."""

        def __init__(self, table: PlanTable, key: str | None) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> PlanTable:
            return self.table

    def action_mark(self) -> None:
        if self.cursor_key is not None:
            self.post_message(self.MarkAsked(self, self.cursor_key))

    def action_clear_marks(self) -> None:
        self.post_message(self.MarkAsked(self, None))
