"""The generations of a deployment, predicted against measured; any of them can be compared, or gone back to."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from agent.errors import FleetError
from agent.planner.words import list_words
from odctl.fleet import FleetSnapshot
from odctl.history import Entry, FleetHistory, read_history
from odctl.tui.model.history_page import HistoryRows, entry_choice, entry_key, entry_page
from odctl.tui.model.plan_list import toggled
from odctl.tui.model.table import Rows
from odctl.tui.model.text import Line, Span, line
from odctl.tui.model.units import plural
from odctl.tui.screens.compare import CompareScreen
from odctl.tui.screens.table import TableScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.lines import LinesBar, LinesView
from odctl.tui.widgets.plan_table import PlanTable


class PlanHistoryScreen(TableScreen):
    mode = "plans"
    DEFAULT_CSS = """
    PlanHistoryScreen #table { height: auto; max-height: 40%; min-height: 3; margin-bottom: 1; }
    PlanHistoryScreen.-short #table { margin-bottom: 0; }
    PlanHistoryScreen #detail { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "roll_back", "Roll back…", id="history.roll_back"),
        Binding("c", "compare", "Compare", id="history.compare"),
        Binding("r", "reread", "Ask again", id="history.reread", show=False),
    ]

    def __init__(self, deployment: str) -> None:
        super().__init__()
        self.deployment = deployment
        self.history: FleetHistory | None = None
        self.marked: tuple[str, ...] = ()
        self._error: FleetError | None = None

    def trail(self) -> tuple[str, ...]:
        return ("Plans", self.deployment, "history")

    def address(self) -> str:
        return f"history {self.deployment}"

    def compose_body(self) -> ComposeResult:
        yield LinesBar(id="summary")
        yield PlanTable(id="table")
        yield LinesView(id="detail")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Oldest first."""
        return self.history.of(self.deployment) if self.history is not None else ()

    @property
    def entry(self) -> Entry | None:
        """The generation under the cursor."""
        return next((each for each in self.entries if entry_key(each) == self.table.cursor_key), None)

    def rows(self, snapshot: FleetSnapshot) -> Rows:
        return HistoryRows(self.entries, self.marked, now_s=snapshot.taken_at_s)

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:  # noqa: ARG002 - of journals
        if self._error is not None:
            return (line(Span(f" ✗ {self._error}", "fault"), Span("   r asks again", "dim")),)
        if self.history is None:
            return (line(Span(" asking every journal …", "dim")),)
        said = line(Span(f" {plural(len(self.entries), 'generation')} of {self.deployment}", "bold"))
        others = [name for name in self.history.deployments if name != self.deployment]
        if others:
            said += line(Span(f"   :history for {list_words(others)}", "dim"))
        if missing := sorted(self.history.unreachable):
            said += line(Span(f"   ▲ not told by {list_words(missing)}: some may lack", "warn"))
        return (said,)

    def empty_text(self, snapshot: FleetSnapshot) -> str:  # noqa: ARG002 - histories are not part of it
        if self.history is None:
            return "nothing is known yet"
        return f"no journal knows a generation of {self.deployment}: it was never applied"

    def draw_detail(self) -> None:
        page, entry = self.query_one("#detail", LinesView), self.entry
        snapshot, width = self.odctl.snapshot, page.content_width
        page.show(entry_page(entry, snapshot, width=width) if entry is not None else ())

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self.action_reread()

    @work(exclusive=True, group="history")
    async def action_reread(self) -> None:
        try:
            self.history, self._error = await self.odctl.feed.call(read_history), None
        except FleetError as error:
            self._error = error
        if self.is_current:
            self.redraw()

    def on_plan_table_mark_asked(self, event: PlanTable.MarkAsked) -> None:
        self.marked = toggled(self.marked, event.key) if event.key is not None else ()
        self.redraw()

    def on_fleet_table_chosen(self, event: FleetTable.Chosen) -> None:  # noqa: ARG002 - of the cursor's row
        """The generation's page gets the focus, to be read."""
        self.query_one("#detail", LinesView).focus()

    def action_compare(self) -> None:
        """The marked generations; without two marks, the current one and the one under the cursor."""
        by_key = {entry_key(entry): choice for entry in self.entries if (choice := entry_choice(entry)) is not None}
        keys = [key for key in self.marked if key in by_key]
        here = self.table.cursor_key
        if len(keys) < 2:
            current = [entry_key(entry) for entry in self.entries if entry.state == "current"]
            keys = [key for key in dict.fromkeys([*(keys or current), here]) if key is not None and key in by_key]
        if len(keys) < 2:
            said = "mark two to four generations with space, or choose another one than the current"
            self.notify(said, title="nothing to compare", severity="warning")
            return
        self.app.push_screen(CompareScreen([by_key[key] for key in keys]))

    def action_roll_back(self) -> None:
        """Hold its plan against the fleet and ask, as `odctl rollback --to` does."""
        entry = self.entry
        if entry is None:
            return
        choice = entry_choice(entry)
        if choice is None:
            said = f"the plan {entry.served.plan_hash[:12]} is in no journal any more: apply its file"
            self.notify(said, title="no way back to it", severity="warning")
            return
        self.odctl.ask_to_apply(choice, cause="rollback", reason=f"to generation {entry.served.generation}")
