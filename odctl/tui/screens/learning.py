"""What applied plans taught: strategies beside each other, or every choice with what came of it.

Asked for when the screen is opened and on `r`: the answer is that of `odctl strategies`.
"""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from agent.errors import FleetError
from odctl.fleet import Fleet, FleetSnapshot
from odctl.learning import LearningReport, read_learning
from odctl.tui.model.learning_rows import (
    NOTHING_YET,
    SWITCHED_OFF,
    SelectionRows,
    StrategyRows,
    learning_summary,
    selection_page,
    strategy_page,
)
from odctl.tui.model.table import Rows
from odctl.tui.model.text import Line, Span, line
from odctl.tui.screens.table import TableScreen


class LearningScreen(TableScreen):
    mode = "learning"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "toggle_history", "Strategies/choices", id="learning.history"),
        Binding("r", "refresh_learning", "Ask again", id="learning.refresh"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.shows_history = False
        self.report: LearningReport | None = None
        self._error = ""

    def trail(self) -> tuple[str, ...]:
        return ("Learning", "Choices") if self.shows_history else ("Learning", "Strategies")

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

    def detail(self, snapshot: FleetSnapshot, key: str, width: int) -> tuple[Line, ...]:  # noqa: ARG002 - likewise
        report = self.report or LearningReport()
        return (selection_page if self.shows_history else strategy_page)(report, key, width=width)

    def show_history(self, shows_history: bool) -> None:
        if shows_history != self.shows_history:
            self.shows_history = shows_history
            self.sort = None
            self.redraw()

    def action_toggle_history(self) -> None:
        self.show_history(not self.shows_history)

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
