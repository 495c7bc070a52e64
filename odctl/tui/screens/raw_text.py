"""A text to read and to copy, above whatever asked for it."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Static

from odctl.tui.model.text import line, wrap
from odctl.tui.screens.dialog import Dialog
from odctl.tui.widgets.lines import LinesView


class RawTextScreen(Dialog[None]):
    """Shown wrapped, copied as it is."""

    DEFAULT_CSS = """
    RawTextScreen #raw-dialog {
        width: 90%; max-width: 130; height: 80%; border: round $primary; padding: 0 1; background: $surface;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,c,ctrl+y", "copy", "Copy", id="raw_text.copy"),
        Binding("escape,q,u", "dismiss", "Close", id="raw_text.close"),
    ]

    def __init__(self, *, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self.text = text

    def compose(self) -> ComposeResult:
        with Vertical(id="raw-dialog"):
            yield Static(self._title, id="dialog-title", markup=False)
            yield LinesView(id="raw")
            yield Static("y copies it, esc closes", id="dialog-hint", markup=False)

    def on_mount(self) -> None:
        self._show()
        self.query_one(LinesView).focus()

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    def _show(self) -> None:
        view = self.query_one(LinesView)
        view.show([line(f" {part}") for part in wrap(self.text, max(10, view.content_width - 2))])

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.text)
        self.notify("copied, where the terminal takes OSC 52")
