"""Faults, open ones first, each with its evidence and its way out."""

from __future__ import annotations

from odctl.fleet import FleetSnapshot
from odctl.tui.model.fault_rows import FaultRows, fault_page, fault_summary
from odctl.tui.model.table import Rows
from odctl.tui.model.text import Line
from odctl.tui.screens.table import TableScreen
from odctl.tui.widgets.fleet_table import FleetTable


class FaultsScreen(TableScreen):
    mode = "faults"
    empty = "no fault was observed"

    def rows(self, snapshot: FleetSnapshot) -> Rows:
        return FaultRows(snapshot)

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:  # noqa: ARG002 - one short line
        return (fault_summary(snapshot),)

    def detail(self, snapshot: FleetSnapshot, key: str, width: int) -> tuple[Line, ...]:
        return fault_page(snapshot, key, width=width)

    def on_fleet_table_chosen(self, event: FleetTable.Chosen) -> None:
        snapshot = self.odctl.snapshot
        if snapshot is None:
            return
        fault = next((found for found in snapshot.faults if found.fault_id == event.key), None)
        if fault is not None and snapshot.host(fault.host) is not None:
            self.odctl.open_host(fault.host)
