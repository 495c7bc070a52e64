"""The fleet as cells, painted line by line: only the lines that changed are sent to the terminal.

The cursor belongs to a host, not to a place: it stays on its host when the map is arranged anew.
"""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from agent.planner.words import runs
from odctl.tui.model.heat_map import HeatMap
from odctl.tui.model.text import BLANK, Line, line
from odctl.tui.widgets.paint import REVERSE, base_style, paint


class HeatMapView(ScrollView, can_focus=True):
    HELP = (
        "A cell is a host, or the worst of a few. The mouse points; a click moves the cursor, another one opens; "
        "ctrl and a click marks."
    )
    DEFAULT_CSS = """
    HeatMapView { height: 1fr; width: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-gutter: stable; }
    HeatMapView:focus { background-tint: $foreground 0%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", "Cell before", id="map.left", show=False),
        Binding("right,l", "step(1)", "Cell after", id="map.right", show=False),
        Binding("up,k", "line(-1)", "Line above", id="map.up", show=False),
        Binding("down,j", "line(1)", "Line below", id="map.down", show=False),
        Binding("pageup", "page(-1)", "Page up", id="map.page_up", show=False),
        Binding("pagedown", "page(1)", "Page down", id="map.page_down", show=False),
        Binding("home", "edge(0)", "First cell", id="map.first", show=False),
        Binding("end,G", "edge(-1)", "Last cell", id="map.last", show=False),
        Binding("n", "trouble(1)", "Next trouble", id="map.next_trouble", show=False),
        Binding("N", "trouble(-1)", "Trouble before", id="map.trouble_before", show=False),
        Binding("enter", "choose", "Open", id="map.open"),
        Binding("space", "mark", "Mark", id="map.mark", show=False),
        Binding("ctrl+backslash", "clear_marks", "Clear marks", key_display="^\\", id="map.unmark", show=False),
    ]

    class Chosen(Message):
        """Enter, or a second click on a cell."""

        def __init__(self, view: HeatMapView, key: str) -> None:
            super().__init__()
            self.view = view
            self.key = key

        @property
        def control(self) -> HeatMapView:
            return self.view

    class Pointed(Message):
        """Another host is to be told about: the cursor moved, its host went away, or the mouse is over a cell."""

        def __init__(self, view: HeatMapView, key: str | None) -> None:
            super().__init__()
            self.view = view
            self.key = key

        @property
        def control(self) -> HeatMapView:
            return self.view

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, HeatMapView.Pointed)

    class Marked(Message):
        """These hosts are to be marked, or their marks taken away; none: all marks are to go."""

        def __init__(self, view: HeatMapView, keys: tuple[str, ...]) -> None:
            super().__init__()
            self.view = view
            self.keys = keys

        @property
        def control(self) -> HeatMapView:
            return self.view

    class SizeChanged(Message):
        """There is more or less room: the map is to be arranged anew."""

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, HeatMapView.SizeChanged)

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._map: HeatMap | None = None
        self._empty: Line = BLANK
        self._below: tuple[Line, ...] = ()
        self._cursor = 0
        self._painted: dict[int, tuple[Line, int | None]] = {}
        self.cursor_key: str | None = None
        self.hovered_key: str | None = None

    @property
    def pointed_key(self) -> str | None:
        """The host that is told about: the one under the mouse, else the one under the cursor."""
        return self.hovered_key if self.hovered_key is not None else self.cursor_key

    @property
    def map_size(self) -> Size:
        """Cells that a map may take without being scrolled."""
        region = self.scrollable_content_region
        return Size(max(1, region.width), max(1, region.height))

    def show(self, heat: HeatMap | None, *, empty: Line = BLANK, below: tuple[Line, ...] = ()) -> None:
        """Show this map, and lines below it that no cursor reaches; None shows `empty`.

        The cursor follows its host.
        """
        is_rearranged = heat is None or self._map is None or heat.arrangement is not self._map.arrangement
        self._map, self._empty, self._below = heat, empty, below
        num_lines = heat.num_lines + len(below) if heat is not None else 1
        if self.virtual_size.height != num_lines:
            self.virtual_size = Size(self.map_size.width, num_lines)
        self._follow_cursor()
        if is_rearranged:
            self._reveal_cursor()
        self._refresh_dirty()

    def has(self, key: str) -> bool:
        """Whether some cell stands for this host."""
        return self._map is not None and self._map.cell_of(key) is not None

    def move_to(self, key: str) -> None:
        """Put the cursor on a host, if it is shown; before the first map, for when it is."""
        if self._map is None:
            self.cursor_key = key
        elif (cell := self._map.cell_of(key)) is not None:
            self._set_cursor(cell, key)

    def _follow_cursor(self) -> None:
        heat = self._map
        if heat is None or not heat.num_cells:
            self._cursor = 0
            return
        if self.hovered_key is not None and heat.cell_of(self.hovered_key) is None:
            self.hovered_key = None
        cell = heat.cell_of(self.cursor_key) if self.cursor_key is not None else None
        if cell is not None:
            self._cursor = cell
            return
        self._cursor = min(self._cursor, heat.num_cells - 1)
        self.cursor_key = heat.host_of(self._cursor)
        self.post_message(self.Pointed(self, self.pointed_key))

    def _set_cursor(self, cell: int, key: str | None = None) -> None:
        """Put the cursor on a cell: on its worst host, unless another of its hosts is named."""
        heat = self._map
        if heat is None or not heat.num_cells:
            return
        self.hovered_key = None
        cell = max(0, min(cell, heat.num_cells - 1))
        if cell != self._cursor or key is not None or self.cursor_key is None:
            self._cursor = cell
            self.cursor_key = key if key is not None else heat.host_of(cell)
        self.post_message(self.Pointed(self, self.cursor_key))
        self._reveal_cursor()
        self._refresh_dirty()

    def _reveal_cursor(self) -> None:
        if self._map is None or not self._map.num_cells:
            return
        line_at, height = self._map.arrangement.places[self._cursor][0], self.map_size.height
        top = self.scroll_offset.y
        if line_at < top:
            self.scroll_to(y=line_at, animate=False)
        elif line_at >= top + height:
            self.scroll_to(y=line_at - height + 1, animate=False)

    def _line_at(self, y: int) -> tuple[Line, int | None]:
        """What stands on a line of the viewport, and at which x the cursor does."""
        heat, at = self._map, y + self.scroll_offset.y
        if heat is None or not heat.num_cells:
            return (self._empty if at == 0 else BLANK), None
        if at >= heat.num_lines:
            index = at - heat.num_lines
            return (self._below[index] if index < len(self._below) else BLANK), None
        cursor_line, x = heat.arrangement.places[self._cursor]
        return heat.line(at), (x if cursor_line == at else None)

    def _refresh_dirty(self) -> None:
        """Ask for a repaint of the visible lines that differ from what was painted."""
        width, height = self.map_size
        dirty = [y for y in range(height) if self._painted.get(y) != self._line_at(y)]
        regions = [Region(0, run.start, width, len(run)) for run in runs(dirty)]
        if regions:
            self.refresh(*regions)

    def render_line(self, y: int) -> Strip:
        entry = self._line_at(y)
        self._painted[y] = entry
        spans, cursor_x = entry
        strip = paint(spans if spans else line(""), self.map_size.width, base_style(self))
        if cursor_x is None or self._map is None:
            return strip
        return _with_cursor(strip, cursor_x, self._map.arrangement.cell_width, REVERSE)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if round(old_value) != round(new_value):
            self._painted.clear()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._painted.clear()

    def on_resize(self) -> None:
        self._painted.clear()
        self.post_message(self.SizeChanged())

    def action_step(self, step: int) -> None:
        self._set_cursor(self._cursor + step)

    def action_line(self, step: int) -> None:
        if self._map is not None and self._map.num_cells:
            self._set_cursor(self._map.arrangement.above_or_below(self._cursor, step))

    def action_page(self, step: int) -> None:
        self.action_line(step * self.map_size.height)

    def action_edge(self, cell: int) -> None:
        if self._map is not None:
            self._set_cursor(cell if cell >= 0 else self._map.num_cells - 1)

    def action_trouble(self, step: int) -> None:
        """Go to the next host that is not simply live, round the end."""
        if self._map is not None and (cell := self._map.next_trouble(self._cursor, step)) is not None:
            self._set_cursor(cell)

    def action_choose(self) -> None:
        if self.cursor_key is not None:
            self.post_message(self.Chosen(self, self.cursor_key))

    def action_mark(self) -> None:
        """Mark all hosts of the cell, or take their marks away, and go on to the next cell."""
        if self._map is not None and self._map.num_cells:
            self.post_message(self.Marked(self, self._map.hosts_of(self._cursor)))
            self.action_step(1)

    def action_clear_marks(self) -> None:
        self.post_message(self.Marked(self, ()))

    def _cell_under(self, event: events.MouseEvent) -> int | None:
        if self._map is None:
            return None
        return self._map.arrangement.cell_at(event.x, event.y + self.scroll_offset.y)

    def on_click(self, event: events.Click) -> None:
        cell = self._cell_under(event)
        if cell is None:
            return
        if event.ctrl:
            self._set_cursor(cell)
            self.action_mark()
        elif cell == self._cursor:
            self.action_choose()
        else:
            self._set_cursor(cell)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Tell of the host under the mouse; the cursor stays where it is."""
        cell = self._cell_under(event)
        key = self._map.host_of(cell) if self._map is not None and cell is not None else None
        if key != self.hovered_key:
            self.hovered_key = key
            self.post_message(self.Pointed(self, self.pointed_key))

    def on_leave(self) -> None:
        if self.hovered_key is not None:
            self.hovered_key = None
            self.post_message(self.Pointed(self, self.cursor_key))


def _with_cursor(strip: Strip, x: int, width: int, style: Style) -> Strip:
    """The strip with one cell restyled, over whatever tone it has."""
    end = min(strip.cell_length, x + width)
    cell = Strip([Segment(part.text, (part.style or Style()) + style) for part in strip.crop(x, end)], end - x)
    return Strip.join([strip.crop(0, x), cell, strip.crop(end)])
