"""Every screen at both sizes, over a fleet that stands still."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.planner.file import plan_to_toml
from odctl.fleet import FleetSnapshot
from odctl.tui.model.conversation import Piece
from odctl.tui.screens.chat import ChatScreen
from odctl.tui.screens.fleet import FleetScreen
from odctl.tui.screens.host import HostScreen
from odctl.tui.widgets.fleet_table import FleetTable
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle

both_sizes = pytest.mark.parametrize("size", SIZES)


@both_sizes
async def test_the_fleet_shows_every_host_with_glyph_word_and_reason(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        text = screen_text(app)
    for said in ("● live", "▲ stale 12s", "✗ lost", "✗ unreachable", "○ connecting", "6 hosts", "RO", "▲1 ✗3 ○1"):
        assert said in text
    assert "no agent answers on this host" in text, "a host without figures shows its reason instead"
    if size[0] >= 140:
        assert "cuda:2 fell off the bus" in text


@both_sizes
async def test_devices_have_rows_and_reasons_of_their_own(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await pilot.press("d")
        await settle(pilot)
        text = screen_text(app)
    assert "cuda:0" in text
    assert "GPU is lost" in text
    assert "312/450W" in text


@both_sizes
async def test_enter_opens_the_host_and_escape_leads_back(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("G", "enter")
        await settle(pilot)
        assert isinstance(app.screen, HostScreen)
        text = screen_text(app)
        assert "gpu01" in text
        assert "driver 570.148" in text
        await pilot.press("greater_than_sign")
        await settle(pilot)
        assert app.screen.host == "cpu01"
        await pilot.press("escape")
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        assert app.screen.table.cursor_key == "gpu01", "the cursor stands where it stood"


@both_sizes
async def test_a_running_plan_is_shown_with_its_layers(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await pilot.press("2")
        await settle(pilot)
        text = screen_text(app)
    assert "● serving, generation 3" in text
    assert "gpu01/cuda:0 " in text
    assert "◀" in text
    assert "MEASURED" in text


@both_sizes
async def test_a_plan_file_is_previewed(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(frozen.plan("new")))
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        app.run_command(f"plan {path}")
        await settle(pilot)
        text = screen_text(app)
    assert "preview of" in text
    assert "new is not deployed: all of it is new" in text


async def test_a_broken_plan_file_shows_its_problems_at_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(frozen.plan()).replace("batch = 8", "bach = 8"))
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        app.run_command(f"plan {path}")
        await settle(pilot)
        text = screen_text(app)
        assert "error[E104]" in text
        assert "`batch`" in text
        app.run_command(f"plan {tmp_path / 'none.toml'}")
        await settle(pilot)
        assert "cannot read" in screen_text(app)


@both_sizes
async def test_deployments_show_speed_queue_and_ranks(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await pilot.press("3")
        await settle(pilot)
        text = screen_text(app)
    for said in ("57.5", "440 ms", "running 2/8, queued 1", "layers 0-19", "layers 20-31", "● linked"):
        assert said in text


@both_sizes
async def test_faults_show_open_ones_first_with_evidence(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await pilot.press("4")
        await settle(pilot)
        text = screen_text(app)
    assert text.index("✗ open") < text.index("█ healed")
    assert "GPU_IS_LOST" in text
    assert "1.50 s" in text


@both_sizes
async def test_an_answer_streams_into_the_chat(size: tuple[int, int]) -> None:
    feed = frozen.FrozenFeed(frozen.snapshot())
    feed.pieces = [Piece(text="Hello "), Piece(text="there"), Piece(is_done=True, num_tokens=2)]
    app = make_app(feed)
    async with app.run_test(size=size) as pilot:
        await pilot.press("7")
        await settle(pilot)
        await pilot.press("i", *"hi/you:", "enter")
        await settle(pilot)
        text = screen_text(app)
        assert "hi/you:" in text, "keys that are commands elsewhere are letters here"
        assert "Hello there" in text
        assert "2 tokens" in text
        assert isinstance(app.screen, ChatScreen)
        assert app.screen.conversation.history == (("user", "hi/you:"), ("assistant", "Hello there"))
        await pilot.press("escape", "1")
        await settle(pilot)
        assert app.current_mode == "fleet"


async def test_a_gateway_that_refuses_is_said_in_the_chat() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("7")
        await settle(pilot)
        await pilot.press("i", "h", "enter")
        await settle(pilot)
        text = screen_text(app)
    assert "✗ no agent answers on this host" in text
    assert "→ start it" in text


@both_sizes
async def test_models_and_events_say_why_they_are_empty(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        await pilot.press("8")
        await settle(pilot)
        assert "no agent answers" in screen_text(app)
        await pilot.press("6")
        await settle(pilot)
        assert "gpu01: no agent answers" in screen_text(app)


@both_sizes
async def test_an_empty_fleet_says_what_to_do(size: tuple[int, int]) -> None:
    empty = frozen.snapshot(hosts=(), deployments=(), faults=())
    app = make_app(frozen.FrozenFeed(empty))
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        assert "the inventory names no hosts" in screen_text(app)
        for key, said in (("2", "no plan to show"), ("3", "nothing is deployed"), ("4", "no fault was observed")):
            await pilot.press(key)
            await settle(pilot)
            assert said in screen_text(app)
        await pilot.press("7")
        await settle(pilot)
        assert "nothing is deployed to talk to" in screen_text(app)


async def test_before_the_first_snapshot_every_screen_says_that_it_connects() -> None:
    app = make_app(frozen.FrozenFeed(None))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert "connecting" in screen_text(app)
        for key in "2347":
            await pilot.press(key)
            await settle(pilot)
            assert "○ connecting" in screen_text(app)


async def test_a_hidden_screen_does_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = frozen.FrozenFeed(frozen.snapshot())
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        fleet = app.screen
        assert isinstance(fleet, FleetScreen)
        await pilot.press("4")
        await settle(pilot)
        shown: list[object] = []
        monkeypatch.setattr(FleetTable, "show", lambda table, *_args, **_more: shown.append(table.screen))
        feed.push(frozen.snapshot(taken_at_s=frozen.NOW_S + 1))
        await settle(pilot)
    assert shown
    assert fleet not in shown


async def test_without_colour_the_states_are_still_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert app.theme == "ansi-dark"
        assert [type(found).__name__ for found in app._filters if found.enabled] == ["NoColor"]
        text = screen_text(app)
        assert "✗ lost" in text
        assert "▲ stale" in text


async def test_five_thousand_hosts_are_drawn_anew() -> None:
    base = frozen.host("base")

    def crowd(taken_at_s: float) -> FleetSnapshot:
        hosts = tuple(msgspec.structs.replace(base, name=f"h{number:05d}") for number in range(5000))
        return frozen.snapshot(hosts=hosts, taken_at_s=taken_at_s, faults=())

    app = make_app(frozen.FrozenFeed(crowd(frozen.NOW_S)))
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        app.snapshot = crowd(frozen.NOW_S + 1)
        app.redraw()
        await pilot.pause()
        assert "5,000 hosts" in screen_text(app)
