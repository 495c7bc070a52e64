"""Widgets that show lines as they are: one of a fixed height, one that scrolls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.messages import Update
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from odctl.tui.model.text import BLANK, Line
from odctl.tui.widgets.paint import base_style, paint


class LinesBar(Widget):
    """As high as its lines."""

    DEFAULT_CSS = "LinesBar { height: auto; width: 1fr; }"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, classes=classes)
        self.lines: tuple[Line, ...] = ()

    def show(self, lines: Sequence[Line]) -> None:
        """Show these; repaints only when they differ."""
        if tuple(lines) == self.lines:
            return
        has_new_height = len(lines) != len(self.lines)
        self.lines = tuple(lines)
        self.refresh(layout=has_new_height)
        if self.is_attached:
            # Told at once and not when this bar is idle: the screen then paints it with the table above, in one go.
            # A bar that comes later waits for the screen's next frame, a sixtieth of a second or two.
            self.screen.post_message(Update(self))
        if has_new_height:
            self.call_after_refresh(self._take_height)

    def _take_height(self) -> None:
        """A layout that was under way when the lines came may have left the bar as high as it was before."""
        if self.is_attached and self.size.width and self.size.height != len(self.lines):
            self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002 - Textual's
        return len(self.lines)

    def render_line(self, y: int) -> Strip:
        spans = self.lines[y] if y < len(self.lines) else BLANK
        return paint(spans, self.size.width, base_style(self))


class LinesView(ScrollView, can_focus=True):
    """Lines of any number, scrolled by keys and wheel. Whoever shows them breaks them at `content_width`."""

    class WidthChanged(Message):
        """The lines that stand here were broken at another width than they have now."""

    HELP = "A page. What does not fit is reached by scrolling."
    DEFAULT_CSS = """
    LinesView { height: 1fr; width: 1fr; overflow-x: hidden; scrollbar-gutter: stable; }
    LinesView:focus { background-tint: $foreground 0%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_up", "Scroll up", id="page.up", show=False),
        Binding("down,j", "scroll_down", "Scroll down", id="page.down", show=False),
        Binding("pageup", "page_up", "Page up", id="page.page_up", show=False),
        Binding("pagedown", "page_down", "Page down", id="page.page_down", show=False),
        Binding("home,g", "scroll_home", "To the top", id="page.top", show=False),
        Binding("end,G", "scroll_end", "To the end", id="page.bottom", show=False),
    ]

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, classes=classes)
        self.lines: tuple[Line, ...] = ()
        self.shown_width = 0
        """`content_width` when the lines were given; 0: none were."""
        self.follows_end = False
        """Whether new lines scroll the view to its end, as long as it stands there."""

    @property
    def content_width(self) -> int:
        """Cells that lines may take, beside the scroll bar."""
        return max(1, self.scrollable_content_region.width)

    def show(self, lines: Sequence[Line]) -> None:
        """Show these; repaints only the lines that differ."""
        old, new = self.lines, tuple(lines)
        was_at_end = self.scroll_offset.y >= self.max_scroll_y
        self.lines, self.shown_width = new, self.content_width
        if len(old) != len(new):
            self.virtual_size = Size(self.content_width, len(new))
            self.refresh()
            if self.follows_end and was_at_end:
                self.scroll_end(animate=False, immediate=False)
            return
        for y, (before, after) in enumerate(zip(old, new, strict=True)):
            if before != after:
                self.refresh_line(y)

    def on_resize(self) -> None:
        self.virtual_size = Size(self.content_width, len(self.lines))
        if self.lines and self.shown_width != self.content_width:
            self.post_message(self.WidthChanged())

    def render_line(self, y: int) -> Strip:
        index = y + self.scroll_offset.y
        spans = self.lines[index] if index < len(self.lines) else BLANK
        return paint(spans, self.content_width, base_style(self))
