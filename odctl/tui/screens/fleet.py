"""The home view: every host live, as a map of cells or as a table; or every device as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from odctl.fleet import FleetSnapshot
from odctl.tui.model.attention import attention_lines
from odctl.tui.model.device_rows import DeviceRows
from odctl.tui.model.fleet_columns import FleetColumns, Group, fleet_columns
from odctl.tui.model.fleet_summary import fleet_lines, tokens_line
from odctl.tui.model.grouped_rows import GroupedRows, is_group_key
from odctl.tui.model.heat_layout import Arrangement, arrange
from odctl.tui.model.heat_map import HeatMap, cell_words, map_legend, map_title
from odctl.tui.model.heat_metrics import METRICS, next_metric
from odctl.tui.model.host_plots import host_strip_lines
from odctl.tui.model.host_rows import HostRows, host_note
from odctl.tui.model.marks import HOST_MARKS
from odctl.tui.model.table import Rows
from odctl.tui.model.text import BLANK, Line, Span, line
from odctl.tui.screens.table import TableScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.heat_map import HeatMapView
from odctl.tui.widgets.lines import LinesBar

MAP_ABOVE_HOSTS = 40
"""Up to so many hosts a table shows them all, or nearly; above, the map does."""


class FleetScreen(TableScreen):
    mode = "fleet"
    DEFAULT_CSS = "FleetScreen.-short #detail { max-height: 3; }"
    """A short terminal keeps its lines for the table."""
    empty = "the inventory names no hosts: add [hosts.NAME] to it, or run `odctl init HOST…`"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v,t", "toggle_map", "Map/table", key_display="v", id="fleet.map"),
        Binding("d", "toggle_devices", "Devices", id="fleet.devices"),
        Binding("m", "metric(1)", "Metric", id="fleet.metric"),
        Binding("M", "metric(-1)", "Metric before", id="fleet.metric_before", show=False),
        # Priority: the table's own `g` is its first row, which `home` reaches too.
        Binding("g", "group", "Group", id="fleet.group", priority=True),
        Binding("p", "plan", "Plan over the marked hosts, or all", id="fleet.plan", show=False),
        Binding("z", "zoom", "One host a cell", id="fleet.zoom", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.shows_devices = False
        self.shows_map: bool | None = None
        """None until hosts are known: their number decides."""
        self.metric = METRICS[0]
        self.label = ""
        """The label by which hosts are grouped; empty: they are not."""
        self.is_one_per_cell = False
        self._collapsed: frozenset[str] = frozenset()
        self._arranged: tuple[object, ...] = ()
        self._arrangement: Arrangement | None = None
        self._heat_map: HeatMap | None = None

    def compose_body(self) -> ComposeResult:
        yield LinesBar(id="summary")
        yield LinesBar(id="map-title")
        yield HeatMapView(id="map")
        yield FleetTable(id="table")
        yield LinesBar(id="legend")
        yield LinesBar(id="detail")

    @property
    def heat(self) -> HeatMapView:
        return self.query_one("#map", HeatMapView)

    @property
    def is_map(self) -> bool:
        """Whether the map is what is seen."""
        return bool(self.shows_map) and not self.shows_devices

    @property
    def pointed_key(self) -> str | None:
        """The host, device or group that the cursor is on, or the host under the mouse."""
        return self.heat.pointed_key if self.is_map else self.table.cursor_key

    def trail(self) -> tuple[str, ...]:
        if self.shows_devices:
            return ("Fleet", "Devices")
        return ("Fleet", f"by {self.label}") if self.label else ("Fleet",)

    def address(self) -> str:
        return super().address().replace("fleet", "devices", 1) if self.shows_devices else super().address()

    def rows(self, snapshot: FleetSnapshot) -> Rows:
        return DeviceRows(snapshot) if self.shows_devices else HostRows(snapshot)

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:
        tokens = tokens_line(snapshot, width=width)
        return (*fleet_lines(snapshot, width=width), *([tokens] if tokens is not None else []))

    def empty_text(self, snapshot: FleetSnapshot) -> str:
        return "no device is known yet" if self.shows_devices and snapshot.hosts else self.empty

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        if snapshot is not None and self.shows_map is None and snapshot.hosts:
            self.shows_map = len(snapshot.hosts) > MAP_ABOVE_HOSTS
        self._show_body()
        super().draw(snapshot)

    def _show_body(self) -> None:
        """Either the map with its lines, or the table; whoever had the focus hands it on."""
        if self.heat.display == self.is_map and self.table.display != self.is_map:
            return
        had_focus = self.focused is self.table or self.focused is self.heat or self.focused is None
        self.heat.display = self.is_map
        self.table.display = not self.is_map
        for name in ("#map-title", "#legend"):
            self.query_one(name, LinesBar).display = self.is_map
        if had_focus:
            self.focus_body()

    def focus_body(self) -> None:
        self.set_focus(self.heat if self.is_map else self.table)

    def show_rows(self, rows: Rows, order: Sequence[int], *, empty: str) -> None:
        snapshot = self.odctl.snapshot
        assert snapshot is not None, "rows are made of one"
        if self.is_map:
            self._show_map(fleet_columns(snapshot), order, empty)
            return
        if self.label and not self.shows_devices:
            rows = grouped = GroupedRows(
                rows, order, fleet_columns(snapshot), label=self.label, collapsed=self._collapsed
            )
            order = grouped.order
        super().show_rows(rows, order, empty=empty)

    def _show_map(self, fleet: FleetColumns, order: Sequence[int], empty: str) -> None:
        if not self.heat.size.width:
            return  # just shown, and not laid out yet: its size comes, and draws
        if not order:
            for name in ("#map-title", "#legend"):
                self.query_one(name, LinesBar).show([])
            self.heat.show(None, empty=line(Span(f" {empty}", "dim")))
            return
        heat = self._heat_map_of(fleet, self._arrangement_of(fleet, order))
        self.query_one("#map-title", LinesBar).show([map_title(heat, label=self.label, width=self.size.width)])
        self.query_one("#legend", LinesBar).show([map_legend(heat)])
        room = self.heat.map_size.height - heat.num_lines - 1
        below = attention_lines(heat, room=room, width=self.heat.map_size.width)
        self.heat.show(heat, below=(BLANK, *below) if below else ())

    def _arrangement_of(self, fleet: FleetColumns, order: Sequence[int]) -> Arrangement:
        """The arrangement of before, as long as it is of these hosts, in this order, for this size."""
        size = self.heat.map_size
        is_whole = len(order) == len(fleet.hosts)
        shown = None if is_whole else tuple(sorted(order))
        asked = (fleet.still, shown, size, self.label, self.is_one_per_cell)
        if self._arrangement is None or asked[1:] != self._arranged[1:] or asked[0] is not self._arranged[0]:
            groups = fleet.still.groups(self.label) if self.label else (Group("", tuple(range(len(fleet.hosts)))),)
            if shown is not None:
                kept = frozenset(shown)
                groups = tuple(Group(name, tuple(row for row in rows if row in kept)) for name, rows in groups)
            self._arranged = asked
            self._arrangement = arrange(
                groups,
                fleet.names,
                width=size.width,
                height=size.height,
                has_names=bool(self.label),
                is_one_per_cell=self.is_one_per_cell,
            )
        return self._arrangement

    def _heat_map_of(self, fleet: FleetColumns, arrangement: Arrangement) -> HeatMap:
        """The map of before with the lines that it has drawn, as long as it shows the same."""
        heat = HeatMap(fleet, arrangement, self.metric, marked=self.table.marks)
        if self._heat_map is None or not heat.is_like(self._heat_map):
            self._heat_map = heat
        return self._heat_map

    def draw_detail(self) -> None:
        snapshot, key = self.odctl.snapshot, self.pointed_key
        lines = self.detail(snapshot, key, self.size.width) if snapshot is not None and key is not None else ()
        self.query_one("#detail", LinesBar).show(lines)

    def detail(self, snapshot: FleetSnapshot, key: str, width: int) -> tuple[Line, ...]:
        if is_group_key(key):
            return (line(Span(" enter folds this group, or unfolds it", "dim")),)
        fleet = fleet_columns(snapshot)
        row = fleet.still.row_of.get(key.partition("/")[0])
        if row is None:
            return ()
        host = fleet.hosts[row]
        lines = host_strip_lines(host, width=width, now_s=snapshot.taken_at_s)
        if not self.is_map or host.sample is None:
            return lines
        mark, note = HOST_MARKS[host.state], host_note(fleet, host)
        words: Line = ()
        if self._arrangement is not None:
            words = cell_words(self._heat_map_of(fleet, self._arrangement), key, width=width // 2)
        told = line(" ▸ ", Span(host.name, "bold"), " ", mark.span, "  ", *words, "  ", note)
        return (told, *lines[1:])

    def on_heat_map_view_size_changed(self) -> None:
        self.redraw()

    def on_heat_map_view_pointed(self) -> None:
        self.draw_detail()

    def on_mount(self) -> None:
        # A device's row marks its host.
        self.table.mark_of = lambda key: key if is_group_key(key) else key.partition("/")[0]

    def on_fleet_table_marks_changed(self) -> None:
        self.odctl.marked_hosts = frozenset(key for key in self.table.marks if not is_group_key(key))
        super().on_fleet_table_marks_changed()

    def action_plan(self) -> None:
        self.odctl.new_plan()

    @property
    def num_hidden_marks(self) -> int:
        if not self.is_map:
            return super().num_hidden_marks
        return sum(not self.heat.has(name) for name in self.table.marks)

    def on_heat_map_view_marked(self, event: HeatMapView.Marked) -> None:
        """The table has the marks of both."""
        if event.keys:
            self.table.toggle_marks(event.keys)
        else:
            self.table.action_clear_marks()

    def on_heat_map_view_chosen(self, event: HeatMapView.Chosen) -> None:
        self.odctl.open_host(event.key)

    def on_fleet_table_chosen(self, event: FleetTable.Chosen) -> None:
        if is_group_key(event.key):
            self._collapsed ^= {event.key}
            self.redraw()
        else:
            self.odctl.open_host(event.key.partition("/")[0])

    def show_devices(self, shows_devices: bool) -> None:
        if shows_devices != self.shows_devices:
            self.shows_devices = shows_devices
            self.sort = None
            self.redraw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "group" and isinstance(self.focused, Input):
            return False
        return super().check_action(action, parameters)

    def action_toggle_devices(self) -> None:
        self.show_devices(not self.shows_devices)

    def action_toggle_map(self) -> None:
        """The other view of the hosts, with the cursor on the same one."""
        key = self.pointed_key
        self.shows_map, self.shows_devices = not self.is_map, False
        self.redraw()
        if key is not None:
            (self.heat if self.is_map else self.table).move_to(key.partition("/")[0])

    def action_metric(self, step: int) -> None:
        """Another figure on the map; what is shown now says so above it."""
        if not self.is_map:
            self.notify("figures are chosen on the map: v shows it; the table has them all as columns")
            return
        self.metric = next_metric(self.metric, step)
        self.redraw()

    def action_group(self) -> None:
        """By the next label that hosts have, then by none."""
        if self.odctl.snapshot is None:
            return
        labels = fleet_columns(self.odctl.snapshot).still.label_keys
        if not labels:
            self.notify('no host has a label: `labels = { rack = "r1" }` under [hosts.NAME] groups them')
            return
        if self.shows_devices:
            self.notify("devices are not grouped: d leads back to the hosts")
            return
        choices = ("", *labels)
        at = choices.index(self.label) if self.label in choices else 0
        self.label = choices[(at + 1) % len(choices)]
        self._collapsed = frozenset()
        self.redraw()

    def action_zoom(self) -> None:
        """Every host a cell of its own, which may need scrolling; or all of them at once again."""
        self.is_one_per_cell = not self.is_one_per_cell
        self.redraw()
