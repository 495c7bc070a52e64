"""The line at the bottom that `:` and `/` open: commands with completion, and a filter that works as typed."""

from __future__ import annotations

from typing import Literal

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.suggester import SuggestFromList
from textual.widgets import Input, Static

Kind = Literal[":", "/"]
HISTORY_LINES = 50


class Prompt(Horizontal):
    DEFAULT_CSS = """
    Prompt { height: 1; display: none; dock: bottom; }
    Prompt #sign { width: 2; padding: 0 0 0 1; text-style: bold; }
    Prompt Input { border: none; height: 1; width: 1fr; padding: 0; background: transparent; }
    Prompt Input:focus { border: none; }
    """

    class Submitted(Message):
        """A command was entered, or a filter confirmed."""

        def __init__(self, kind: Kind, text: str) -> None:
            super().__init__()
            self.kind = kind
            self.text = text

    class FilterChanged(Message):
        """The filter as typed so far."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__()
        self.kind: Kind = ":"
        self._history: list[str] = []

    def compose(self) -> ComposeResult:
        yield Static(":", id="sign")
        # Not selected: what is typed goes behind the beginning that a key has typed already.
        yield Input(id="prompt-input", compact=True, select_on_focus=False)

    @property
    def is_open(self) -> bool:
        return bool(self.display)

    def open(self, kind: Kind, *, text: str = "", suggestions: list[str] | None = None) -> None:
        """Show the line, with the focus in it."""
        self.kind = kind
        self.query_one("#sign", Static).update(kind)
        entry = self.query_one(Input)
        entry.suggester = SuggestFromList(suggestions, case_sensitive=False) if suggestions else None
        entry.value = text
        entry.cursor_position = len(text)
        # At once, not through `focus()`, which waits: keys typed fast after `:` belong to this line already.
        self.display = True
        self.screen.set_focus(entry)

    def close(self) -> None:
        self.display = False
        self.query_one(Input).suggester = None

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.is_open and self.kind == "/":
            self.post_message(self.FilterChanged(event.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self.kind == ":" and event.value.strip():
            self._history = [*self._history[-HISTORY_LINES:], event.value]
        self.close()
        self.post_message(self.Submitted(self.kind, event.value))

    def on_key(self, event: events.Key) -> None:
        """Up recalls the last command; everything else is the input's own."""
        if event.key == "up" and self.kind == ":" and self._history:
            self.query_one(Input).value = self._history[-1]
            event.stop()
