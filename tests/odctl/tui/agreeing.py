"""Saying yes to a dialog, as far as it asks for it: by its button, or by the name that it wants typed."""

from __future__ import annotations

from textual.pilot import Pilot
from textual.widgets import Button, Input

from odctl.tui.screens.confirm import ConfirmScreen


def question(pilot: Pilot[None]) -> ConfirmScreen:
    """The dialog that is shown, whose Cancel has the focus."""
    screen = pilot.app.screen
    assert isinstance(screen, ConfirmScreen)
    assert isinstance(screen.focused, Button)
    assert screen.focused.id == "cancel"
    return screen


async def agree(pilot: Pilot[None], *, name: str) -> None:
    """Keys only. `name` is what has to be typed where much of the fleet would change."""
    if question(pilot).query(Input):
        await pilot.press("tab", *name, "enter")
    else:
        await pilot.press("right", "enter")
