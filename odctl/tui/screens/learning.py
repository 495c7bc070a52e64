"""What applied plans taught: strategies beside each other, or every choice with what came of it.

Asked for when the screen is opened and on `r`: the answer is that of `odctl strategies`.
"""

from __future__ import annotations

import re
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from agent.errors import FleetError
from odctl.fleet import Fleet, FleetSnapshot
from odctl.learning import LearningReport, read_learning
from odctl.tui.model.learning_charts import charts_page
from odctl.tui.model.learning_rows import (
    NOTHING_YET,
    SWITCHED_OFF,
    SelectionRows,
    StrategyRows,
    learning_summary,
    selection_key,
    selection_page,
    strategy_key,
    strategy_page,
)
from odctl.tui.model.table import Rows
from odctl.tui.model.text import BLANK, Line, Span, line
from odctl.tui.screens.learning_charts import LearningChartsScreen
from odctl.tui.screens.run import RunScreen
from odctl.tui.screens.table import TableScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.lines import LinesBar, LinesView

SMALL_CHART_LINES = 6


class LearningScreen(TableScreen):
    mode = "learning"
    DEFAULT_CSS = """
    LearningScreen #table { height: 2fr; min-height: 4; }
    LearningScreen #detail { height: 3fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "toggle_history", "Strategies/choices", id="learning.history"),
        Binding("c", "charts", "Charts", id="learning.charts"),
        Binding("r", "refresh_learning", "Ask again", id="learning.refresh"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.shows_history = False
        self.report: LearningReport | None = None
        self._error = ""

    def trail(self) -> tuple[str, ...]:
        return ("Learning", "Choices") if self.shows_history else ("Learning", "Strategies")

    def compose_body(self) -> ComposeResult:
        yield LinesBar(id="summary")
        yield FleetTable(id="table")
        yield LinesView(id="detail")

    def rows(self, snapshot: FleetSnapshot) -> Rows:
        report = self.report or LearningReport()
        return SelectionRows(report, now_s=snapshot.taken_at_s) if self.shows_history else StrategyRows(report)

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:  # noqa: ARG002 - short lines
        if self._error:
            return (line(Span(f" ✗ {self._error}", "fault"), Span("   r asks again", "dim")),)
        if self.report is None:
            return (line(Span(" asking every host …", "dim")),)
        return learning_summary(self.report, now_s=snapshot.taken_at_s)

    def empty_text(self, snapshot: FleetSnapshot) -> str:  # noqa: ARG002 - what was learnt is not in the snapshot
        if self.report is None:
            return "nothing is known yet"
        return NOTHING_YET if self.report.settings.enabled else SWITCHED_OFF

    def draw_detail(self) -> None:
        snapshot, key = self.odctl.snapshot, self.table.cursor_key
        page = self.query_one("#detail", LinesView)
        if snapshot is None or key is None or self.report is None:
            page.show(())
            return
        width = page.content_width
        if self.shows_history:
            page.show(selection_page(self.report, key, width=width))
            return
        charts = charts_page(
            self.report,
            bucket=self._bucket(key),
            width=width,
            now_s=snapshot.taken_at_s,
            height=SMALL_CHART_LINES,
        )
        page.show((*strategy_page(self.report, key, width=width), BLANK, *charts))

    def show_history(self, shows_history: bool) -> None:
        if shows_history != self.shows_history:
            self.shows_history = shows_history
            self.sort = None
            self.filter_text = ""
            self.redraw()

    def action_toggle_history(self) -> None:
        self.show_history(not self.shows_history)

    def action_charts(self) -> None:
        """Both charts over the whole screen, of the workload under the cursor."""
        bucket = "" if self.shows_history else self._bucket(self.table.cursor_key or "")
        self.app.push_screen(LearningChartsScreen(self.report or LearningReport(), bucket))

    def on_fleet_table_chosen(self, event: FleetTable.Chosen) -> None:
        """A strategy leads to the choices of it, and a choice to its run."""
        if self.report is None:
            return
        if self.shows_history:
            chosen = next((each for each in self.report.history if selection_key(each) == event.key), None)
            if chosen is not None:
                self.app.push_screen(RunScreen(self.report, chosen))
            return
        row = next((row for row in self.report.strategies if strategy_key(row) == event.key), None)
        if row is not None:
            self.show_history(True)
            # A filter's terms are separated by spaces; a dot is any character.
            self.set_filter(re.escape(row.arm).replace("\\ ", "."))

    def _bucket(self, key: str) -> str:
        rows = self.report.strategies if self.report is not None else ()
        return next((row.bucket for row in rows if strategy_key(row) == key), "")

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self.action_refresh_learning()

    @work(exclusive=True, group="learning")
    async def action_refresh_learning(self) -> None:
        settings = self.odctl.feed.learning

        async def ask(fleet: Fleet) -> LearningReport:
            return await read_learning(fleet, settings)

        try:
            self.report, self._error = await self.odctl.feed.call(ask), ""
        except FleetError as error:
            self._error = str(error)
        if self.is_current:
            self.redraw()
