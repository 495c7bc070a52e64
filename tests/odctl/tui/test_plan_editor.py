"""The plan editor, key by key, at both sizes: over a fleet that stands still, computing for real."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input

from agent.errors import FleetError
from agent.planner.edit import Basis
from agent.planner.file import plan_from_toml, plan_to_toml
from agent.planner.plan import Objective, Plan
from odctl.editing import BasisRead
from odctl.tui.app import OdctlApp
from odctl.tui.feed import Feed
from odctl.tui.model.plan_editor import Action, EditorState, perform
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.file_name import FileNameScreen
from odctl.tui.screens.plan_editor import PlanEditorScreen
from odctl.tui.screens.plans import PlansScreen
from tests.agent.planner.clusters import LLAMA_1B, cluster, cpu, host, plan_for
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import RefusingApplier
from tests.odctl.tui.frozen_fleet import FrozenClock
from tests.odctl.tui.reading import SIZES, screen_text, settle

FACTS = cluster(*(host(name, cpu(8)) for name in "abcd"))
PLAN = plan_for(
    LLAMA_1B,
    cluster(*FACTS.hosts[:3]),
    stages=3,
    objective=Objective(kind="throughput"),
    controllers=("a",),
)
"""On three of four hosts; the fourth is spare, and nobody asked for it to be left out."""
both_sizes = pytest.mark.parametrize("size", SIZES)


class Reader:
    """Answers with facts instead of a fleet's."""

    async def read(self, feed: Feed, plan: Plan) -> BasisRead:  # noqa: ARG002 - the Protocol's
        missing = {"e": FleetError("E206", "no agent answers on this host")}
        return BasisRead(basis=Basis(LLAMA_1B, FACTS), missing=missing)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(PLAN))
    return path


@pytest.fixture
def path_of_another_model(path: Path) -> Path:
    ref = msgspec.structs.replace(PLAN.model, digest="e" * 64)
    path.write_text(plan_to_toml(msgspec.structs.replace(PLAN, model=ref)))
    return path


def make_app() -> OdctlApp:
    view = frozen.deployment(status=frozen.status(plan_toml=plan_to_toml(PLAN), generation=4))
    feed = frozen.FrozenFeed(frozen.snapshot(deployments=(view,)))
    app = OdctlApp(feed, clock=FrozenClock(), applier=RefusingApplier(), basis_reader=Reader())
    app.animation_level = "none"
    return app


async def opened(app: OdctlApp, pilot: Pilot[None], path: Path) -> PlanEditorScreen:
    await settle(pilot)
    app.run_command(f"plan {path}")
    await settle(pilot)
    await pilot.press("e")
    await settle(pilot)
    assert isinstance(app.screen, PlanEditorScreen)
    return app.screen


def plan_in(path: Path) -> Plan:
    return plan_from_toml(path.read_text(), file=path.name)


def shown(app: OdctlApp) -> Screen[Any]:
    return app.screen


def is_asking(app: OdctlApp) -> bool:
    return isinstance(app.screen, ConfirmScreen)


