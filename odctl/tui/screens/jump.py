"""Letters over what can have the focus, and the tabs by their numbers: one key more, and one is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

from odctl.tui.model.jump import JumpTarget


class JumpLabel(Static):
    """One letter, where it leads to."""

    def __init__(self, target: JumpTarget) -> None:
        super().__init__(target.letter, classes="jump-label", markup=False)
        self.target = target
        self.styles.offset = (target.x, target.y)

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.screen.dismiss(self.target.letter)


class JumpScreen(ModalScreen[str]):
    """The letter that was pressed or clicked; empty for anything else."""

    DEFAULT_CSS = """
    JumpScreen { background: transparent; }
    .jump-label {
        position: absolute; width: 1; height: 1; background: black; color: $warning; text-style: bold reverse;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+o", "dismiss('')", "Stay here", id="jump.cancel"),
    ]

    def __init__(self, targets: Sequence[JumpTarget]) -> None:
        super().__init__()
        self.targets = tuple(targets)

    def compose(self) -> ComposeResult:
        for target in self.targets:
            yield JumpLabel(target)

    def on_key(self, event: events.Key) -> None:
        """Which keys there are depends on what is on the screen, so they are no bindings."""
        letters = {target.letter for target in self.targets}
        if event.character in letters:
            event.stop()
            self.dismiss(event.character)

    def on_click(self) -> None:
        """Beside the letters: nothing is meant."""
        self.dismiss("")
