"""The fleet view by keys and mouse: map and table, groups, and a cursor that stays on its host."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot
from textual.strip import Strip

from odctl.fleet import FleetSnapshot
from odctl.tui.app import OdctlApp
from odctl.tui.model.fleet_columns import fleet_columns
from odctl.tui.model.grouped_rows import group_key
from odctl.tui.model.host_rows import HostRows
from odctl.tui.model.text import Line
from odctl.tui.screens.fleet import MAP_ABOVE_HOSTS, FleetScreen
from odctl.tui.screens.host import HostScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.heat_map import HeatMapView
from odctl.tui.widgets.lines import LinesBar
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle
from tests.simulated_fleet import SimulatedFleet

both_sizes = pytest.mark.parametrize("size", SIZES)


def simulated(num_hosts: int, *, frames: int = 1, gpus: int = 2) -> SimulatedFleet:
    return SimulatedFleet(num_hosts, gpus=gpus, frames=frames, now_s=frozen.NOW_S)


def without(snapshot: FleetSnapshot, *names: str) -> FleetSnapshot:
    kept = tuple(host for host in snapshot.hosts if host.name not in names)
    return msgspec.structs.replace(snapshot, hosts=kept)


def fleet_of(app: OdctlApp) -> FleetScreen:
    assert isinstance(app.screen, FleetScreen)
    return app.screen


async def started(pilot: Pilot[None]) -> FleetScreen:
    await settle(pilot)
    await settle(pilot)  # the map asks for another drawing when it has its size
    assert isinstance(pilot.app, OdctlApp)
    return fleet_of(pilot.app)


@both_sizes
async def test_marks_of_the_map_are_those_of_the_table(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(simulated(1024).frames[0]))
    async with app.run_test(size=size) as pilot:
        screen = await started(pilot)
        assert screen.is_map
        heat = screen.heat._map
        assert heat is not None
        first, second = heat.hosts_of(0), heat.hosts_of(1)
        await pilot.press("home", "space", "space")
        await settle(pilot)
        assert screen.table.marks == app.marked_hosts == {*first, *second}
        assert f"◆ {len(app.marked_hosts)} marked" in screen_text(app)
        assert "not shown" not in screen_text(app)
        rows = [line for line in screen_text(app).splitlines() if "◆" in line and "marked" not in line]
        assert [row.count("◆") for row in rows] == [2], "a mark takes the cell's glyph"
        await pilot.press("v")
        await settle(pilot)
        assert screen.table.chosen == tuple(sorted({*first, *second}))
        await pilot.press("v", "home", "space", "ctrl+backslash")
        await settle(pilot)
        assert not app.marked_hosts


@both_sizes
@pytest.mark.parametrize("num_hosts", [10, MAP_ABOVE_HOSTS + 1, 10_000])
async def test_home_is_a_table_for_few_hosts_and_a_map_for_many(num_hosts: int, size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(simulated(num_hosts).frames[0]))
    async with app.run_test(size=size) as pilot:
        screen = await started(pilot)
        text = screen_text(app)
        assert screen.is_map == (num_hosts > MAP_ABOVE_HOSTS)
        assert screen.focused is (screen.heat if screen.is_map else screen.table)
        assert f"{num_hosts:,} hosts" in text
        assert "sim-00001" in text
        if screen.is_map:
            for said in ("utilisation of GPUs", "○ no data ↻ healing", f"▸ {screen.heat.cursor_key}", "cell is"):
                assert said in text
        await pilot.press("v")
        screen = await started(pilot)
        assert screen.focused is (screen.heat if screen.is_map else screen.table)
        text = screen_text(app)
        assert ("HOST" in text) != screen.is_map


@both_sizes
async def test_ten_thousand_hosts_fit_the_map_and_each_trouble_is_seen(size: tuple[int, int]) -> None:
    fleet = simulated(10_000)
    app = make_app(frozen.FrozenFeed(fleet.frames[0]))
    async with app.run_test(size=size) as pilot:
        screen = await started(pilot)
        heat = screen.heat
        assert heat.virtual_size.height <= heat.map_size.height, "nothing is scrolled out of sight"
        assert "the worst of" in screen_text(app)
        marks = sum(strip.text.count("✗") for strip in map(heat.render_line, range(heat.map_size.height)))
        assert marks > 0
        await pilot.press("z")
        await started(pilot)
        assert "a cell is a host" in screen_text(app)
        assert heat.virtual_size.height > heat.map_size.height
        await pilot.press("G")
        await settle(pilot)
        assert heat.cursor_key == "sim-10000"
        assert "▸ sim-10000" in screen_text(app), "the last host is reached by a key"
        assert heat.scroll_offset.y > 0


@both_sizes
async def test_arrows_and_letters_move_over_cells_and_enter_opens_the_host(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(simulated(200).frames[0]))
    async with app.run_test(size=size) as pilot:
        screen = await started(pilot)
        heat = screen.heat
        for key, host in (("right", "sim-00002"), ("l", "sim-00003"), ("h", "sim-00002"), ("left", "sim-00001")):
            await pilot.press(key)
            await settle(pilot)
            assert heat.cursor_key == host
            assert f"▸ {host}" in screen_text(app)
        await pilot.press("j")
        below = heat.cursor_key
        assert below not in {None, "sim-00001", "sim-00002"}
        await pilot.press("k")
        assert heat.cursor_key == "sim-00001"
        await pilot.press("end")
        assert heat.cursor_key == "sim-00200"
        await pilot.press("home", "down", "up", "right", "enter")
        await settle(pilot)
        assert isinstance(app.screen, HostScreen)
        assert app.screen.host == "sim-00002"
        await pilot.press("escape")
        screen = await started(pilot)
        assert screen.heat.cursor_key == "sim-00002", "the cursor stands where it stood"


async def test_the_mouse_points_and_a_second_click_opens() -> None:
    app = make_app(frozen.FrozenFeed(simulated(200).frames[0]))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await started(pilot)
        heat = screen.heat
        assert heat._map is not None
        y, x = heat._map.arrangement.places[7]
        await pilot.hover(heat, offset=(x, y))
        await settle(pilot)
        assert heat.cursor_key == "sim-00001", "pointing moves no cursor"
        assert "▸ sim-00008" in screen_text(app)
        await pilot.click(heat, offset=(x, y))
        await settle(pilot)
        assert heat.cursor_key == "sim-00008"
        await pilot.click(heat, offset=(x, y))
        await settle(pilot)
        assert isinstance(app.screen, HostScreen)
        assert app.screen.host == "sim-00008"


async def test_the_map_s_cursor_stays_on_its_host_while_others_come_and_go() -> None:
    snapshot = simulated(200).frames[0]
    feed = frozen.FrozenFeed(snapshot)
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await started(pilot)
        heat = screen.heat
        await pilot.press(*["right"] * 9)
        assert heat.cursor_key == "sim-00010"
        feed.push(without(snapshot, "sim-00002", "sim-00003"))
        await settle(pilot)
        assert heat.cursor_key == "sim-00010"
        assert heat._map is not None
        assert heat._cursor == heat._map.cell_of("sim-00010") == 7
        feed.push(without(snapshot, "sim-00002", "sim-00003", "sim-00010"))
        await settle(pilot)
        assert heat.cursor_key == "sim-00011", "its host is gone: the cursor stays where it stood"
        assert "▸ sim-00011" in screen_text(app)
        screen.set_filter("sim-0000")
        await settle(pilot)
        assert heat.cursor_key is not None
        assert heat.cursor_key.startswith("sim-0000")
        feed.push(msgspec.structs.replace(snapshot, hosts=()))
        await settle(pilot)
        screen.set_filter("")
        await settle(pilot)
        assert "the inventory names no hosts" in screen_text(app)


async def test_the_table_s_cursor_stays_on_its_host_through_sorts_refreshes_and_groups() -> None:
    fleet = simulated(30, frames=3)
    feed = frozen.FrozenFeed(fleet.frames[0])
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await started(pilot)
        table = screen.table
        await pilot.press(*["down"] * 6)
        assert table.cursor_key == "sim-00007"
        for frame in fleet.frames[1:]:
            screen.set_sort("gpu")
            feed.push(frame)
            await settle(pilot)
            assert table.cursor_key == "sim-00007"
        await pilot.press("g")
        await settle(pilot)
        assert screen.label == "rack"
        assert table.cursor_key == "sim-00007"
        assert table.shown_keys[0] == group_key("rack", "r00")
        feed.push(without(fleet.frames[0], "sim-00007"))
        await settle(pilot)
        assert table.cursor_key is not None
        assert table.cursor_key != "sim-00007"
        assert table.cursor_key in table.shown_keys


@both_sizes
async def test_groups_cycle_through_every_label_and_fold(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(simulated(150).frames[0]))
    async with app.run_test(size=size) as pilot:
        screen = await started(pilot)
        for label in ("rack", "site", ""):
            await pilot.press("g")
            await started(pilot)
            assert screen.label == label
            text = screen_text(app)
            assert (f"by {label}" in text) == bool(label)
            if label == "rack":
                for rack in ("r00", "r01", "r02"):
                    assert rack in text
        await pilot.press("g", "v", "home")
        await settle(pilot)
        table = screen.table
        assert table.cursor_key == group_key("rack", "r00")
        # One of the rack's 64 was never reached: it has not told its labels.
        assert "▾ rack=r00  63 hosts" in screen_text(app)
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen), "a header opens no host"
        assert "▸ rack=r00  63 hosts" in screen_text(app)
        assert table.shown_keys[1] == group_key("rack", "r01")
        await pilot.press("enter")
        await settle(pilot)
        assert table.shown_keys[1] == "sim-00001"


async def test_g_is_a_letter_while_a_filter_is_typed() -> None:
    app = make_app(frozen.FrozenFeed(simulated(60).frames[0]))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await started(pilot)
        await pilot.press("slash", *"gggg")
        await settle(pilot)
        assert (screen.filter_text, screen.label) == ("gggg", "")
        assert "no row passes the filter" in screen_text(app)


@both_sizes
async def test_each_metric_names_itself_and_its_steps(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(simulated(60).frames[0]))
    async with app.run_test(size=size) as pilot:
        screen = await started(pilot)
        for title, step in (
            ("memory of GPUs", "<75%"),
            ("hottest device", "<80°"),
            ("network, both ways, a second", "more"),
            ("tokens/s of a host's deployments", "more"),
            ("utilisation of GPUs", "<75%"),
        ):
            await pilot.press("m")
            await settle(pilot)
            text = screen_text(app)
            assert title in text
            assert step in text
        await pilot.press("v", "m")
        await settle(pilot)
        assert screen.metric.id == "util", "the table has all figures as columns"


@both_sizes
async def test_a_host_that_gives_no_figures_says_why_on_the_map(size: tuple[int, int]) -> None:
    base = simulated(60).frames[0]
    silent = frozen.hosts()[2:4]
    app = make_app(frozen.FrozenFeed(msgspec.structs.replace(base, hosts=(*silent, *base.hosts))))
    async with app.run_test(size=size) as pilot:
        await started(pilot)
        assert "✗ lost" in screen_text(app)
        assert "connection lost: reset by peer" in screen_text(app)
        await pilot.press("n")
        await settle(pilot)
        assert "▸ cpu04 ✗ unreachable" in screen_text(app), "n goes to the next trouble"
        assert "no agent answers on this host" in screen_text(app)


async def test_a_tick_paints_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs' shape: figures of hosts that are not seen are not asked for, and equal lines are not sent."""
    fleet = simulated(1000, frames=2)
    feed = frozen.FrozenFeed(fleet.frames[0])
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await started(pilot)
        await pilot.press("v")
        await settle(pilot)
        rows: set[int] = set()
        cell = HostRows.cell

        def counted(self: HostRows, row: int, column: str, width: int) -> Line:
            rows.add(row)
            return cell(self, row, column, width)

        monkeypatch.setattr(HostRows, "cell", counted)
        painted = _counted(monkeypatch, FleetTable)
        feed.push(fleet.frames[1])
        await settle(pilot)
        assert rows
        assert max(rows) < 24, "rows below the screen cost nothing"
        assert painted
        painted.clear()
        feed.push(msgspec.structs.replace(fleet.frames[1], taken_at_s=frozen.NOW_S + 1))
        await settle(pilot)
        assert painted == [], "nothing changed, nothing is painted"
        cells = _counted(monkeypatch, HeatMapView)
        await pilot.press("v")
        await started(pilot)
        assert screen.is_map
        cells.clear()
        feed.push(msgspec.structs.replace(fleet.frames[1], taken_at_s=frozen.NOW_S + 2))
        await settle(pilot)
        assert cells == []


