"""The bar of time under a screen: a click goes to the moment under it."""

from __future__ import annotations

from textual import events
from textual.message import Message

from odctl.tui.model.scrub import ScrubLine
from odctl.tui.model.text import Line
from odctl.tui.widgets.lines import LinesBar


class ScrubBar(LinesBar):
    """No lines high while the session is live."""

    class Sought(Message):
        """A click on the bar: cell `cell` of `width`."""

        def __init__(self, cell: int, width: int) -> None:
            super().__init__()
            self.cell = cell
            self.width = width

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._bar: ScrubLine | None = None

    def show_time(self, lines: tuple[ScrubLine, Line] | None) -> None:
        self._bar = lines[0] if lines is not None else None
        self.show([lines[0].line, lines[1]] if lines is not None else [])

    def on_click(self, event: events.Click) -> None:
        bar = self._bar
        if bar is None or event.y != 0 or not bar.bar_start <= event.x < bar.bar_start + bar.bar_width:
            return
        event.stop()
        self.post_message(self.Sought(event.x - bar.bar_start, bar.bar_width))
