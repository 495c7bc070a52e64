"""The host page at both sizes: what it shows, its cursor, its dialogs, and a host that vanishes under it."""

from __future__ import annotations

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Button, Input, OptionList

from agent.errors import FleetError
from agent.facts.sample import Ok
from odctl.fleet import FleetSnapshot
from odctl.tui.app import OdctlApp
from odctl.tui.model.text import line_text
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.end_process import EndProcessScreen
from odctl.tui.screens.events import EventsScreen
from odctl.tui.screens.host import HostScreen
from odctl.tui.widgets.lines import LinesBar, LinesView
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.agreeing import agree
from tests.odctl.tui.reading import SIZES, screen_text, settle
from tests.odctl.tui.scripted_operator import ScriptedOperator, make_app

both_sizes = pytest.mark.parametrize("size", SIZES)
ACTIONS = {"d": "plan_drain", "K": "end", "R": "restart", "s": "shell"}


async def open_host(pilot: Pilot[None], name: str = "gpu01", *, writes: bool = False) -> HostScreen:
    await settle(pilot)
    assert isinstance(pilot.app, OdctlApp)
    pilot.app.open_host(name)
    await settle(pilot)
    if writes:
        pilot.app.set_read_only(False)
        pilot.app.clear_notifications()
        await settle(pilot)
    assert isinstance(pilot.app.screen, HostScreen)
    return pilot.app.screen


def is_seen(app: OdctlApp, screen: HostScreen) -> bool:
    """Whether the page is what is on top."""
    return app.screen is screen


def page_text(screen: HostScreen) -> str:
    return "\n".join(line_text(spans) for spans in screen.query_one("#page", LinesView).lines)


def plots_text(screen: HostScreen) -> str:
    return "\n".join(line_text(spans) for spans in screen.query_one("#plots", LinesBar).lines)


@both_sizes
async def test_everything_of_a_host_can_be_reached_and_nothing_is_cut(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        screen = await open_host(pilot)
        page = screen.query_one("#page", LinesView)
        text = page_text(screen)
        wide = [line for line in text.splitlines() if len(line.rstrip()) > page.content_width]
        assert wide == []
        seen = screen_text(app)
        for _ in range(40):
            await pilot.press("pagedown")
        await settle(pilot)
        seen += screen_text(app)
    for said in (
        "driver 570.148",
        "312/450W",
        "✗ GPU is lost (Xid 79); its row stays  Xid 79",
        "● r0s0t0, layers 0-19",
        "▲ foreign",
        "eth0",
        "errors 0 drops 0",
        "layers 0-19",
        "NVRM: Xid",
        "FaultSeen",
    ):
        assert said in text, said
    assert "rank ended" in seen, "the page scrolls to its very end"


@both_sizes
async def test_the_plots_stay_in_sight_and_their_cursor_tells_values(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=size) as pilot:
        screen = await open_host(pilot, "cpu01")
        newest = plots_text(screen)
        assert "cpu" in screen_text(app).splitlines()[-6 if size[1] < 30 else -10 :][0] or "cpu" in newest
        assert "▲" not in newest
        await pilot.press("left", "left", "shift+left")
        await settle(pilot)
        at_s = screen.cursor_s or 0.0
        cell_s = 900 / (size[0] - 17)
        assert frozen.NOW_S - at_s == pytest.approx(12 * cell_s)
        text = plots_text(screen)
        assert "▲" in text
        assert f"{int(12 * cell_s) // 60}m ago" in text
        rows = [row for row in frozen.history("cpu01").rows() if abs(row.at_s - at_s) <= cell_s]
        shown = text.splitlines()[0].split()[-1]
        assert shown in {f"{round(row.cpu * 100)}%" for row in rows}, "the value of that moment stands beside it"
        await pilot.press(*["right"] * 30)
        await settle(pilot)
        assert screen.cursor_s is None
        assert plots_text(screen) == newest
        await pilot.press("left", "escape")
        await settle(pilot)
        assert screen.cursor_s is None
        assert is_seen(app, screen), "the first escape takes the cursor away, not the page"
        await pilot.press("escape")
        await settle(pilot)
        assert not is_seen(app, screen)


async def test_a_short_screen_has_few_plots_until_more_are_asked_for() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_host(pilot)
        few = len(screen.query_one("#plots", LinesBar).lines)
        await pilot.press("p")
        await settle(pilot)
        assert len(screen.query_one("#plots", LinesBar).lines) > few


async def test_the_arrows_belong_to_a_line_that_is_written() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_host(pilot)
        await pilot.press("colon", *"hst", "left", "left", "o")
        await settle(pilot)
        assert screen.query_one(Input).value == "host"
        assert screen.cursor_s is None


@pytest.mark.parametrize("key", ACTIONS)
async def test_nothing_is_done_while_the_session_is_read_only(key: str) -> None:
    operator = ScriptedOperator()
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), operator)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_host(pilot)
        await pilot.press(key)
        await settle(pilot)
        assert is_seen(app, screen)
        assert [notice.title for notice in app._notifications] == ["RO"]
    assert operator.asked == []