async def press(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settle(pilot)


@both_sizes
async def test_keys_move_boundaries_and_figures_follow(size: tuple[int, int], path: Path) -> None:
    app = make_app()
    async with app.run_test(size=size) as pilot:
        editor = await opened(app, pilot, path)
        assert any("e does not answer" in notice.message for notice in app._notifications)
        app.clear_notifications()
        first = PLAN.replicas[0].stages[0].layers[1]
        await press(pilot, "plus", "plus", "shift+right", "minus")
        assert editor.state.plan.replicas[0].stages[0].layers == (0, first + 2)
        text = screen_text(app)
        assert "not written" in text
        assert "● sound" in text
        assert "% worse" in text
        assert "bottleneck: replica 0 stage 0" in text
        assert "against running generation 4: 2 of 16 layers move" in text
        assert f"◀┃▶ {first + 1} │ {first + 2}" in text
        for key in ("Boundary", "Move", "Tensor", "Exclude", "Pin", "Undo", "Write", "Quit"):
            assert key in text.splitlines()[-1]
        await press(pilot, "right", "minus")
        assert editor.cursor.stage == 1
        await press(pilot, *("u" for _ in editor.state.past))
        assert plan_to_toml(editor.state.plan) == plan_to_toml(PLAN)
        await press(pilot, "ctrl+r")
        assert editor.state.plan != PLAN


async def test_groups_hosts_and_settings_by_their_keys(path: Path) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        editor = await opened(app, pilot, path)
        await press(pilot, "t")
        assert len(editor.state.plan.replicas[0].stages[0].shards) == 2
        assert "r0s0t1" in screen_text(app)
        await press(pilot, "greater_than_sign")
        assert "KV heads of stage 0.0: 5:3" in screen_text(app)
        await press(pilot, "u", "u", "down", "x")
        gone = PLAN.replicas[0].stages[1].shards[0].host
        assert gone not in editor.state.plan.hosts
        assert f"✗ kept out: {gone}" in screen_text(app)
        await press(pilot, "u", "down", "down", "p")
        assert "d" in editor.state.plan.hosts
        assert "⊙ pinned: d" in screen_text(app)
        await press(pilot, "u", "s", *"context=1024", "enter")
        assert editor.state.plan.serving.context == 1024
        assert editor.focused is None, "keys are the editor's again"
        await press(pilot, "s", *"batch=4000", "enter")
        assert "✗ 3 problems: not to be written" in screen_text(app)
        await press(pilot, "w")
        assert app.screen is editor
        assert any("short: its shard takes" in notice.message for notice in app._notifications)
        await press(pilot, "u", "down", "down", "n")
        assert len(editor.state.plan.replicas[0].stages) == 4
        await press(pilot, "up", "d")
        assert len(editor.state.plan.replicas[0].stages) == 3


async def test_a_file_is_written_under_a_name_and_never_replaced_unasked(path: Path) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        editor = await opened(app, pilot, path)
        await press(pilot, "plus", "w")
        assert isinstance(app.screen, FileNameScreen)
        assert app.screen.query_one(Input).value == str(path)
        await press(pilot, "enter")
        assert isinstance(app.screen, ConfirmScreen)
        await press(pilot, "enter")
        assert plan_in(path) == PLAN, "cancel has the focus"
        await press(pilot, "w")
        app.screen.query_one(Input).value = str(path.with_name("other.toml"))
        await press(pilot, "enter")
        assert plan_in(path.with_name("other.toml")) == editor.state.plan
        assert "written to" in screen_text(app)
        assert not editor.is_unsaved
        await press(pilot, "plus", "w", "enter")
        await press(pilot, "right", "enter")
        assert plan_in(path.with_name("other.toml")) == editor.state.plan
        await press(pilot, "escape")
        assert isinstance(app.screen, PlansScreen)
        assert app.screen.choice is not None
        assert app.screen.choice.plan == editor.state.plan, "what was written is previewed, and can be applied"


async def test_leaving_asks_where_edits_would_be_lost(path: Path) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        editor = await opened(app, pilot, path)
        await press(pilot, "plus")
        for key in ("escape", "2", "q"):
            await press(pilot, key)
            assert is_asking(app)
            assert "without writing chat?" in screen_text(app)
            await press(pilot, "escape")
            assert shown(app) is editor
        await press(pilot, "1")
        await press(pilot, "q")
        assert is_asking(app), "from any view"
        await press(pilot, "escape", "2")
        assert shown(app) is editor
        await press(pilot, "escape")
        await press(pilot, "right", "enter")
        assert isinstance(shown(app), PlansScreen)


async def test_computing_is_no_business_of_the_screens_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    gate = threading.Event()

    def slow(state: EditorState, action: Action, basis: Basis) -> EditorState:
        threads.append(threading.get_ident())
        assert gate.wait(20)
        return perform(state, action, basis)

    monkeypatch.setattr("odctl.tui.screens.plan_editor.perform", slow)
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        editor = await opened(app, pilot, path)
        await pilot.press("plus", "plus", "plus", "plus", "down")
        await pilot.pause()
        assert editor.is_busy
        assert editor.cursor.row == 1, "the cursor moves meanwhile"
        assert "↻ computing" in screen_text(app)
        gate.set()
        await settle(pilot)
        first = PLAN.replicas[0].stages[0].layers[1]
        assert editor.state.plan.replicas[0].stages[0].layers == (0, first + 4)
        assert len(threads) == 2, "keys that waited became one move"
    assert threading.get_ident() not in threads


async def test_a_plan_that_cannot_be_edited_says_why(path_of_another_model: Path) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.run_command(f"plan {path_of_another_model}")
        await settle(pilot)
        app.run_command("edit")
        await settle(pilot)
        assert isinstance(app.screen, PlansScreen)
        assert any("plan anew for the model as it is now" in notice.message for notice in app._notifications)
        app.run_command("set batch=2")
        await settle(pilot)
        assert any("open a plan's editor first" in notice.message for notice in app._notifications)
