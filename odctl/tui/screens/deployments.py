"""What is served, how well, by which ranks; and what is wrong with it."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from odctl.fleet import FleetSnapshot
from odctl.tui.model.deployment_rows import DeploymentRows, deployment_page
from odctl.tui.model.frame import fleet_lines
from odctl.tui.model.table import Rows
from odctl.tui.model.text import Line
from odctl.tui.screens.bench_dialog import ask_to_bench
from odctl.tui.screens.table import TableScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.lines import LinesBar, LinesView


class DeploymentsScreen(TableScreen):
    mode = "deployments"
    DEFAULT_CSS = """
    DeploymentsScreen #table { height: auto; max-height: 40%; min-height: 3; margin-bottom: 1; }
    DeploymentsScreen #detail { height: 1fr; }
    """
    empty = "nothing is deployed: `odctl plan MODEL -o plan.toml`, then :plan plan.toml"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "chat", "Chat", id="deployments.chat"),
        Binding("B", "bench", "Benchmark…", id="deployments.bench"),
        Binding("p", "plan", "Its plan", id="deployments.plan"),
    ]

    def trail(self) -> tuple[str, ...]:
        return ("Deployments",)

    def compose_body(self) -> ComposeResult:
        yield LinesBar(id="summary")
        yield FleetTable(id="table")
        yield LinesView(id="detail")

    def rows(self, snapshot: FleetSnapshot) -> Rows:
        return DeploymentRows(snapshot)

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:
        return fleet_lines(snapshot, width=width)

    def draw_detail(self) -> None:
        snapshot, key = self.odctl.snapshot, self.table.cursor_key
        page = self.query_one("#detail", LinesView)
        lines = deployment_page(snapshot, key, width=page.content_width) if snapshot and key else ()
        page.show(lines)

    def action_chat(self) -> None:
        if self.table.cursor_key is not None:
            self.odctl.open_chat(self.table.cursor_key)

    def action_plan(self) -> None:
        if self.table.cursor_key is not None:
            self.odctl.open_plan_of(self.table.cursor_key)

    def action_bench(self) -> None:
        if self.table.cursor_key is not None:
            ask_to_bench(self.odctl, self.table.cursor_key)

    def on_fleet_table_chosen(self, event: FleetTable.Chosen) -> None:
        self.odctl.open_deployment(event.key)
