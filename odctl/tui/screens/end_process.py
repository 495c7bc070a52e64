"""A question before a foreign process is ended. Cancel has the focus; SIGKILL needs the host's name typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from odctl.tui.model.host_devices import ForeignProcess
from odctl.tui.model.readings import reading_span
from odctl.tui.model.units import bytes_text
from odctl.tui.screens.dialog import Dialog


class EndChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which process, and whether it is to have no say in it."""

    found: ForeignProcess
    is_forced: bool


class EndProcessScreen(Dialog[EndChoice | None]):
    """None when it was given up."""

    DEFAULT_CSS = """
    EndProcessScreen OptionList { margin: 1 0; border: none; padding: 0; background: $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", id="end_process.cancel"),
    ]

    def __init__(self, host: str, processes: Sequence[ForeignProcess]) -> None:
        super().__init__()
        assert processes, "nothing to choose from"
        self._host = host
        self._processes = tuple(processes)

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(f"End a foreign process on {self._host}?", id="dialog-title", markup=False)
            yield OptionList(*(Option(_words(found), id=str(at)) for at, found in enumerate(self._processes)))
            yield Static("Terminate asks it to end (SIGTERM). What it has not saved may be lost.", markup=False)
            yield Static(f"Kill ends it at once (SIGKILL): type {self._host} for it.", markup=False)
            yield Input(placeholder=self._host, id="file-name", compact=True)
            with Horizontal(id="dialog-buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button("Terminate", id="terminate", variant="warning", compact=True)
                yield Button("Kill", id="kill", variant="error", compact=True, disabled=True)

    def on_mount(self) -> None:
        options = self.query_one(OptionList)
        options.highlighted = 0
        # As high as its processes, up to a third of the dialog.
        options.styles.height = min(len(self._processes), 6)
        self.query_one("#cancel", Button).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.query_one("#kill", Button).disabled = event.value.strip() != self._host

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter goes on to the buttons, it does not press them."""
        event.stop()
        self.query_one("#cancel", Button).focus()

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.query_one("#cancel", Button).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "cancel":
            self.dismiss(None)
            return
        at = self.query_one(OptionList).highlighted or 0
        self.dismiss(EndChoice(found=self._processes[at], is_forced=event.button.id == "kill"))


def _words(found: ForeignProcess) -> str:
    process = found.process
    memory = reading_span(process.memory_bytes, bytes_text).text
    # `[` begins markup in an option's text.
    return f"{found.device} {process.pid} {process.user} {memory}  {process.command}".replace("[", r"\[")
