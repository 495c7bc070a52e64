"""Read-only means read-only: by keys, by mouse, by the palette, by commands, and below all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from textual.widgets import Button, Input

from agent.errors import FleetError
from agent.planner.file import plan_to_toml
from agent.wire.agent import AbortRequest, ApplyEvent, Done, FaultReport
from agent.wire.history import Cause
from odctl.apply import ApplyPreview
from odctl.fleet import Fleet
from odctl.fleet.clock import SystemClock
from odctl.fleet.guard import READ_ONLY, WriteGuard
from odctl.tui.app import OdctlApp
from odctl.tui.app_lock import AppLock
from odctl.tui.applying import OnEvent
from odctl.tui.feed import Feed, FleetFeed
from odctl.tui.model.commands import COMMANDS
from odctl.tui.options import UiOptions
from odctl.tui.screens.apply import ApplyScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.plan_editor import PlanEditorScreen
from odctl.tui.screens.probes import ProbesScreen
from tests.odctl.fleet import values
from tests.odctl.fleet.served_agent import ServedAgent, serving
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, click_key, screen_text, settle
from tests.odctl.tui.test_app import ScriptedApplier, events
from tests.odctl.tui.test_feed import inventory_of
from tests.odctl.tui.test_plan_editor import make_app as make_editor_app

APPLYING = [command for command in COMMANDS if command.changes]


def was_refused(app: OdctlApp) -> bool:
    return any("read-only" in notice.message for notice in app._notifications)


async def test_keys_change_nothing() -> None:
    applier = ScriptedApplier(events())
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await settle(pilot)
        await pilot.press("a", "enter")
        await settle(pilot)
        assert not isinstance(app.screen, ConfirmScreen)
        assert was_refused(app)
    assert applier.applied == []


async def test_the_mouse_changes_nothing() -> None:
    applier = ScriptedApplier(events())
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=(140, 40)) as pilot:
        await pilot.press("2")
        await settle(pilot)
        await click_key(pilot, "Apply…")
        assert not isinstance(app.screen, ConfirmScreen)
        assert was_refused(app)
    assert applier.applied == []


async def test_the_palette_does_not_offer_what_changes_anything() -> None:
    applier = ScriptedApplier(events())
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=(140, 40)) as pilot:
        await pilot.press("2")
        await settle(pilot)
        plans = app.screen
        offered = [found.title for found in app.get_system_commands(plans)]
        assert APPLYING
        assert not any(title.startswith(f":{command.name} ") for command in APPLYING for title in offered)
        assert any(title.startswith(":fleet") for title in offered)
        app.set_read_only(False)
        offered = [found.title for found in app.get_system_commands(plans)]
        assert any(title.startswith(":apply") for title in offered)
    assert applier.applied == []


@pytest.mark.parametrize("text", ["apply", "apply chat", "ap chat", "apply plan.toml"])
async def test_commands_change_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plan.toml").write_text(plan_to_toml(frozen.plan()))
    monkeypatch.chdir(tmp_path)
    applier = ScriptedApplier(events())
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await settle(pilot)
        await pilot.press("colon", *text, "enter")
        await settle(pilot)
        assert not isinstance(app.screen, ConfirmScreen)
        assert was_refused(app)
    assert applier.applied == []


class ForgetfulApplier(ScriptedApplier):
    """Goes to the fleet for its apply, as the real one does."""

    async def apply(
        self, feed: Feed, preview: ApplyPreview, on_event: OnEvent, *, cause: Cause = "apply", reason: str = ""
    ) -> ApplyEvent:
        async def work(fleet: Fleet) -> Done:
            return await fleet.post("one", "/v1/abort", AbortRequest(deployment="chat", holder="me"), Done)

        await feed.call(work)
        return await super().apply(feed, preview, on_event, cause=cause, reason=reason)


async def test_a_screen_that_forgets_to_ask_is_refused_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. no screen asks any more 2. apply is confirmed 3. the fleet refuses, and the agent never hears of it"""
    agent = ServedAgent(tmp_path / "one")
    calls: list[bytes] = []

    def abort(body: bytes) -> Done:
        calls.append(body)
        return Done(message="done")

    agent.answers |= {
        "/v1/facts": values.facts("one"),
        "/v1/handshake": values.handshake("one"),
        "/v1/deployments": (),
        "/v1/faults": FaultReport(faults=()),
        "/v1/abort": abort,
    }
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(frozen.plan("small")))
    monkeypatch.setattr(AppLock, "may_change", lambda _app: True)
    feed = FleetFeed(inventory_of(agent), SystemClock())
    app = OdctlApp(feed, clock=SystemClock(), applier=ForgetfulApplier(events()))
    app.animation_level = "none"
    async with serving(agent), app.run_test(size=(80, 24)) as pilot:
        await pilot.press("colon", *f"apply {path}", "enter")
        await settle(pilot)
        assert isinstance(app.screen, ConfirmScreen)
        await pilot.press("tab", *"small", "enter")
        await settle(pilot)
        assert isinstance(app.screen, ApplyScreen)
        assert "this session is read-only" in screen_text(app)
        assert calls == []
        # The same with the lock open, so that it is the lock that made the difference.
        await pilot.press("escape")
        app.set_read_only(False)
        await pilot.press("colon", *f"apply {path}", "enter")
        await settle(pilot)
        await pilot.press("tab", *"small", "enter")
        await settle(pilot)
        assert len(calls) == 1