def _counted(monkeypatch: pytest.MonkeyPatch, kind: type[FleetTable] | type[HeatMapView]) -> list[int]:
    """Lines that are painted from now on."""
    painted: list[int] = []
    render = kind.render_line

    def counted(self: Any, y: int) -> Strip:
        painted.append(y)
        return render(self, y)

    monkeypatch.setattr(kind, "render_line", counted)
    return painted


async def test_the_same_hosts_keep_their_arrangement_from_tick_to_tick() -> None:
    fleet = simulated(500, frames=2)
    feed = frozen.FrozenFeed(fleet.frames[0])
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await started(pilot)
        arrangement = screen._arrangement
        assert arrangement is not None
        feed.push(fleet.frames[1])
        await settle(pilot)
        assert screen._arrangement is arrangement
        feed.push(without(fleet.frames[1], "sim-00300"))
        await settle(pilot)
        assert screen._arrangement is not arrangement


async def test_the_strip_of_tokens_stands_over_the_body() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await started(pilot)
        assert "tok/s 15m" in screen_text(app)
        assert len(screen.query_one("#summary", LinesBar).lines) <= 4


async def test_ten_thousand_hosts_are_drawn_anew() -> None:
    """`make bench-tui` tells what it takes."""
    fleet = simulated(10_000, frames=2)
    app = make_app(frozen.FrozenFeed(fleet.frames[0]))
    async with app.run_test(size=(140, 40)) as pilot:
        await started(pilot)
        before = screen_text(app)
        app.snapshot = fleet.frames[1]
        app.redraw()
        await pilot.pause()
        assert "10,000 hosts" in screen_text(app)
        assert screen_text(app) != before
    assert fleet_columns(fleet.frames[1]).names[-1] == "sim-10000"
