"""The home view: every host, or every device, live."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType

from odctl.fleet import FleetSnapshot
from odctl.tui.model.device_rows import DeviceRows
from odctl.tui.model.frame import fleet_lines
from odctl.tui.model.host_page import host_strip_lines
from odctl.tui.model.host_rows import HostRows
from odctl.tui.model.table import Rows
from odctl.tui.model.text import Line
from odctl.tui.screens.table import TableScreen
from odctl.tui.widgets.fleet_table import FleetTable


class FleetScreen(TableScreen):
    mode = "fleet"
    empty = "the inventory names no hosts: add [hosts.NAME] to it, or run `odctl init HOST…`"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "toggle_devices", "Devices", id="fleet.devices"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.shows_devices = False

    def trail(self) -> tuple[str, ...]:
        return ("Fleet", "Devices") if self.shows_devices else ("Fleet",)

    def address(self) -> str:
        return super().address().replace("fleet", "devices", 1) if self.shows_devices else super().address()

    def rows(self, snapshot: FleetSnapshot) -> Rows:
        return DeviceRows(snapshot) if self.shows_devices else HostRows(snapshot)

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:
        return fleet_lines(snapshot, width=width)

    def empty_text(self, snapshot: FleetSnapshot) -> str:
        return "no device is known yet" if self.shows_devices and snapshot.hosts else self.empty

    def detail(self, snapshot: FleetSnapshot, key: str, width: int) -> tuple[Line, ...]:
        host = snapshot.host(key.partition("/")[0])
        return host_strip_lines(host, width=width, now_s=snapshot.taken_at_s) if host is not None else ()

    def show_devices(self, shows_devices: bool) -> None:
        if shows_devices != self.shows_devices:
            self.shows_devices = shows_devices
            self.sort = None
            self.redraw()

    def action_toggle_devices(self) -> None:
        self.show_devices(not self.shows_devices)

    def on_fleet_table_chosen(self, event: FleetTable.Chosen) -> None:
        self.odctl.open_host(event.key.partition("/")[0])
