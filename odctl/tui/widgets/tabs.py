"""The line of tabs: a click on one goes there, as its number does."""

from __future__ import annotations

from textual import events
from textual.message import Message

from odctl.tui.model.frame import tab_at, tab_place, tabs_line
from odctl.tui.widgets.lines import LinesBar


class TabsBar(LinesBar):
    class Chosen(Message):
        """A tab was clicked."""

        def __init__(self, mode: str) -> None:
            super().__init__()
            self.mode = mode

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._current = ""
        self._line_width = 0

    def show_tabs(self, current: str, *, width: int) -> None:
        self._current, self._line_width = current, width
        self.show([tabs_line(current, width=width)])

    def place_of(self, mode: str) -> int:
        """The cell of this line where a mode's number stands."""
        return tab_place(self._current, mode, width=self._line_width)

    def on_click(self, event: events.Click) -> None:
        mode = tab_at(self._current, event.x, width=self._line_width)
        if mode:
            self.post_message(self.Chosen(mode))
