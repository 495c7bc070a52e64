"""One host in full."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from odctl.fleet import FleetSnapshot
from odctl.tui.model.host_page import host_page
from odctl.tui.model.text import Span, line
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesView


class HostScreen(FrameScreen):
    mode = "fleet"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("less_than_sign", "step(-1)", "Host before", key_display="<", id="host.before"),
        Binding("greater_than_sign", "step(1)", "Next host", key_display=">", id="host.next"),
        Binding("escape", "back", "Back", id="host.back"),
    ]

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host

    def trail(self) -> tuple[str, ...]:
        return ("Fleet", self.host)

    def address(self) -> str:
        return f"host {self.host}"

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page = self.query_one("#page", LinesView)
        if snapshot is None:
            page.show([line(Span(" connecting …", "dim"))])
        else:
            page.show(host_page(snapshot, self.host, width=page.content_width))

    def action_step(self, step: int) -> None:
        """The host before or after this one, in the order of the names."""
        if self.odctl.snapshot is None or not self.odctl.snapshot.hosts:
            return
        names = [host.name for host in self.odctl.snapshot.hosts]
        index = names.index(self.host) if self.host in names else 0
        self.host = names[(index + step) % len(names)]
        self.redraw()
