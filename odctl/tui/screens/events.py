"""The journal of one agent, followed live. A controller's tells the story of its deployments."""

from __future__ import annotations

from contextlib import aclosing
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from agent.errors import FleetError
from agent.wire.agent import Event
from odctl.fleet import FleetSnapshot
from odctl.tui.model.event_lines import event_line
from odctl.tui.model.text import Line, Span, line
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesBar, LinesView

PAST_EVENTS = 200
KEPT_EVENTS = 2000


class EventsScreen(FrameScreen):
    mode = "logs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("less_than_sign", "step(-1)", "Host before", key_display="<", id="events.before"),
        Binding("greater_than_sign", "step(1)", "Next host", key_display=">", id="events.next"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.host = ""
        self._followed = ""
        self._lines: list[Line] = []
        self._state: Line = line("")

    def trail(self) -> tuple[str, ...]:
        return ("Logs", self.host) if self.host else ("Logs",)

    def address(self) -> str:
        return f"logs {self.host}".rstrip()

    def compose_body(self) -> ComposeResult:
        yield LinesBar(id="summary")
        page = LinesView(id="page")
        page.follows_end = True
        yield page

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        if not self.host and snapshot is not None:
            self.host = _story_teller(snapshot)
        if self.host and self.host != self._followed:
            self.follow(self.host)
        state = self._state if self.host else line(Span(" no host is live yet", "dim"))
        self.query_one("#summary", LinesBar).show([state])
        self.query_one("#page", LinesView).show(self._lines)

    def choose(self, host: str) -> None:
        """Follow another host's journal."""
        self.host = host
        if self.is_current:
            self.redraw()

    def on_screen_suspend(self) -> None:
        """A journal that nobody sees is not followed."""
        self._followed = ""
        self.workers.cancel_group(self, "events")

    @work(exclusive=True, group="events")
    async def follow(self, host: str) -> None:
        self._followed, self._lines = host, []
        self._state = line(" ", Span(host, "bold"), Span(f"  last {PAST_EVENTS} events, then live (UTC)", "dim"))
        route = f"/v1/events?limit={PAST_EVENTS}&follow=1"
        events = self.odctl.feed.stream(lambda fleet: fleet.stream(host, "GET", route, None, Event))
        try:
            async with aclosing(events) as found:
                async for event in found:
                    self._lines = [*self._lines[-KEPT_EVENTS + 1 :], event_line(event)]
                    self.query_one("#page", LinesView).show(self._lines)
            said = "the agent ended its stream"
        except FleetError as error:
            said = str(error)
        self._state = line(Span(f" ✗ {host}: {said}", "fault"), Span("   < > another host, 6 again", "dim"))
        self.redraw()

    def action_step(self, step: int) -> None:
        snapshot = self.odctl.snapshot
        if snapshot is None or not snapshot.hosts:
            return
        names = [host.name for host in snapshot.hosts]
        index = names.index(self.host) if self.host in names else 0
        self.choose(names[(index + step) % len(names)])


def _story_teller(snapshot: FleetSnapshot) -> str:
    """The controller of the first deployment, or else the first live host."""
    if snapshot.deployments:
        return snapshot.deployments[0].record.controller
    return next((host.name for host in snapshot.hosts if host.state == "live"), "")
