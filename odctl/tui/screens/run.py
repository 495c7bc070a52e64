"""One run that learning is based on, opened from a choice: what was promised, measured and remembered of it."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from agent.errors import FleetError
from agent.planner.learning.state import Selection
from odctl.fleet import Fleet, FleetSnapshot
from odctl.history import Entry, FleetHistory, read_history
from odctl.learning import LearningReport
from odctl.tui.model.plans import PlanChoice
from odctl.tui.model.run_page import entry_of, run_page
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesView

FORGOTTEN = "no controller's journal has this generation any more: its plan and its cause are lost"


class RunScreen(FrameScreen):
    mode = "learning"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", id="run.back"),
        Binding("p", "plan", "Its plan", id="run.plan"),
        Binding("d", "deployment", "Deployment", id="run.deployment"),
    ]

    def __init__(self, report: LearningReport, chosen: Selection) -> None:
        super().__init__()
        self._report = report
        self.chosen = chosen
        self.entry: Entry | None = None
        self._why = "asking the controllers for the generation …"

    def trail(self) -> tuple[str, ...]:
        return ("Learning", f"{self.chosen.deployment} g{self.chosen.generation}")

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")

    def on_mount(self) -> None:
        self._ask()

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page = self.query_one("#page", LinesView)
        if snapshot is not None:
            page.show(
                run_page(
                    self._report,
                    self.chosen,
                    self.entry,
                    why_no_entry=self._why,
                    width=page.content_width,
                    now_s=snapshot.taken_at_s,
                )
            )

    @work(exclusive=True, group="run")
    async def _ask(self) -> None:
        async def ask(fleet: Fleet) -> FleetHistory:
            return await read_history(fleet)

        try:
            history = await self.odctl.feed.call(ask)
        except FleetError as error:
            self._why = f"the controllers cannot be asked: {error}"
        else:
            self.entry = entry_of(history.entries, self.chosen)
            silent = ", ".join(sorted(history.unreachable))
            self._why = f"{FORGOTTEN}, or {silent} would know" if silent else FORGOTTEN
        self.redraw()

    def action_plan(self) -> None:
        """Its plan as a preview, from where it can be compared, edited and applied."""
        if self.entry is None or self.entry.plan is None:
            self.notify("its plan is not known here: see below why", severity="warning")
            return
        served = self.entry.served
        origin = f"{served.deployment} generation {served.generation}"
        self.odctl.open_preview(PlanChoice(origin=origin, plan=self.entry.plan, plan_hash=served.plan_hash))

    def action_deployment(self) -> None:
        snapshot, name = self.odctl.snapshot, self.chosen.deployment
        if snapshot is None or snapshot.deployment(name) is None:
            self.notify(f"{name} does not run now: `odctl history {name}` tells its past", severity="warning")
        else:
            self.odctl.open_deployment(name)