@both_sizes
@pytest.mark.parametrize("key", ACTIONS)
async def test_every_action_asks_with_cancel_focused(key: str, size: tuple[int, int]) -> None:
    operator = ScriptedOperator()
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), operator)
    async with app.run_test(size=size) as pilot:
        screen = await open_host(pilot, writes=True)
        await pilot.press(key)
        await settle(pilot)
        assert isinstance(app.screen, ConfirmScreen | EndProcessScreen)
        assert isinstance(app.focused, Button)
        assert app.focused.id == "cancel"
        assert "gpu01" in screen_text(app)
        await pilot.press("enter")
        await settle(pilot)
        assert is_seen(app, screen)
    deeds = {str(asked[0]) for asked in operator.asked} - {"plan_drain", "shell"}
    assert deeds == set(), "what was given up is not done"


async def test_a_drain_shows_its_changes_asks_and_says_how_it_went() -> None:
    operator = ScriptedOperator()
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), operator)
    async with app.run_test(size=(140, 40)) as pilot:
        screen = await open_host(pilot, writes=True)
        await pilot.press("d")
        await settle(pilot)
        text = screen_text(app)
        assert "Move chat away from gpu01?" in text
        assert "+ cpu01/cpu: layers 0-31" in text
        assert "type `gpu01` to go on" in text, "two of six hosts are much of this fleet"
        await agree(pilot, name="gpu01")
        await settle(pilot)
        assert is_seen(app, screen)
        assert "● nothing is served from gpu01 any more: chat moved" in page_text(screen)
    assert operator.asked == [("plan_drain", "gpu01"), ("drain", "gpu01")]


@pytest.mark.parametrize("key", ["d", "R"])
async def test_what_is_refused_says_why_and_its_way_out_on_the_page(key: str) -> None:
    error = FleetError("E601", "chat cannot do without gpu01: cpu is 4 GB short", hint="destroy it", host="gpu01")
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), ScriptedOperator(error))
    async with app.run_test(size=(140, 40)) as pilot:
        screen = await open_host(pilot, writes=True)
        await pilot.press(key)
        await settle(pilot)
        if key == "R":
            await pilot.press("tab", "enter")
            await settle(pilot)
        assert is_seen(app, screen)
        text = page_text(screen)
        assert "chat cannot do without gpu01: cpu is 4 GB short" in text
        assert "destroy it" in text


async def test_a_host_that_serves_nothing_is_not_drained() -> None:
    operator = ScriptedOperator()
    operator.previews = ()
    app = make_app(frozen.FrozenFeed(frozen.snapshot()), operator)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_host(pilot, writes=True)
        await pilot.press("d")
        await settle(pilot)
        assert is_seen(app, screen)
        assert "nothing is served from gpu01" in page_text(screen)


@both_sizes
async def test_a_foreign_process_is_asked_to_end_and_killed_only_by_the_hosts_name(size: tuple[int, int]) -> None:
    operator = ScriptedOperator()
    app = make_app(frozen.FrozenFeed(with_foreign()), operator)
    async with app.run_test(size=size) as pilot:
        screen = await open_host(pilot, writes=True)
        await pilot.press("K")
        await settle(pilot)
        options = app.screen.query_one(OptionList)
        said = [str(options.get_option_at_index(at).prompt) for at in range(options.option_count)]
        assert [text.split()[:3] for text in said] == [["cuda:0", "9021", "bob"], ["cuda:1", "9021", "bob"]]
        assert "9021 bob" in screen_text(app)
        kill = app.screen.query_one("#kill", Button)
        assert kill.disabled
        app.screen.query_one(Input).focus()
        await pilot.press(*"gpu0")
        assert kill.disabled
        await pilot.press("1")
        assert not app.screen.query_one("#kill", Button).disabled
        app.screen.query_one(OptionList).focus()
        await pilot.press("down")
        await pilot.click("#kill")
        await settle(pilot)
        assert is_seen(app, screen)
        await pilot.press("K")
        await settle(pilot)
        await pilot.click("#terminate")
        await settle(pilot)
        assert "SIGTERM was sent to 9021" in page_text(screen)
    assert operator.asked == [
        ("end", "gpu01", "cuda:1", 9021, 55, True),
        ("end", "gpu01", "cuda:0", 9021, 44, False),
    ]


