"""What makes a key's answer come soon: one repaint a key, and a collector that does not come amid it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from odctl.tui.screens.fleet import FleetScreen
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import screen_text, settle

SETTINGS = """
import gc, sys
from odctl.tui.responsive import GIL_TURN_S, YOUNG_OBJECTS, answer_keys_first
answer_keys_first()
print(abs(sys.getswitchinterval() - GIL_TURN_S) < 1e-9)
print(gc.get_threshold()[0] == YOUNG_OBJECTS, gc.get_freeze_count() > 0)
"""

GARBAGE = """
import gc, weakref
from odctl.tui.responsive import ENOUGH_GARBAGE, collect_rarely, collect_young

class Knot:
    def __init__(self):
        self.itself = self

collect_rarely()
seen = weakref.ref(Knot())
collect_young()
print(seen() is not None)
kept = [[] for _ in range(ENOUGH_GARBAGE)]
collect_young()
print(seen() is None)
"""


async def test_the_row_and_the_lines_that_tell_of_it_are_painted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that came after the row would wait for the next frame."""
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        told: list[str] = []
        display = app._display

        def seen(screen: Any, renderable: Any) -> None:
            display(screen, renderable)
            if renderable is not None:
                told.append(screen_text(app))

        monkeypatch.setattr(app, "_display", seen)
        await pilot.press("down")
        await settle(pilot)
        key = app.screen.table.cursor_key
        assert key is not None
        assert f"▸ {key}" in told[0], "the first repaint has it all"
        assert len(told) == 1


def test_a_process_of_the_ui_yields_soon_and_leaves_alone_what_was_imported() -> None:
    out = subprocess.run([sys.executable, "-c", SETTINGS], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True"] * 3


def test_garbage_is_collected_between_two_snapshots_once_there_may_be_much() -> None:
    out = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True"] * 2
