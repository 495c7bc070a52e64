"""One apply, live. Leaving the screen does not stop it: the controller applies."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from agent.errors import FleetError
from agent.wire.agent import ApplyEvent
from odctl.apply import ApplyPreview
from odctl.fleet import FleetSnapshot
from odctl.tui.applying import Applier
from odctl.tui.model.apply_progress import ApplyProgress, apply_page, fail, take_event
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesView


class ApplyScreen(FrameScreen):
    mode = "plans"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "abort", "Abort…", id="apply.abort"),
        Binding("escape", "back", "Back (it goes on)", id="apply.back"),
    ]

    class Progressed(Message):
        """One event, from the fleet's thread."""

        def __init__(self, event: ApplyEvent) -> None:
            super().__init__()
            self.event = event

    def __init__(self, preview: ApplyPreview, applier: Applier) -> None:
        super().__init__()
        self.progress = ApplyProgress(plan=preview.plan)
        self._preview = preview
        self._applier = applier

    def trail(self) -> tuple[str, ...]:
        return ("Plans", self.progress.plan.name, "apply")

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")

    def on_mount(self) -> None:
        self.perform()

    @work(group="apply")
    async def perform(self) -> None:
        """Apply and follow to the end. What the controller raised stands on the screen as the outcome."""

        async def on_event(event: ApplyEvent) -> None:
            self.post_message(self.Progressed(event))

        error: FleetError | None = None
        try:
            last = await self._applier.apply(self.odctl.feed, self._preview, on_event)
            self.progress = take_event(self.progress, last)
        except FleetError as caught:
            error = caught
        self.call_later(self._end, error)

    def on_apply_screen_progressed(self, message: Progressed) -> None:
        self.progress = take_event(self.progress, message.event)
        if self.is_current:
            self.redraw()

    def _end(self, error: FleetError | None) -> None:
        if error is not None:
            self.progress = fail(self.progress, error.detail)
        if self.is_current:
            self.redraw()
        elif error is not None:
            self.notify(error.message, title=f"apply of {self.progress.plan.name} failed", severity="error")
        else:
            self.notify(f"{self.progress.plan.name} serves, generation {self.progress.generation}", title="applied")

    def draw(self, snapshot: FleetSnapshot | None) -> None:  # noqa: ARG002 - events carry all there is
        page = self.query_one("#page", LinesView)
        page.show(apply_page(self.progress, width=page.content_width, now_s=self.odctl.clock.now_s()))

    def action_abort(self) -> None:
        """Ask, then have the controller roll back."""
        if self.progress.is_over:
            self.notify("it is over: nothing to abort")
            return
        if not self.odctl.may_change():
            return
        name = self.progress.plan.name
        lines = ["The controller stops before its next phase and rolls back.", "What ran before runs on."]
        self.app.push_screen(
            ConfirmScreen(title=f"Abort the apply of {name}?", lines=lines, verb="Abort it"), self._abort
        )

    @work(group="abort")
    async def _abort_now(self) -> None:
        try:
            self.notify(await self._applier.abort(self.odctl.feed, self._preview))
        except FleetError as error:
            self.notify(str(error), severity="error")

    def _abort(self, is_sure: bool | None) -> None:
        if is_sure:
            self._abort_now()
