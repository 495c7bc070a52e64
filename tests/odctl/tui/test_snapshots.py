"""Pictures of a few views that stand still. `pytest --snapshot-update` after a change that is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import settle

SnapCompare = Callable[..., bool]
SIZES = ((80, 24), (120, 40))
VIEWS: dict[str, tuple[str, ...]] = {
    "fleet": (),
    "host": ("G", "enter"),
    "plan": ("2",),
    "deployments": ("3",),
}


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
@pytest.mark.parametrize("view", VIEWS)
def test_view(view: str, size: tuple[int, int], snap_compare: SnapCompare) -> None:
    async def go(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press(*VIEWS[view])
        await settle(pilot)

    assert snap_compare(make_app(frozen.FrozenFeed(frozen.snapshot())), terminal_size=size, run_before=go)


def test_the_dialog_before_an_apply(snap_compare: SnapCompare) -> None:
    from tests.odctl.tui.test_app import ScriptedApplier, events

    async def go(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("2", "ctrl+x", "a")
        await settle(pilot)

    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=ScriptedApplier(events()))
    assert snap_compare(app, terminal_size=(80, 24), run_before=go)


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
def test_the_plan_editor_after_a_move(size: tuple[int, int], snap_compare: SnapCompare) -> None:
    from tests.odctl.tui.test_plan_editor import make_app as make_editor_app

    async def go(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("2")
        await settle(pilot)
        await pilot.press("e")
        await settle(pilot)
        pilot.app.clear_notifications()
        await pilot.press("plus")
        await settle(pilot)

    assert snap_compare(make_editor_app(), terminal_size=size, run_before=go)