@pytest.mark.parametrize("size", SIZES)
async def test_the_title_says_for_how_long_changes_are_allowed(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        assert "RO" in screen_text(app).splitlines()[0]
        await pilot.press("ctrl+x")
        await settle(pilot)
        assert "RW 10m" in screen_text(app).splitlines()[0]
        await pilot.press("ctrl+x")
        await settle(pilot)
        assert "RO" in screen_text(app).splitlines()[0]
        await pilot.press("colon", *"unlock", "enter")
        await settle(pilot)
        assert not app.is_read_only
        await pilot.press("colon", *"lock", "enter")
        await settle(pilot)
        assert app.is_read_only


async def test_write_at_the_start_allows_changes_for_a_while() -> None:
    app = OdctlApp(
        frozen.FrozenFeed(frozen.snapshot()), clock=frozen.FrozenClock(), options=UiOptions(is_unlocked=True)
    )
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert not app.is_read_only
        assert 590 < app.guard.unlocked_for_s <= 600


async def test_a_feed_that_may_never_change_anything_cannot_be_unlocked() -> None:
    feed = frozen.FrozenFeed(frozen.snapshot())
    feed.guard = WriteGuard(never="it shows a recording")  # type: ignore[attr-defined]
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("ctrl+x")
        await settle(pilot)
        assert app.is_read_only
        assert any("it shows a recording" in notice.message for notice in app._notifications)


async def test_every_dialog_begins_on_cancel_and_a_large_action_wants_a_name() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    answers: list[bool | None] = []
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        for typed in ("", "p-18"):
            dialog = ConfirmScreen(title="Stop it?", lines=["It stops."], verb="Stop it", typed=typed)
            for keys in (("enter",), ("escape",), ("left", "escape")):
                app.push_screen(dialog := _again(dialog), answers.append)
                await settle(pilot)
                assert isinstance(dialog.focused, Button)
                assert dialog.focused.id == "cancel"
                await pilot.press(*keys)
                await settle(pilot)
        assert answers == [False] * 6
        answers.clear()
        dialog = _again(dialog)
        app.push_screen(dialog, answers.append)
        await settle(pilot)
        assert "over 5% of the fleet: press tab and type `p-18`" in screen_text(app)
        assert dialog.query_one("#confirm", Button).disabled
        await pilot.press("tab", *"p-1", "enter")
        await settle(pilot)
        assert app.screen is dialog, "a part of the name is not the name"
        assert isinstance(dialog.focused, Input)
        await pilot.press("8")
        await settle(pilot)
        assert not dialog.query_one("#confirm", Button).disabled
        await pilot.press("enter")
        await settle(pilot)
        assert answers == [True]


class WaitingApplier(ScriptedApplier):
    """An apply that is not over until the test says so."""

    def __init__(self) -> None:
        super().__init__(events())
        self.is_over = asyncio.Event()

    async def apply(
        self, feed: Feed, preview: ApplyPreview, on_event: OnEvent, *, cause: Cause = "apply", reason: str = ""
    ) -> ApplyEvent:
        await on_event(self.events[0])
        await self.is_over.wait()
        return await super().apply(feed, preview, on_event, cause=cause, reason=reason)


async def test_an_abort_asks_with_cancel_focused_and_is_refused_once_locked() -> None:
    applier = WaitingApplier()
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2", "ctrl+x", "a")
        await settle(pilot)
        await pilot.press("tab", *"chat", "enter")
        await pilot.pause()
        await pilot.pause()
        screen = app.screen
        assert isinstance(screen, ApplyScreen)
        await pilot.press("x")
        await pilot.pause()
        dialog = app.screen
        assert isinstance(dialog, ConfirmScreen)
        assert dialog.focused is dialog.query_one("#cancel")
        await pilot.press("enter")
        await pilot.pause()
        assert app.screen is screen
        app.set_read_only(True)
        await pilot.press("x")
        await pilot.pause()
        assert app.screen is screen
        assert was_refused(app)
        assert applier.aborted == []
        applier.is_over.set()
        await settle(pilot)
        assert len(applier.applied) == 1, "to lock does not stop what is under way"


async def test_a_probe_asks_with_cancel_focused() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("9", "ctrl+x")
        await settle(pilot)
        await pilot.press("p")
        await settle(pilot)
        dialog = app.screen
        assert isinstance(dialog, ConfirmScreen)
        assert dialog.focused is dialog.query_one("#cancel")
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, ProbesScreen)
        assert not app.screen.is_probing


@pytest.mark.parametrize("key", ["escape", "q"])
async def test_leaving_edits_asks_with_cancel_focused(key: str) -> None:
    app = make_editor_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("2")
        await settle(pilot)
        await pilot.press("e")
        await settle(pilot)
        editor = app.screen
        assert isinstance(editor, PlanEditorScreen)
        await pilot.press("plus")
        await settle(pilot)
        await pilot.press(key)
        await settle(pilot)
        dialog = app.screen
        assert isinstance(dialog, ConfirmScreen)
        assert dialog.focused is dialog.query_one("#cancel")
        await pilot.press("enter")
        await settle(pilot)
        assert editor.is_unsaved
        assert app.screen is editor


def _again(dialog: ConfirmScreen) -> ConfirmScreen:
    return ConfirmScreen(title=dialog._title, lines=dialog._lines, verb=dialog._verb, typed=dialog._typed)


async def test_the_guards_refusal_is_an_error_of_bad_usage() -> None:
    with pytest.raises(FleetError) as caught:
        WriteGuard().check("POST /v1/apply")
    assert caught.value.code == READ_ONLY == "E121"
