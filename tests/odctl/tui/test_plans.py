"""Plans on the screen: the list, the preview, comparing, the history and the way back, key by key at both sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.screen import Screen

from agent.errors import FleetError
from agent.planner.file import plan_to_toml
from odctl.tui.app import OdctlApp
from odctl.tui.screens.apply import ApplyScreen
from odctl.tui.screens.compare import CompareScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.plan_history import PlanHistoryScreen
from odctl.tui.screens.plans import PlansScreen
from odctl.tui.widgets.lines import LinesView
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.agreeing import agree, question
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.histories import FIRST, FeedWithHistory, history
from tests.odctl.tui.many_plans import chain
from tests.odctl.tui.reading import SIZES, screen_text, settle
from tests.odctl.tui.test_app import ScriptedApplier, events

both_sizes = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: two plans, a broken one, and files that are no plans."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "even.toml").write_text(plan_to_toml(frozen.plan(split=16)))
    (tmp_path / "other.toml").write_text(plan_to_toml(frozen.plan("other", split=24)))
    (tmp_path / "broken.toml").write_text(plan_to_toml(frozen.plan()).replace("batch = 8", "bach = 8"))
    (tmp_path / "inventory.toml").write_text('[cluster]\nname = "lab"\n')
    (tmp_path / "notes.toml").write_text("this is no TOML")
    return tmp_path


async def press(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settle(pilot)


async def at_plans(app: OdctlApp, pilot: Pilot[None]) -> PlansScreen:
    await settle(pilot)
    await press(pilot, "2")
    assert isinstance(app.screen, PlansScreen)
    return app.screen


def page_text(app: OdctlApp) -> str:
    """The page in full, also what is scrolled away."""
    view = app.screen.query_one(LinesView)
    assert view.virtual_size.height == len(view.lines)
    return "\n".join("".join(span.text for span in spans) for spans in view.lines)


def noticed(app: OdctlApp, said: str) -> bool:
    return any(said in notice.message or said in notice.title for notice in app._notifications)


def shown(app: OdctlApp) -> Screen[Any]:
    return app.screen


# --- the list and the preview -------------------------------------------------------------------------


@both_sizes
async def test_the_list_has_what_runs_and_the_plans_of_the_directory(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        screen = await at_plans(app, pilot)
        assert screen.table.shown_keys == ("run:chat", "file:broken.toml", "file:even.toml", "file:other.toml")
        text = screen_text(app)
        for said in ("● serving, gen 3", "✗ no sound plan", "○ file", "● serving, generation 3"):
            assert said in text
        await press(pilot, "down")
        assert "error[E104]" in screen_text(app)
        await press(pilot, "a")
        assert noticed(app, "this file is no plan: mend it first")
        await press(pilot, "down")
        text = screen_text(app)
        assert "preview of even.toml" in text
        assert "16 of" not in text.splitlines()[0]
        assert "against running generation 3: 4 of 32 layers move" in page_text(app)
        await press(pilot, "less_than_sign", "less_than_sign")
        assert screen.chosen_key == "run:chat"
        assert screen.table.cursor_key == "run:chat", "the list and the page are of the same plan"


@both_sizes
async def test_a_preview_tells_all_of_it_and_what_does_not_fit_is_scrolled_to(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await at_plans(app, pilot)
        await press(pilot, "down", "down")
        page = page_text(app)
        for said in (
            "RANK", "NEEDS / USABLE", "PREDICTED", "time to first token", "not in its file, of an earlier release",
            "CHECKS", "✓ hosts", "✓ memory", "◀ bottleneck: replica 0 stage 1", "why   cpu01 takes 12 layers",
        ):  # fmt: skip
            assert said in page, said
        for _ in range(6):
            await press(pilot, "pagedown")
        assert "why   cpu01 takes 12 layers" in screen_text(app), "the last line can be reached"
        await press(pilot, "enter")
        assert not app.screen.query_one("#plans").display
        await press(pilot, "escape")
        assert app.screen.query_one("#plans").display


@both_sizes
@pytest.mark.parametrize(("num_stages", "num_replicas"), [(80, 1), (12, 4)])
async def test_a_large_plan_folds_and_unfolds(
    size: tuple[int, int], num_stages: int, num_replicas: int, folder: Path
) -> None:
    (folder / "large.toml").write_text(plan_to_toml(chain(num_stages, num_replicas=num_replicas)))
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        app.run_command("plan large.toml")
        await settle(pilot)
        folded = page_text(app)
        assert f"s1-{num_stages - 2}" in folded
        assert f"×{num_stages - 2} h001" in folded
        assert "✗ hosts" in folded
        assert "the inventory does not have" in folded
        if num_replicas > 1:
            assert f"×{num_replicas} alike" in folded
        await press(pilot, "x")
        unfolded = page_text(app)
        last = f"r{num_replicas - 1}s{num_stages - 1}t0"
        assert last in unfolded
        view = app.screen.query_one(LinesView)
        view.scroll_to(y=next(y for y, row in enumerate(unfolded.splitlines()) if last in row), animate=False)
        await settle(pilot)
        assert last in screen_text(app)
        await press(pilot, "x")
        assert page_text(app) == folded


async def test_files_are_read_again_when_one_comes_back_or_asks(folder: Path) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await at_plans(app, pilot)
        (folder / "broken.toml").unlink()
        (folder / "new.toml").write_text(plan_to_toml(frozen.plan("new")))
        await press(pilot, "r")
        assert screen.table.shown_keys == ("run:chat", "file:even.toml", "file:new.toml", "file:other.toml")


# --- comparing ----------------------------------------------------------------------------------------


@both_sizes
async def test_marked_plans_are_compared_and_either_can_be_applied(size: tuple[int, int]) -> None:
    applier = ScriptedApplier(events())
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), applier=applier)
    async with app.run_test(size=size) as pilot:
        screen = await at_plans(app, pilot)
        await press(pilot, "c")
        assert noticed(app, "mark plans with space")
        await press(pilot, "space", "down", "down", "space")
        assert screen.marked == ("run:chat", "file:even.toml")
        assert "◆" in screen_text(app)
        await press(pilot, "c")
        assert isinstance(shown(app), CompareScreen)
        page = page_text(app)
        for said in ("A  chat", "B  chat", "even.toml", "4 of 32 layers move", "ΔB", "VERDICT", "risk B"):
            assert said in page, said
        for key in ("Choose", "Swap", "Apply chosen"):
            assert key in screen_text(app)
        await press(pilot, "a")
        assert noticed(app, "read-only")
        await press(pilot, "ctrl+x", "a")
        await agree(pilot, name="chat")
        await settle(pilot)
        assert [plan.replicas[0].stages[0].layers for plan in applier.applied] == [(0, 16)]
        assert isinstance(shown(app), ApplyScreen)
        await press(pilot, "escape")
        compare = shown(app)
        assert isinstance(compare, CompareScreen)
        await press(pilot, "tab")
        assert compare.choice.status is not None, "the other one"
        await press(pilot, "a")
        await agree(pilot, name="chat")
        await settle(pilot)
        assert [plan.replicas[0].stages[0].layers for plan in applier.applied] == [(0, 16), (0, 20)]


@both_sizes
async def test_three_plans_by_command_and_the_bars_follow_the_chosen_one(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await press(pilot, "colon", *"compare chat even.toml other.toml", "enter")
        screen = shown(app)
        assert isinstance(screen, CompareScreen)
        assert "ΔB" in page_text(app)
        await press(pilot, "tab")
        assert screen.chosen == 2
        assert "ΔC" in page_text(app)
        await press(pilot, "s")
        assert [choice.origin for choice in screen.choices] == ["other.toml", "even.toml", "running"]
        await press(pilot, "d")
        assert screen.shows_all_hosts
        await press(pilot, "colon", "tab", "escape", "escape")
        assert screen.chosen == 2, "tab is the prompt's while that is open"
        assert isinstance(shown(app), PlansScreen)


async def test_what_cannot_be_compared_says_why() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        for text, said in (
            ("compare chat none.toml", "cannot read none.toml: No such file or directory"),
            ("compare chat broken.toml", "unknown key"),
            ("compare chat", "say which: :compare A B"),
            ("compare chat chat chat chat chat", "compare takes 2 to 4"),
        ):
            app.clear_notifications()
            app.run_command(text)
            await settle(pilot)
            assert noticed(app, said), text
            assert not isinstance(shown(app), CompareScreen)


async def test_a_comparison_goes_on_when_its_deployment_does() -> None:
    feed = frozen.FrozenFeed(frozen.snapshot())
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.run_command("compare chat even.toml")
        await settle(pilot)
        feed.push(frozen.snapshot(deployments=(frozen.deployment(status=frozen.status(generation=4)),)))
        await settle(pilot)
        assert "chat runs generation 4 by now; A is its generation 3" in screen_text(app)
        feed.push(frozen.snapshot(hosts=frozen.hosts()[1:]))
        await settle(pilot)
        assert isinstance(shown(app), CompareScreen), "a host that is gone takes no screen with it"


# --- history and rollback -----------------------------------------------------------------------------


@both_sizes
async def test_the_history_shows_predicted_against_measured(size: tuple[int, int]) -> None:
    app = make_app(FeedWithHistory(frozen.snapshot(), history()))
    async with app.run_test(size=size) as pilot:
        await at_plans(app, pilot)
        await press(pilot, "h")
        screen = shown(app)
        assert isinstance(screen, PlanHistoryScreen)
        text = screen_text(app)
        for said in ("3 generations of chat", "● current", "○ replaced", "36 ms ×1.16", "chat generation 3"):
            assert said in text, said
        await press(pilot, "down", "down")
        page = page_text(app)
        assert "chat generation 1" in page
        assert "measured over predicted" in page
        await press(pilot, "c")
        assert isinstance(shown(app), CompareScreen)
        assert "4 of 32 layers move" in page_text(app)
        await press(pilot, "escape")
        assert shown(app) is screen
        await press(pilot, "escape")
        assert isinstance(shown(app), PlansScreen)


@both_sizes
async def test_a_rollback_asks_first_and_says_so_in_the_history(size: tuple[int, int]) -> None:
    applier = ScriptedApplier(events())
    app = make_app(FeedWithHistory(frozen.snapshot(), history()), applier=applier)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        app.run_command("history chat")
        await settle(pilot)
        await press(pilot, "down", "down", "b")
        assert noticed(app, "read-only")
        assert not isinstance(shown(app), ConfirmScreen)
        await press(pilot, "ctrl+x", "b")
        question(pilot)
        assert "Roll chat back to generation 1" in screen_text(app)
        await press(pilot, "enter")
        assert applier.applied == [], "enter on a fresh dialog changes nothing"
        await press(pilot, "b")
        await agree(pilot, name="chat")
        await settle(pilot)
        assert applier.applied == [FIRST]
        assert applier.causes == [("rollback", "to generation 1")]
        assert isinstance(shown(app), ApplyScreen)
        assert "roll back" in screen_text(app).splitlines()[0]


async def test_a_history_that_lacks_something_says_what() -> None:
    missing = {"cpu04": FleetError("E206", "no agent answers")}
    feed = FeedWithHistory(frozen.snapshot(), history(knows_first=False, unreachable=missing))
    app = make_app(feed)
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        await press(pilot, "ctrl+x")
        app.run_command("history chat")
        await settle(pilot)
        assert "not told by cpu04: some may lack" in screen_text(app)
        await press(pilot, "down", "down", "b")
        assert noticed(app, "is in no journal any more: apply its file")
        await press(pilot, "escape")
        app.run_command("history nothing")
        await settle(pilot)
        assert "no journal knows a generation of nothing" in screen_text(app)


async def test_a_fleet_that_tells_no_history_is_asked_again() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await at_plans(app, pilot)
        await press(pilot, "h")
        assert "no agent answers on this host" in screen_text(app)
        assert "r asks again" in screen_text(app)


# --- read-only, by whatever way -----------------------------------------------------------------------

Way = Callable[[OdctlApp, Pilot[None]], Any]


async def by_key(app: OdctlApp, pilot: Pilot[None]) -> None:
    await press(pilot, "2")
    await press(pilot, "a")


async def by_command(app: OdctlApp, pilot: Pilot[None]) -> None:
    await press(pilot, "2")
    await press(pilot, "colon", *"apply", "enter")


async def by_file(app: OdctlApp, pilot: Pilot[None]) -> None:
    await press(pilot, "colon", *"apply even.toml", "enter")


async def by_palette(app: OdctlApp, pilot: Pilot[None]) -> None:
    await press(pilot, "2")
    for command in app.get_system_commands(app.screen):
        if command.title.startswith(":apply"):
            command.callback()
            await settle(pilot)
            await press(pilot, "enter")


async def by_comparison(app: OdctlApp, pilot: Pilot[None]) -> None:
    app.run_command("compare chat even.toml")
    await settle(pilot)
    await press(pilot, "a")


async def by_history(app: OdctlApp, pilot: Pilot[None]) -> None:
    app.run_command("history chat")
    await settle(pilot)
    await press(pilot, "b")


async def by_abort(app: OdctlApp, pilot: Pilot[None]) -> None:
    await press(pilot, "2")
    await press(pilot, "A")


@pytest.mark.parametrize("way", [by_key, by_command, by_file, by_palette, by_comparison, by_history, by_abort])
async def test_a_read_only_session_changes_nothing_by_any_way(way: Way) -> None:
    applier = ScriptedApplier(events())
    under_way = frozen.deployment(status=frozen.status(apply_phase="fetch"))
    app = make_app(FeedWithHistory(frozen.snapshot(deployments=(under_way,)), history()), applier=applier)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await way(app, pilot)
        assert not isinstance(shown(app), ConfirmScreen)
        assert way is by_palette or noticed(app, "read-only"), "a palette may just not offer it"
    assert (applier.applied, applier.aborted) == ([], [])
