"""What comes while the app leaves."""

from __future__ import annotations

from odctl.tui.app import SnapshotTaken
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import settle


async def test_a_snapshot_that_comes_while_screens_are_taken_apart_breaks_nothing() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        # what textual's shutdown does first, and what it does to a screen before that leaves the stack
        app._running = False
        await app.screen.query("LinesBar").remove()
        app.on_snapshot_taken(SnapshotTaken(frozen.snapshot(cluster="later")))


async def test_a_snapshot_that_comes_when_the_screens_are_gone_breaks_nothing() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
    assert app.screen_stack == []
    late = frozen.snapshot(cluster="later")
    app.on_snapshot_taken(SnapshotTaken(late))
    assert app.snapshot is late
