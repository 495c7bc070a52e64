"""A table for ten thousand rows: it paints the visible lines only, and of those only what changed.

The cursor belongs to a key, not to a row number: it stays on its host through sorts, filters and refreshes. So do
marks, which may be several.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.cache import LRUCache
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from agent.planner.words import runs
from odctl.tui.model.index import Sort
from odctl.tui.model.marks import MARKED
from odctl.tui.model.table import GAP, Column, Rows, layout, row_line
from odctl.tui.model.text import Line, Span, fit, merged
from odctl.tui.widgets.paint import base_style, paint

STRIP_CACHE = 1024
"""Painted lines kept; a few screens of them."""
_HEADER_LINES = 1
_MARGIN = 1


class FleetTable(ScrollView, can_focus=True):
    HELP = "A row each. A click moves the cursor, another one opens; ctrl and a click marks."
    DEFAULT_CSS = """
    FleetTable { height: 1fr; width: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-gutter: stable; }
    FleetTable:focus { background-tint: $foreground 0%; }
    FleetTable > .fleet-table--header { text-style: bold underline; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", id="table.up", show=False),
        Binding("down,j", "move(1)", "Down", id="table.down", show=False),
        Binding("pageup", "page(-1)", "Page up", id="table.page_up", show=False),
        Binding("pagedown", "page(1)", "Page down", id="table.page_down", show=False),
        Binding("home,g", "top", "First", id="table.top", show=False),
        Binding("end,G", "bottom", "Last", id="table.bottom", show=False),
        Binding("enter", "choose", "Open", id="table.open"),
        Binding("space", "mark", "Mark", id="table.mark", show=False),
        # Two names for one key: which comes depends on the terminal's protocol.
        Binding(
            "ctrl+@,ctrl+space", "mark_range", "Mark up to here", key_display="^space", id="table.range", show=False
        ),
        Binding("ctrl+backslash", "clear_marks", "Clear marks", key_display="^\\", id="table.unmark", show=False),
    ]

    class Chosen(Message):
        """Enter or a second click on a row."""

        def __init__(self, table: FleetTable, key: str) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> FleetTable:
            return self.table

    class CursorMoved(Message):
        """The cursor is on another key, by hand or because its row went away."""

        def __init__(self, table: FleetTable, key: str | None) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> FleetTable:
            return self.table

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, FleetTable.CursorMoved)

    class MarksChanged(Message):
        """Other keys are marked than before."""

        def __init__(self, table: FleetTable, marks: frozenset[str]) -> None:
            super().__init__()
            self.table = table
            self.marks = marks

        @property
        def control(self) -> FleetTable:
            return self.table

    def __init__(self, *, id: str | None = None, empty: str = "nothing to show") -> None:  # noqa: A002 - Textual's
        super().__init__(id=id)
        self._rows: Rows | None = None
        self._order: Sequence[int] = ()
        self._sort: Sort | None = None
        self._empty = empty
        self._cursor = 0
        self._width = 1
        """Cells of a line. The scroll bar's room is kept free, so it changes with the widget's size alone."""
        self._painted: dict[int, tuple[Line, bool]] = {}
        self._made: dict[int, Line] = {}
        """Lines by position, as long as rows, order and columns stay."""
        self._strips: LRUCache[tuple[Line, bool, int], Strip] = LRUCache(STRIP_CACHE)
        self._columns: tuple[tuple[Column, int], ...] = ()
        self.cursor_key: str | None = None
        self.marks: frozenset[str] = frozenset()
        self.mark_of: Callable[[str], str] = str
        """What a row is marked by: where a host has several rows, its name, so that they are marked together."""
        self._anchor: str | None = None

    @property
    def chosen(self) -> tuple[str, ...]:
        """What an action is for: the marks that still have a row, shown or not, or else the cursor's key.

        In the order of the rows, as `mark_of` names them.
        """
        keys = self._rows.keys if self._rows else ()
        marked = tuple(dict.fromkeys(found for key in keys if (found := self.mark_of(key)) in self.marks))
        return marked or ((self.mark_of(self.cursor_key),) if self.cursor_key is not None else ())

    @property
    def num_hidden_marks(self) -> int:
        """Marks that no shown row has: their rows are filtered out, or gone."""
        return len(self.marks - {self.mark_of(key) for key in self.shown_keys}) if self.marks else 0

    @property
    def visible_columns(self) -> tuple[str, ...]:
        return tuple(column.id for column, _ in self._columns)

    @property
    def shown_keys(self) -> tuple[str, ...]:
        """Keys in the order of the screen."""
        return tuple(self._rows.keys[row] for row in self._order) if self._rows else ()

    def show(self, rows: Rows, order: Sequence[int], *, sort: Sort | None = None, empty: str | None = None) -> None:
        """Show these rows in this order. The cursor follows its key; a lost key leaves it where it stood."""
        is_other_table = self._rows is None or self._rows.columns != rows.columns
        self._rows, self._order = rows, order
        self._made.clear()
        self._empty = empty if empty is not None else self._empty
        has_new_sort, self._sort = sort != self._sort, sort
        self._follow_cursor()
        if self.virtual_size.height != len(order) + _HEADER_LINES:
            self.virtual_size = Size(self._width, len(order) + _HEADER_LINES)
        if is_other_table:
            self._lay_out()
        elif has_new_sort:
            self.refresh(Region(0, 0, self._width, 1))
        if has_new_sort or is_other_table:
            self._reveal_cursor()
        self._refresh_dirty()

    def move_to(self, key: str) -> None:
        """Put the cursor on a key, if it is shown."""
        position = self._position_of(key)
        if position is not None:
            self._set_cursor(position)

    def _position_of(self, key: str | None) -> int | None:
        """Where it is shown, if it is. Found in C: of devices there are ninety thousand."""
        if self._rows is None or key is None:
            return None
        try:
            return self._order.index(self._rows.keys.index(key))
        except ValueError:
            return None

    @property
    def _page(self) -> int:
        return max(1, self.scrollable_content_region.height - _HEADER_LINES)

    def on_mount(self) -> None:
        self._lay_out()

    def on_resize(self) -> None:
        self._lay_out()
        self.virtual_size = Size(self._width, len(self._order) + _HEADER_LINES)
        self._reveal_cursor()

    def _lay_out(self) -> None:
        self._width = max(1, self.scrollable_content_region.width)
        self._columns = layout(self._rows.columns, self._width - _MARGIN) if self._rows else ()
        self._painted.clear()
        self._made.clear()
        self.refresh()

    def _follow_cursor(self) -> None:
        assert self._rows is not None
        keys = self._rows.keys
        if self._cursor < len(self._order) and keys[self._order[self._cursor]] == self.cursor_key:
            return
        position = self._position_of(self.cursor_key)
        if position is not None:
            self._cursor = position
            return
        self._cursor = max(0, min(self._cursor, len(self._order) - 1))
        self.cursor_key = keys[self._order[self._cursor]] if self._order else None
        self.post_message(self.CursorMoved(self, self.cursor_key))

    def _set_cursor(self, position: int) -> None:
        if self._rows is None or not self._order:
            return
        position = max(0, min(position, len(self._order) - 1))
        if position != self._cursor or self.cursor_key is None:
            self._cursor = position
            self.cursor_key = self._rows.keys[self._order[position]]
            self.post_message(self.CursorMoved(self, self.cursor_key))
        self._reveal_cursor()
        self._refresh_dirty()

    def _reveal_cursor(self) -> None:
        top = self.scroll_offset.y
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False)
        elif self._cursor >= top + self._page:
            self.scroll_to(y=self._cursor - self._page + 1, animate=False)

    def _refresh_dirty(self) -> None:
        """Ask for a repaint of the visible lines that differ from what was painted."""
        lines = range(_HEADER_LINES, _HEADER_LINES + self._page)
        dirty = [y for y in lines if self._painted.get(y) != self._line_at(y)]
        regions = [Region(0, run.start, self._width, len(run)) for run in runs(dirty)]
        if regions:
            self.refresh(*regions)

    def _line_at(self, y: int) -> tuple[Line, bool]:
        """What stands on a line of the viewport, and whether the cursor does."""
        position = self.scroll_offset.y + y - _HEADER_LINES
        if self._rows is None or position >= len(self._order):
            text = self._empty if y == _HEADER_LINES and not self._order else ""
            return (Span(f" {text}", "dim"),), False
        row = self._order[position]
        is_marked = bool(self.marks) and self.mark_of(self._rows.keys[row]) in self.marks
        margin = Span(MARKED, "key") if is_marked else Span(" " * _MARGIN)
        return (margin, *self._row_spans(self._rows, position)), position == self._cursor

    def _row_spans(self, rows: Rows, position: int) -> Line:
        """A row's line, made once for comparing and for painting."""
        if position not in self._made:
            spans = row_line(rows, self._order[position], self._columns, self._width - _MARGIN)
            self._made[position] = merged(spans)
        return self._made[position]

    def _header(self) -> Line:
        titles = []
        for column, width in self._columns:
            mark = ""
            if self._sort is not None and self._sort.column == column.id:
                mark = "▼" if self._sort.is_descending else "▲"
            # The mark must survive a narrow column: it takes the title's last letters.
            title = column.title[: max(0, width - len(mark))] + mark
            titles.append(fit(title, width, is_right=column.is_right))
        return (Span(" " * _MARGIN), Span((" " * GAP).join(titles), "title"))

    def render_line(self, y: int) -> Strip:
        if y < _HEADER_LINES:
            return paint(self._header(), self._width, self.get_component_rich_style("fleet-table--header"))
        entry = self._line_at(y)
        self._painted[y] = entry
        spans, is_cursor = entry
        key = (spans, is_cursor, self._width)
        if key not in self._strips:
            self._strips[key] = paint(spans, self._width, base_style(self), is_selected=is_cursor)
        return self._strips[key]

    COMPONENT_CLASSES: ClassVar[set[str]] = {"fleet-table--header"}

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if round(old_value) != round(new_value):
            self._painted.clear()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips.clear()
        self._painted.clear()

    def action_move(self, step: int) -> None:
        self._set_cursor(self._cursor + step)

    def action_page(self, step: int) -> None:
        self._set_cursor(self._cursor + step * self._page)

    def action_top(self) -> None:
        self._set_cursor(0)

    def action_bottom(self) -> None:
        self._set_cursor(len(self._order) - 1)

    def action_mark(self) -> None:
        """Mark the row under the cursor, or take its mark away, and go on to the next one."""
        if self.cursor_key is None:
            return
        key = self.mark_of(self.cursor_key)
        self._anchor = self.cursor_key
        self.toggle_marks((key,))
        self.action_move(1)

    def toggle_marks(self, keys: Collection[str]) -> None:
        """Mark these, or take their marks away if all of them are marked."""
        found = frozenset(keys)
        self._set_marks(self.marks - found if found <= self.marks else self.marks | found)

    def action_mark_range(self) -> None:
        """Mark all rows between the one that was marked last and the cursor."""
        keys = self.shown_keys
        if self.cursor_key is None:
            return
        start = keys.index(self._anchor) if self._anchor in keys else self._cursor
        first, last = sorted((start, self._cursor))
        self._anchor = self.cursor_key
        self._set_marks(self.marks | {self.mark_of(key) for key in keys[first : last + 1]})

    def action_clear_marks(self) -> None:
        self._anchor = None
        self._set_marks(frozenset())

    def _set_marks(self, marks: frozenset[str]) -> None:
        if marks == self.marks:
            return
        self.marks = marks
        self.post_message(self.MarksChanged(self, marks))
        self._refresh_dirty()

    def action_choose(self) -> None:
        if self.cursor_key is not None:
            self.post_message(self.Chosen(self, self.cursor_key))

    def on_click(self, event: events.Click) -> None:
        position = self.scroll_offset.y + event.y - _HEADER_LINES
        if event.y < _HEADER_LINES or position >= len(self._order):
            return
        if event.ctrl:
            self._set_cursor(position)
            self.action_mark()
            return
        if position == self._cursor:
            self.action_choose()
        self._set_cursor(position)
