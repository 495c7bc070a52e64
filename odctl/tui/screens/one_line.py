"""A question for one line of text. Enter takes it, escape does not."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, Static

from odctl.tui.screens.dialog import Dialog


class OneLineScreen(Dialog[str | None]):
    """The line as typed, which may be empty; None when it was given up."""

    DEFAULT_CSS = """
    OneLineScreen #line { border: none; height: 1; margin: 1 0; padding: 0 1; background: $panel; }
    OneLineScreen #line:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "give_up", "Cancel", id="one_line.cancel"),
    ]

    def __init__(self, *, title: str, text: str, hint: str) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._hint = hint

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(self._title, id="dialog-title", markup=False)
            yield Input(self._text, id="line", compact=True, select_on_focus=False)
            yield Static(self._hint, id="dialog-hint", markup=False)

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip())

    def action_give_up(self) -> None:
        self.dismiss(None)
