"""One apply, live. Leaving the screen stops nothing: the controller applies, and the app goes on listening."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from agent.wire.agent import ApplyPhase
from agent.wire.history import Cause
from odctl.apply import ApplyPreview
from odctl.fleet import FleetSnapshot
from odctl.tui.apply_run import ApplyRun
from odctl.tui.model.apply_page import apply_page
from odctl.tui.model.apply_progress import ApplyProgress
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesView

AFTER_SWITCH: tuple[ApplyPhase, ...] = ("switch", "commit", "retire", "done")


class ApplyScreen(FrameScreen):
    mode = "plans"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("A,x", "abort", "Abort…", key_display="A", id="apply.abort"),
        Binding("escape", "back", "Back (it goes on)", key_display="esc", id="apply.back"),
    ]

    def __init__(self, run: ApplyRun) -> None:
        super().__init__()
        # Not `run`, which is the name of a widget's own.
        self.apply_run = run

    @property
    def progress(self) -> ApplyProgress:
        return self.apply_run.progress

    def trail(self) -> tuple[str, ...]:
        return ("Plans", self.progress.plan.name, "roll back" if self.apply_run.is_rollback else "apply")

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page = self.query_one("#page", LinesView)
        page.show(apply_page(self.progress, snapshot, width=page.content_width, now_s=self.odctl.clock.now_s()))

    def action_abort(self) -> None:
        """Ask, then have the controller roll back."""
        if self.progress.is_over:
            self.notify("it is over: nothing to abort")
        else:
            self.odctl.ask_to_abort(self.progress.plan, phase=self.progress.last_phase)


def apply_question(preview: ApplyPreview, cause: Cause, reason: str, *, typed: str) -> ConfirmScreen:
    """What would change, before it does. Cancel has the focus."""
    hosts = f"{len(preview.plan.hosts)} hosts" if len(preview.plan.hosts) != 1 else "1 host"
    if cause == "rollback":
        title, verb = f"Roll {preview.plan.name} back {reason}, on {hosts}?", "Roll back"
    else:
        title, verb = f"Apply {preview.plan.name} to {hosts}?", "Apply"
    return ConfirmScreen(title=title, lines=preview.lines, verb=verb, typed=typed)


def abort_question(name: str, phase: ApplyPhase | None, *, typed: str) -> ConfirmScreen:
    """What an abort does at that phase: from the switch on nothing is rolled back any more."""
    lines = ["The controller stops before its next phase and rolls back.", "What ran before runs on."]
    if phase in AFTER_SWITCH:
        lines = ["It switches, or has switched: it most likely goes on.", "h then leads to the plan before."]
    return ConfirmScreen(title=f"Abort the apply of {name}?", lines=lines, verb="Abort it", typed=typed)
