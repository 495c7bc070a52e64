"""Models that the hosts hold, asked for when the screen is opened and on `r`."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from agent.errors import FleetError
from agent.wire.agent import ModelHolding
from odctl.fleet import Fleet, FleetSnapshot
from odctl.tui.model.model_rows import ModelRows, model_key
from odctl.tui.model.table import Rows
from odctl.tui.model.text import Line, Span, line
from odctl.tui.model.units import plural
from odctl.tui.screens.table import TableScreen

Holdings = tuple[ModelHolding, ...]


class ModelsScreen(TableScreen):
    mode = "models"
    empty = "no host holds a model: put a Hugging Face directory under <prefix>/var/models, or apply a plan"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "plan", "Plan…", id="models.plan"),
        Binding("r", "refresh_models", "Ask again", id="models.refresh"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[str, Holdings | FleetError] | None = None
        self._error = ""

    @property
    def has_answers(self) -> bool:
        return self._answers is not None

    def rows(self, snapshot: FleetSnapshot) -> Rows:  # noqa: ARG002 - holdings are not part of the snapshot
        return ModelRows(self._holdings)

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:  # noqa: ARG002 - one short line
        if self._error:
            return (line(Span(f" ✗ {self._error}", "fault"), Span("   r asks again", "dim")),)
        if self._answers is None:
            return (line(Span(" asking every host …", "dim")),)
        failed = [name for name, answer in self._answers.items() if isinstance(answer, FleetError)]
        said = line(f" {plural(len(self._answers) - len(failed), 'host')} answered")
        if failed:
            said += line(Span(f"   ✗ no answer from {', '.join(failed[:6])}", "warn"))
        return (said,)

    def empty_text(self, snapshot: FleetSnapshot) -> str:  # noqa: ARG002 - holdings are not part of the snapshot
        return "nothing is known yet" if self._answers is None else self.empty

    def action_plan(self) -> None:
        """Plan the model under the cursor."""
        held = self._held.get(self.table.cursor_key or "")
        if held is None:
            self.notify("no model to plan: :new DIRECTORY plans one of this machine", severity="warning")
        elif held.trouble or not held.is_complete:
            why = held.trouble or f"{held.host} has a part of it only"
            self.notify(f"{held.name} cannot be planned from here: {why}", severity="warning")
        else:
            self.odctl.new_plan(held.digest, shown=held.name)

    def on_fleet_table_chosen(self) -> None:
        self.action_plan()

    @property
    def _held(self) -> dict[str, ModelHolding]:
        """By the keys of the rows."""
        return {model_key(held): held for held in self._holdings}

    @property
    def _holdings(self) -> list[ModelHolding]:
        answers = (self._answers or {}).values()
        return [held for answer in answers if not isinstance(answer, FleetError) for held in answer]

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self.action_refresh_models()

    @work(exclusive=True, group="models")
    async def action_refresh_models(self) -> None:
        async def ask(fleet: Fleet) -> dict[str, Holdings | FleetError]:
            return await fleet.get_all("/v1/models", Holdings)

        try:
            self._answers, self._error = await self.odctl.feed.call(ask), ""
        except FleetError as error:
            self._error = str(error)
        if self.is_current:
            self.redraw()
