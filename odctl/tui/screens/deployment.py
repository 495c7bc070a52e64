"""One deployment in full, with its requests in flight, which can be cancelled here.

The page is drawn from snapshots. Requests are asked of the controller while the screen is seen, and only then.
"""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from agent.errors import FleetError
from agent.wire.agent import DeploymentStatus
from agent.wire.gateway import RequestReport, RequestView
from odctl.fleet import FleetSnapshot
from odctl.tui.model.deployment_live import live_page
from odctl.tui.model.index import row_order
from odctl.tui.model.request_rows import RequestRows, request_words, requests_title
from odctl.tui.model.text import Span, line
from odctl.tui.screens.bench_dialog import ask_to_bench
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.screens.raw_text import RawTextScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.lines import LinesBar, LinesView

ASK_INTERVAL_S = 2.0
MIN_TABLE_LINES = 4
"""Header and three requests, however short the terminal is."""


class DeploymentScreen(FrameScreen):
    mode = "deployments"
    DEFAULT_CSS = """
    DeploymentScreen #page { height: 1fr; }
    DeploymentScreen #requests { height: 4; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "cancel_request", "Cancel request…", id="deployment.cancel"),
        Binding("B", "bench", "Benchmark…", id="deployment.bench"),
        Binding("c", "chat", "Chat", id="deployment.chat"),
        Binding("p", "plan", "Its plan", id="deployment.plan"),
        Binding(
            "less_than_sign", "step(-1)", "Deployment before", key_display="<", id="deployment.before", show=False
        ),
        Binding(
            "greater_than_sign", "step(1)", "Next deployment", key_display=">", id="deployment.next", show=False
        ),
        Binding("escape", "back", "Back", id="deployment.back", show=False),
    ]

    def __init__(self, deployment: str) -> None:
        super().__init__()
        self.deployment = deployment
        self.report: RequestReport | None = None
        self.trouble: FleetError | None = None
        """Why the requests are not known, or are of a moment ago."""
        self._is_asking = False

    def trail(self) -> tuple[str, ...]:
        return ("Deployments", self.deployment)

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")
        yield LinesBar(id="requests-title")
        yield FleetTable(id="requests")

    def on_mount(self) -> None:
        self.set_interval(ASK_INTERVAL_S, self.ask)
        self.call_after_refresh(self.ask)

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page = self.query_one("#page", LinesView)
        if snapshot is None:
            page.show([line(Span(" connecting …", "dim"))])
            return
        page.show(live_page(snapshot, self.deployment, width=page.content_width))
        self._draw_requests()

    def _draw_requests(self) -> None:
        table = self.query_one("#requests", FleetTable)
        requests = self.report.requests if self.report is not None else ()
        title = requests_title(self.report, self.trouble, is_reachable=self._status() is not None)
        self.query_one("#requests-title", LinesBar).show(title)
        rows = RequestRows(requests)
        room = max(MIN_TABLE_LINES, self.size.height // 3)
        table.styles.height = max(2, min(len(requests) + 1, room))
        known = "nothing is in flight" if self.report is not None and self.trouble is None else "not known"
        table.show(rows, row_order(rows), empty=known)

    # --- requests -------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask for the requests in flight, unless an answer is awaited or nobody would see it."""
        status = self._status()
        if status is None or not self.is_current or self._is_asking:
            return
        self._is_asking = True
        self._read(status)

    @work(group="requests")
    async def _read(self, status: DeploymentStatus) -> None:
        try:
            report = await self.odctl.operator.requests(self.odctl.feed, status)
        except FleetError as error:
            self.trouble = error
        else:
            if status.name == self.deployment:
                self.report, self.trouble = report, None
        finally:
            self._is_asking = False
        if self.has_parts and self.is_current:
            self._draw_requests()

    def on_fleet_table_chosen(self) -> None:
        """The request in words; its whole id can be copied."""
        view = self._chosen()
        if view is not None:
            self.app.push_screen(
                RawTextScreen(title="A request in flight", text="\n".join(request_words(view)[:3]))
            )

    def action_cancel_request(self) -> None:
        """Ask, and then have the request under the cursor cancelled."""
        view, status = self._chosen(), self._status()
        if view is None or status is None:
            self.notify("no request is in flight here that could be cancelled")
            return
        if self.odctl.is_read_only:
            self.notify("this session is read-only: ^x (or :unlock) allows changes for ten minutes", title="RO")
            return
        request_id = view.request_id

        def end(is_sure: bool | None) -> None:
            if is_sure:
                self._cancel(status, request_id)

        self.app.push_screen(
            ConfirmScreen(
                title=f"Cancel this request of {self.deployment}?", lines=request_words(view), verb="Cancel request"
            ),
            end,
        )

    @work(group="cancel")
    async def _cancel(self, status: DeploymentStatus, request_id: str) -> None:
        try:
            ended = await self.odctl.operator.cancel(self.odctl.feed, status, request_id)
        except FleetError as error:
            self.notify(str(error), title="not cancelled", severity="error", timeout=10)
        else:
            self.notify(f"{ended.request_id} of {ended.client}", title="cancelled")
        self.ask()

    def _chosen(self) -> RequestView | None:
        key = self.query_one("#requests", FleetTable).cursor_key
        requests = self.report.requests if self.report is not None else ()
        return next((view for view in requests if view.request_id == key), None)

    # --- elsewhere ------------------------------------------------------------------------------------------

    def action_bench(self) -> None:
        ask_to_bench(self.odctl, self.deployment)

    def action_chat(self) -> None:
        self.odctl.open_chat(self.deployment)

    def action_plan(self) -> None:
        self.odctl.open_plan_of(self.deployment)

    def action_step(self, step: int) -> None:
        """The deployment before or after this one, by name."""
        snapshot = self.odctl.snapshot
        names = [view.name for view in snapshot.deployments] if snapshot else []
        if names:
            index = names.index(self.deployment) if self.deployment in names else 0
            self.show_deployment(names[(index + step) % len(names)])

    def show_deployment(self, name: str) -> None:
        if name != self.deployment:
            self.deployment, self.report, self.trouble = name, None, None
        self.redraw()
        self.ask()

    def _status(self) -> DeploymentStatus | None:
        """The controller's word; None without one, or when it does not answer now."""
        snapshot = self.odctl.snapshot
        view = snapshot.deployment(self.deployment) if snapshot else None
        return view.status if view is not None and view.error is None else None
