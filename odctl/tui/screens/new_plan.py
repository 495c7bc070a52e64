"""The question for a new plan: which model is known, the rest is typed in the words of `odctl plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Input, Static

from agent.errors import FleetError
from odctl.planning import PlanAsk, ask_words, parse_ask
from odctl.tui.model.new_plan import asked_lines, first_words
from odctl.tui.screens.dialog import Dialog


class NewPlanScreen(Dialog[PlanAsk | None]):
    """The plan as it was asked for; None when it was given up. `shown` is the model's name, for people."""

    DEFAULT_CSS = """
    NewPlanScreen #dialog { border: round $primary; }
    NewPlanScreen #ask { border: none; height: 1; margin: 1 0; padding: 0 1; background: $panel; }
    NewPlanScreen #ask:focus { border: none; }
    NewPlanScreen #all-words { text-style: dim; margin: 1 0; }
    """
    AUTO_FOCUS = "#ask"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", id="new_plan.cancel"),
    ]

    def __init__(self, model: str, *, shown: str = "", hosts: Sequence[str] = (), words: str = "") -> None:
        super().__init__()
        self._model = model
        self._shown = shown or model
        self._first = words or first_words(hosts)
        self.asked: PlanAsk | None = None
        """What is typed, when it is a plan's words."""

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(f"Plan {self._shown}", id="dialog-title", markup=False)
            yield Input(self._first, id="ask", compact=True, select_on_focus=False)
            yield Static("", id="ask-words", markup=False)
            yield Static(
                f"NAME=VALUE of {', '.join(ask_words())}, as for `odctl plan`.", id="all-words", markup=False
            )
            yield Static("enter plans it, which changes nothing", id="dialog-hint", markup=False)
            with Horizontal(id="dialog-buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button("Plan", id="confirm", variant="primary", compact=True)

    def on_mount(self) -> None:
        self._judge(self._first)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._judge(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self.asked is not None:
            self.dismiss(self.asked)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(self.asked if event.button.id == "confirm" else None)

    def _judge(self, text: str) -> None:
        words = self.query_one("#ask-words", Static)
        try:
            self.asked = parse_ask(self._model, text)
        except FleetError as error:
            self.asked = None
            words.update(f"▲ {error}")
        else:
            words.update("\n".join(asked_lines(self.asked)))
        self.query_one("#confirm", Button).disabled = self.asked is None