def with_foreign() -> FleetSnapshot:
    sample = frozen.gpu_sample("gpu01")
    devices = []
    for device, ticks in zip(sample.devices, (0, 44, 55, 0), strict=True):
        processes = tuple(msgspec.structs.replace(process, start_ticks=ticks) for process in device.processes)
        devices.append(msgspec.structs.replace(device, processes=processes))
    host = frozen.host(
        "gpu01", facts=frozen.gpu_facts("gpu01"), sample=msgspec.structs.replace(sample, devices=tuple(devices))
    )
    return frozen.snapshot(hosts=(*frozen.hosts()[:-1], host))


async def test_without_a_foreign_process_there_is_nothing_to_kill() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_host(pilot, "cpu01", writes=True)
        await pilot.press("K")
        await settle(pilot)
        assert is_seen(app, screen)
        assert any("no foreign process" in notice.message for notice in app._notifications)


async def test_where_there_is_no_terminal_a_shell_says_so() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_host(pilot, writes=True)
        await pilot.press("s")
        await settle(pilot)
        assert "ssh gpu01" in screen_text(app)
        await pilot.press("tab", "enter")
        await settle(pilot)
        assert "there is no terminal here to hand over" in page_text(screen)


@both_sizes
async def test_a_host_that_vanishes_keeps_its_page_which_says_so(size: tuple[int, int]) -> None:
    """1. live. 2. lost: its last values stay. 3. gone from the fleet altogether. 4. back."""
    feed = frozen.FrozenFeed(frozen.snapshot())
    app = make_app(feed)
    async with app.run_test(size=size) as pilot:
        screen = await open_host(pilot)
        lost = frozen.host(
            "gpu01",
            "lost",
            reason="connection lost: reset by peer",
            way_out="the next call connects again",
            sample=frozen.gpu_sample("gpu01"),
            sample_age_s=30.0,
        )
        feed.push(frozen.snapshot(hosts=(*frozen.hosts()[:-1], lost), taken_at_s=frozen.NOW_S + 1))
        await settle(pilot)
        text = screen_text(app)
        assert "✗ lost 30s ago" in text
        assert "lost: what follows was measured 30s ago" in text
        assert "connection lost: reset by peer" in text
        assert "312/450W" in page_text(screen)
        feed.push(frozen.snapshot(hosts=frozen.hosts()[:-1], taken_at_s=frozen.NOW_S + 2))
        await settle(pilot)
        assert is_seen(app, screen)
        assert "✗ gpu01 is in the fleet no more" in screen_text(app)
        assert "312/450W" in page_text(screen)
        feed.push(frozen.snapshot(taken_at_s=frozen.NOW_S + 3))
        await settle(pilot)
        assert "no more" not in page_text(screen)


async def test_the_next_host_and_its_logs_are_one_key_away() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_host(pilot, "cpu01")
        await pilot.press("less_than_sign")
        await settle(pilot)
        assert screen.host == "gpu01"
        await pilot.press("greater_than_sign", "l")
        await settle(pilot)
        assert isinstance(app.screen, EventsScreen)
        assert app.screen.filter_text == "host=cpu01"


@pytest.mark.parametrize("width", [78, 138])
async def test_what_has_no_column_stands_below_its_device(width: int) -> None:
    from odctl.tui.model.host_devices import device_lines

    device = frozen.gpu(
        0,
        memory_temperature_c=Ok(78.0),
        nvlink_received_bytes_per_s=Ok(118.0 * 2**30),
        nvlink_sent_bytes_per_s=Ok(121.0 * 2**30),
        pcie_received_bytes_per_s=Ok(2.0 * 2**30),
        pcie_sent_bytes_per_s=Ok(3.0 * 2**30),
        pcie_generation=Ok(3.0),
        pcie_max_generation=Ok(5.0),
        pcie_lanes=Ok(16.0),
        pcie_max_lanes=Ok(16.0),
        ecc_corrected=Ok(12.0),
        ecc_uncorrected=Ok(2.0),
        throttle_reasons=("power cap", "thermal (hardware)"),
    )
    host = frozen.host("gpu01", sample=msgspec.structs.replace(frozen.gpu_sample("gpu01"), devices=(device,)))
    lines = [line_text(spans) for spans in device_lines(host, width=width)]
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    for said in (
        "64°/78°",
        "12/✗2",
        "↓118G/s ↑121G/s",
        "↓2.0G/s ↑3.0G/s",
        "2520/10500",
        "▲ PCIe gen 3 ×16 of gen 5 ×16",
    ):
        assert said in text, said
    assert "power cap" in text
