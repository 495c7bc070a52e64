"""Moving about: keys, commands, filter, sort, help, read-only, and what a bad inventory does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from textual.dom import DOMNode
from textual.widgets import Button

from agent.facts.cluster import ClusterFacts
from agent.facts.families import FAMILIES
from agent.facts.model import ModelSpec, RopeSpec
from agent.planner.plan import Plan
from agent.wire.agent import ApplyEvent, ModelManifest
from agent.wire.history import Cause
from odctl.apply import ApplyPreview
from odctl.tui.applying import OnEvent
from odctl.tui.feed import Feed
from odctl.tui.model.index import Sort
from odctl.tui.screens.apply import ApplyScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.fleet import FleetScreen
from odctl.tui.screens.help import HelpScreen
from odctl.tui.widgets.lines import LinesView
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle

SPEC = ModelSpec(
    name="llama-8b",
    family=FAMILIES[0],
    num_layers=32,
    hidden_size=4096,
    intermediate_size=11008,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    vocab_size=32000,
    max_context=8192,
    rms_norm_eps=1e-5,
    rope=RopeSpec(theta=10000.0),
    tie_word_embeddings=False,
    dtype="bfloat16",
    num_parameters=8_000_000_000,
)


class ScriptedApplier:
    """Applies by saying these events."""

    def __init__(self, events: list[ApplyEvent]) -> None:
        self.events = events
        self.applied: list[Plan] = []
        self.causes: list[tuple[Cause, str]] = []
        self.aborted: list[Plan] = []

    async def preview(self, feed: Feed, plan: Plan) -> ApplyPreview:  # noqa: ARG002 - the Protocol's
        return ApplyPreview(
            plan=plan,
            plan_hash="f" * 64,
            running=frozen.deployment().record,
            is_noop=False,
            lines=("~ gpu01/cuda:0: layers 0-19 -> layers 0-23",),
            manifest=ModelManifest(digest="d" * 64, files=(), spec=SPEC),
            facts=ClusterFacts(cluster="lab", hosts=()),
        )

    async def apply(
        self,
        feed: Feed,  # noqa: ARG002 - the Protocol's
        preview: ApplyPreview,
        on_event: OnEvent,
        *,
        cause: Cause = "apply",
        reason: str = "",
    ) -> ApplyEvent:
        self.applied.append(preview.plan)
        self.causes.append((cause, reason))
        for event in self.events[:-1]:
            await on_event(event)
        return self.events[-1]

    async def abort(self, feed: Feed, plan: Plan) -> str:  # noqa: ARG002
        self.aborted.append(plan)
        return "rolling back"


def events() -> list[ApplyEvent]:
    def event(phase: str, state: str, at_s: float) -> ApplyEvent:
        return msgspec.convert({"phase": phase, "state": state, "at_s": at_s, "generation": 4}, ApplyEvent)

    return [
        event("prepare", "started", 1.0),
        event("prepare", "finished", 2.0),
        event("fetch", "started", 2.0),
        event("done", "finished", 9.0),
    ]


async def test_the_cursor_stays_on_its_host_through_sorts_filters_and_losses() -> None:
    feed = frozen.FrozenFeed(frozen.snapshot())
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        table = app.screen.table
        await pilot.press("j", "j")
        assert table.cursor_key == "cpu03"
        app.screen.set_sort("state")
        await settle(pilot)
        assert (table.cursor_key, table.shown_keys[0]) == ("cpu03", "cpu03")
        await pilot.press("O")
        await settle(pilot)
        assert (table.cursor_key, table.shown_keys[-1]) == ("cpu03", "cpu03")
        app.screen.set_filter("!cpu01")
        await settle(pilot)
        assert table.cursor_key == "cpu03"
        app.screen.set_filter("")
        without = tuple(host for host in frozen.hosts() if host.name != "cpu03")
        feed.push(frozen.snapshot(hosts=without))
        await settle(pilot)
        assert table.cursor_key == "cpu04", "the lost row was the last: the cursor is on the new last one"
        assert "cpu03" not in table.shown_keys


async def test_a_filter_works_while_it_is_typed_and_escape_clears_it() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        await pilot.press("slash", *"gpu")
        await settle(pilot)
        assert list(app.screen.table.shown_keys) == ["gpu01"]
        assert "1 of 6" in screen_text(app)
        await pilot.press("enter")
        await settle(pilot)
        assert app.screen.focused is app.screen.table
        await pilot.press("escape")
        await settle(pilot)
        assert len(app.screen.table.shown_keys) == 6
        await pilot.press("slash", *"(", "enter")
        await settle(pilot)
        assert "▲ filter" in screen_text(app)
        assert len(app.screen.table.shown_keys) == 6, "a filter that means nothing hides nothing"


async def test_commands_go_where_they_say() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("colon", *"models", "enter")
        await settle(pilot)
        assert app.current_mode == "models"
        await pilot.press("minus")
        await settle(pilot)
        assert app.current_mode == "fleet"
        await pilot.press("colon", *"devices gpu", "enter")
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        assert app.screen.table.shown_keys[0].startswith("gpu01/")
        await pilot.press("colon", *"sort temp", "enter")
        await settle(pilot)
        assert app.screen.sort == Sort(column="temp", is_descending=True)
        await pilot.press("colon", *"nonsense", "enter")
        await settle(pilot)
        assert any("no command" in notice.message for notice in app._notifications)


@pytest.mark.parametrize("size", SIZES)
async def test_help_lists_every_live_binding_and_command(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("question_mark")
        await settle(pilot)
        assert isinstance(app.screen, HelpScreen)
        text = "\n".join("".join(span.text for span in spans) for spans in app.screen.query_one(LinesView).lines)
        for said in ("Filter", "Devices", "Quit", "Fleet", "Logs", ":plan NAME|FILE", "rack=r03"):
            assert said in text
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)


def test_every_binding_of_ours_has_an_id_of_its_own_and_a_description() -> None:
    owners: list[type[DOMNode]] = []
    waiting: list[type[DOMNode]] = [DOMNode]
    while waiting:
        found = waiting.pop().__subclasses__()
        owners += [owner for owner in found if owner.__module__.startswith("odctl.tui.")]
        waiting += found
    bindings = [binding for owner in owners for binding in vars(owner).get("BINDINGS", [])]
    assert len(bindings) > 60
    assert all(binding.id and binding.description for binding in bindings)
    ids = [binding.id for binding in bindings]
    assert len(ids) == len(set(ids)), sorted(ids)


async def test_a_read_only_session_does_not_even_ask_to_apply() -> None:
    applier = ScriptedApplier(events())
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await settle(pilot)
        await pilot.press("a")
        await settle(pilot)
        assert not isinstance(app.screen, ConfirmScreen)
        assert any("read-only" in notice.message for notice in app._notifications)
    assert applier.applied == []


@pytest.mark.parametrize("size", SIZES)
async def test_apply_asks_with_cancel_focused_and_then_shows_its_phases(size: tuple[int, int]) -> None:
    applier = ScriptedApplier(events())
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=size) as pilot:
        await pilot.press("2", "ctrl+x")
        await settle(pilot)
        assert "RW" in screen_text(app)
        await pilot.press("a")
        await settle(pilot)
        assert isinstance(app.screen, ConfirmScreen)
        assert isinstance(app.screen.focused, Button)
        assert app.screen.focused.id == "cancel"
        assert "layers 0-19 -> layers 0-23" in screen_text(app)
        await pilot.press("enter")
        await settle(pilot)
        assert applier.applied == [], "enter on a fresh dialog changes nothing"
        await pilot.press("a")
        await settle(pilot)
        await pilot.press("right", "enter")
        await settle(pilot)
        assert applier.applied == [], "two of six hosts: a yes is not enough"
        await pilot.press("a")
        await settle(pilot)
        await pilot.press("tab", *"chat", "enter")
        await settle(pilot)
        assert [plan.name for plan in applier.applied] == ["chat"]
        assert isinstance(app.screen, ApplyScreen)
        text = screen_text(app)
        assert "● serving" in text
        assert "generation 4" in text
        await pilot.press("escape", "ctrl+x")
        await settle(pilot)
        assert "RO" in screen_text(app)


async def test_a_stale_plan_is_refused_with_the_reason() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2", "ctrl+x", "a")
        await settle(pilot)
        assert not isinstance(app.screen, ConfirmScreen)
        assert any("the plan is stale" in notice.message for notice in app._notifications)


async def test_leaving_stops_the_feed() -> None:
    feed = frozen.FrozenFeed(frozen.snapshot())
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("q")
    assert feed.is_stopped


def test_a_missing_inventory_is_told_before_the_screen_opens(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    done = subprocess.run(
        [sys.executable, "-m", "odctl", "-i", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert f"there is no {path}" in done.stderr
    assert "odctl init" in done.stderr
    assert done.stdout == ""
