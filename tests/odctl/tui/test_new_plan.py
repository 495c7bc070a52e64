"""A new plan by keys: a model chosen, words typed and judged, the plan previewed, written, applied or lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Button, Input, Static

from agent.errors import FleetError
from agent.planner.file import plan_from_toml
from agent.planner.plan import Plan
from agent.wire.agent import ModelHolding
from odctl.planning import PlanAsk
from odctl.tui.app import OdctlApp
from odctl.tui.feed import Feed
from odctl.tui.model.plans import NEW
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.fleet import FleetScreen
from odctl.tui.screens.models import ModelsScreen
from odctl.tui.screens.new_plan import NewPlanScreen
from odctl.tui.screens.plans import PlansScreen
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle

both_sizes = pytest.mark.parametrize("size", SIZES)
DIGEST = "d1" * 32


class ScriptedPlanner:
    """Notes what was asked, and answers with the frozen fleet's plan under the asked name."""

    def __init__(self, error: FleetError | None = None) -> None:
        self.asked: list[PlanAsk] = []
        self._error = error

    async def make(self, feed: Feed, ask: PlanAsk) -> tuple[Plan, tuple[str, ...]]:  # noqa: ARG002 - the Protocol's
        self.asked.append(ask)
        if self._error is not None:
            raise self._error
        return msgspec.structs.replace(frozen.plan(), name=ask.name or "fresh"), ("gpu03",)


def app_with(planner: ScriptedPlanner) -> OdctlApp:
    return make_app(frozen.FrozenFeed(frozen.snapshot()), planner=planner)


def holding(name: str, **changes: object) -> ModelHolding:
    held = ModelHolding(
        host="gpu01",
        name=name,
        path=f"/models/{name}",
        digest=DIGEST,
        family="llama",
        num_parameters=8_000_000_000,
        size_bytes=16_000_000_000,
        is_complete=True,
        held_bytes=16_000_000_000,
    )
    return msgspec.structs.replace(held, **changes)


def noticed(app: OdctlApp, text: str) -> bool:
    return any(text in f"{notice.title} {notice.message}" for notice in app._notifications)


async def type_words(pilot: Pilot[None], text: str) -> NewPlanScreen:
    dialog = pilot.app.screen
    assert isinstance(dialog, NewPlanScreen)
    dialog.query_one("#ask", Input).value = text
    await settle(pilot)
    return dialog


async def make_plan(app: OdctlApp, pilot: Pilot[None], text: str) -> None:
    """By command, as it is asked for first."""
    app.run_command(f"new {text}")
    await settle(pilot)
    await pilot.press("enter")
    await settle(pilot)


@both_sizes
async def test_a_model_is_planned_from_its_row_and_the_plan_is_previewed(size: tuple[int, int]) -> None:
    planner = ScriptedPlanner()
    app = app_with(planner)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("2", "n")
        await settle(pilot)
        screen = app.screen
        assert isinstance(screen, ModelsScreen)
        assert noticed(app, "choose a model")
        await pilot.press("p")
        assert noticed(app, "no model to plan")
        screen._answers = {"gpu01": (holding("half", is_complete=False), holding("llama-8b", digest=DIGEST))}
        screen.redraw()
        await settle(pilot)
        await pilot.press("home", "p")
        assert noticed(app, "gpu01 has a part of it only")
        await pilot.press("down", "p")
        await settle(pilot)
        assert isinstance(app.screen, NewPlanScreen)
        text = screen_text(app)
        assert "Plan llama-8b" in text
        assert "for latency, every strategy competes, 1 replica over all hosts" in text
        await pilot.press("enter")
        await settle(pilot)
        assert [(asked.model, asked.objective) for asked in planner.asked] == [(DIGEST, "latency")]
        assert isinstance(app.screen, PlansScreen)
        assert noticed(app, "planned without gpu03: no answer")
        assert "not written yet: w writes it" in screen_text(app)


@both_sizes
async def test_words_are_judged_while_they_are_typed(size: tuple[int, int]) -> None:
    planner = ScriptedPlanner()
    app = app_with(planner)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        app.run_command("new /models/m objective=throughput")
        await settle(pilot)
        assert "for throughput" in screen_text(app), "words after the model are where one goes on from"
        dialog = await type_words(pilot, "contxt=5")
        assert "did you mean `context`?" in " ".join(screen_text(app).split())
        assert dialog.query_one("#confirm", Button).disabled
        await pilot.press("enter")
        await settle(pilot)
        assert app.screen is dialog
        assert not planner.asked
        await type_words(pilot, "context=4096 batch=2 hosts=gpu01 replicas=max")
        said = str(dialog.query_one("#ask-words", Static).content)
        assert said.splitlines() == [
            "for latency, every strategy competes, as many replicas as fit over hosts gpu01",
            "2 sequences of up to 4,096 tokens, served at 127.0.0.1:11434",
        ]
        await pilot.press("escape")
        await settle(pilot)
        assert not planner.asked


async def test_marked_hosts_are_what_is_planned_over() -> None:
    planner = ScriptedPlanner()
    app = app_with(planner)
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        app.screen.table.move_to("gpu01")
        await pilot.press("space", "d")
        await settle(pilot)
        app.screen.table.move_to("cpu01/cpu")
        await pilot.press("space")
        await settle(pilot)
        assert app.marked_hosts == {"gpu01", "cpu01"}, "a device's row marks its host"
        await make_plan(app, pilot, "m")
        assert planner.asked[0].hosts == "cpu01,gpu01"


async def test_why_there_is_no_plan_is_said_and_nothing_is_lost() -> None:
    planner = ScriptedPlanner(FleetError("E601", "needs 40 GB more", hint="quantisation=int4"))
    app = app_with(planner)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await make_plan(app, pilot, "m")
        assert noticed(app, "there is no plan needs 40 GB more (quantisation=int4)")
        assert app.preview is None


async def test_a_new_plan_is_written_asked_about_before_it_is_lost_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = app_with(ScriptedPlanner())
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        await make_plan(app, pilot, "m name=other")
        await pilot.press("2")
        assert isinstance(app.screen, PlansScreen), "its own number leads nowhere else, and asks nothing"
        await pilot.press("q")
        assert isinstance(app.screen, ConfirmScreen)
        assert "Quit without writing other?" in screen_text(app)
        await pilot.press("escape", "1", "minus")
        await settle(pilot)
        assert app.preview is not None, "the last view is the new plan, which no file is read for"
        assert app.preview.origin == NEW
        assert not app.preview_error
        await pilot.press("w")
        await settle(pilot)
        await pilot.press("enter")
        await settle(pilot)
        assert plan_from_toml((tmp_path / "other.toml").read_text(), file="other.toml").name == "other"
        assert app.preview.origin == "other.toml"
        await pilot.press("q")
        await pilot.pause()
    assert not app.is_running


def test_the_app_is_opened_without_what_makes_plans_speaks_to_hosts_or_is_shown_later() -> None:
    script = (
        "import sys, odctl.tui.app\n"
        "heavy = 'numpy agent.planner.make agent.planner.edit agent.planner.compare asyncssh httpx'.split()\n"
        "heavy += 'odctl.apply odctl.bench odctl.model_source odctl.tui.screens.plans importlib.metadata'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.stdout.strip() == "[]"
