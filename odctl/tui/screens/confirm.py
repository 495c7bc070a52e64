"""A question before anything changes. Cancel has the focus; escape is no.

Where much of the fleet would change, a yes is not enough: a name must be typed (`odctl.tui.model.consent`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Button, Input, Static

from odctl.tui.screens.dialog import Dialog


class ConfirmScreen(Dialog[bool]):
    """True when the verb's button was pressed. `typed` must be typed before it can be; empty: nothing must."""

    DEFAULT_CSS = """
    ConfirmScreen #typed-name { border: none; height: 1; margin-bottom: 1; padding: 0 1; background: $panel; }
    ConfirmScreen #typed-name:focus { border: none; }
    """
    AUTO_FOCUS = "#cancel"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(False)", "Cancel", id="confirm.cancel"),
        Binding("left,right,h,l", "other_button", "Other button", id="confirm.other", show=False),
    ]

    def __init__(self, *, title: str, lines: Sequence[str], verb: str, typed: str = "") -> None:
        super().__init__()
        self._title = title
        self._lines = lines
        self._verb = verb
        self._typed = typed

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(self._title, id="dialog-title", markup=False)
            with VerticalScroll(id="dialog-text", can_focus=False):
                for text in self._lines:
                    yield Static(text, markup=False)
            if self._typed:
                said = f"This is over 5% of the fleet: press tab and type `{self._typed}` to go on."
                yield Static(said, id="dialog-hint", markup=False)
                yield Input(id="typed-name", compact=True)
            with Horizontal(id="dialog-buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button(self._verb, id="confirm", variant="warning", compact=True, disabled=bool(self._typed))

    def on_mount(self) -> None:
        self.query_one("#cancel", Button).focus()

    @property
    def is_typed(self) -> bool:
        """Whether the name that must be typed stands in its field."""
        return not self._typed or self.query_one("#typed-name", Input).value.strip() == self._typed

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.query_one("#confirm", Button).disabled = not self.is_typed

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter behind the right name is the yes; behind another one it is nothing."""
        event.stop()
        if self.is_typed:
            self.dismiss(True)
        else:
            self.notify(f"that is not `{self._typed}`: nothing was done", severity="warning")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "confirm" and self.is_typed)

    def action_other_button(self) -> None:
        self.focus_next(Button)
