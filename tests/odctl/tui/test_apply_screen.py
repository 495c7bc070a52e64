"""An apply on the screen: left and come back to, aborted, with a host lost meanwhile, begun by somebody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from textual.pilot import Pilot

from agent.errors import FleetError
from agent.planner.plan import Plan
from agent.wire.agent import ApplyEvent
from agent.wire.history import Cause
from odctl.apply import ApplyPreview
from odctl.tui.app import OdctlApp
from odctl.tui.applying import OnEvent
from odctl.tui.feed import Feed
from odctl.tui.screens.apply import ApplyScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.plans import PlansScreen
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.agreeing import agree, question
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle
from tests.odctl.tui.test_app import ScriptedApplier, events

both_sizes = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class HeldApplier(ScriptedApplier):
    """Says its first events and then nothing until the end is let come."""

    def __init__(self, *, fails_with: FleetError | None = None) -> None:
        super().__init__(events())
        self.may_end = asyncio.Event()
        self.fails_with = fails_with

    async def apply(
        self,
        feed: Feed,
        preview: ApplyPreview,
        on_event: OnEvent,
        *,
        cause: Cause = "apply",
        reason: str = "",
    ) -> ApplyEvent:
        last = await super().apply(feed, preview, on_event, cause=cause, reason=reason)
        await self.may_end.wait()
        if self.fails_with is not None:
            raise self.fails_with
        return last

    async def abort(self, feed: Feed, plan: Plan) -> str:
        self.fails_with = FleetError("E901", "aborted on request")
        return await super().abort(feed, plan)


async def pause(pilot: Pilot[None]) -> None:
    """As `settle`, but for no worker: the apply's goes on."""
    for _ in range(4):
        await pilot.pause()


async def press(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await pause(pilot)


async def applying(app: OdctlApp, pilot: Pilot[None]) -> ApplyScreen:
    await pause(pilot)
    await press(pilot, "2")
    await press(pilot, "ctrl+x")
    await press(pilot, "a")
    await agree(pilot, name="chat")
    await pause(pilot)
    assert isinstance(app.screen, ApplyScreen)
    return app.screen


def noticed(app: OdctlApp, said: str) -> bool:
    return any(said in notice.message or said in notice.title for notice in app._notifications)


@both_sizes
async def test_one_leaves_an_apply_and_comes_back_to_it(size: tuple[int, int]) -> None:
    applier = HeldApplier()
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=size) as pilot:
        await applying(app, pilot)
        text = screen_text(app)
        assert "↻ applying" in text
        assert "▒ under way" in text
        await press(pilot, "escape")
        assert isinstance(app.screen, PlansScreen)
        await press(pilot, "a")
        assert noticed(app, "an apply of chat is under way: v shows it")
        await press(pilot, "v")
        assert isinstance(app.screen, ApplyScreen)
        assert "↻ applying" in screen_text(app), "nothing of it is lost"
        await press(pilot, "1")
        applier.may_end.set()
        await settle(pilot)
        assert app.current_mode == "fleet"
        assert noticed(app, "chat serves, generation 4"), "its end is told wherever one is"
        app.run_command("progress")
        await settle(pilot)
        assert "● serving" in screen_text(app)


@both_sizes
async def test_an_abort_asks_with_cancel_focused_and_shows_that_it_rolls_back(size: tuple[int, int]) -> None:
    applier = HeldApplier()
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=size) as pilot:
        screen = await applying(app, pilot)
        await press(pilot, "A")
        question(pilot)
        assert "Abort the apply of chat?" in screen_text(app)
        await press(pilot, "enter")
        assert applier.aborted == []
        await press(pilot, "A")
        await agree(pilot, name="chat")
        await pause(pilot)
        assert [plan.name for plan in applier.aborted] == ["chat"]
        assert "↻ rolling back" in screen_text(app)
        applier.may_end.set()
        await settle(pilot)
        assert "aborted on request" in screen_text(app)
        await press(pilot, "A")
        assert app.screen is screen
        assert noticed(app, "it is over: nothing to abort")


async def test_a_session_that_locks_again_cannot_abort() -> None:
    applier = HeldApplier()
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=(80, 24)) as pilot:
        await applying(app, pilot)
        await press(pilot, "ctrl+x")
        await press(pilot, "A")
        assert not isinstance(app.screen, ConfirmScreen)
        assert noticed(app, "read-only")
        applier.may_end.set()
        await settle(pilot)
    assert applier.aborted == []


@both_sizes
async def test_a_host_that_is_lost_while_one_looks_is_said_with_its_reason(size: tuple[int, int]) -> None:
    feed = frozen.FrozenFeed(frozen.snapshot())
    applier = HeldApplier(fails_with=FleetError("E211", "the controller's agent ended the stream", host="gpu01"))
    app = make_app(feed, applier=applier)
    async with app.run_test(size=size) as pilot:
        await applying(app, pilot)
        assert "is lost" not in screen_text(app)
        lost = tuple(
            msgspec.structs.replace(host, state="lost", reason="connection lost: reset by peer")
            if host.name == "gpu01"
            else host
            for host in frozen.hosts()
        )
        feed.push(frozen.snapshot(hosts=lost))
        await pause(pilot)
        text = screen_text(app)
        assert "✗ gpu01 is lost: connection lost: reset by peer" in text
        assert "it is the controller" in text
        applier.may_end.set()
        await settle(pilot)
        text = screen_text(app)
        assert "○ out of sight" in text
        assert "✗ failed" not in text, "nobody knows that"
        without = tuple(host for host in frozen.hosts() if host.name != "gpu01")
        feed.push(frozen.snapshot(hosts=without))
        await settle(pilot)
        assert isinstance(app.screen, ApplyScreen)


@both_sizes
async def test_an_apply_of_another_session_is_seen_and_can_be_aborted(size: tuple[int, int]) -> None:
    applier = HeldApplier()
    view = frozen.deployment(status=frozen.status(apply_phase="fetch", controller="cpu01"))
    app = make_app(frozen.FrozenFeed(frozen.snapshot(deployments=(view,))), applier=applier)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await press(pilot, "2")
        assert "↻ an apply of chat is under way: fetch" in screen_text(app)
        await press(pilot, "v")
        assert noticed(app, "this session has applied nothing yet")
        await press(pilot, "ctrl+x")
        await press(pilot, "A")
        await agree(pilot, name="chat")
        await settle(pilot)
        assert [plan.controllers for plan in applier.aborted] == [("cpu01",)], "its controller is asked"
        assert isinstance(app.screen, PlansScreen)


async def test_after_the_switch_an_abort_says_that_it_is_late() -> None:
    view = frozen.deployment(status=frozen.status(apply_phase="retire"))
    app = make_app(frozen.FrozenFeed(frozen.snapshot(deployments=(view,))), applier=HeldApplier())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await press(pilot, "2")
        await press(pilot, "ctrl+x")
        await press(pilot, "A")
        assert "It switches, or has switched: it most likely goes on." in screen_text(app)
