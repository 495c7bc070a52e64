"""A deployment's page: its requests in flight, cancelling one, a benchmark, and what may not be done."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import httpx
import pytest
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Button, Input

from agent.errors import ErrorDetail, FleetError
from agent.wire.agent import DeploymentStatus
from agent.wire.gateway import RequestReport
from odctl.bench.load import MAX_REQUESTS
from odctl.tui.app import OdctlApp
from odctl.tui.feed import Feed
from odctl.tui.operating import FleetOperator
from odctl.tui.screens.bench import BenchScreen
from odctl.tui.screens.bench_dialog import BenchDialog
from odctl.tui.screens.chat import ChatScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.deployment import DeploymentScreen
from odctl.tui.screens.deployments import DeploymentsScreen
from odctl.tui.screens.plans import PlansScreen
from odctl.tui.screens.raw_text import RawTextScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.lines import LinesView
from tests.odctl.bench.http_server import ScriptedServer
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui import live_fleet as live
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle

S = TypeVar("S", bound=Screen[Any])
both_sizes = pytest.mark.parametrize("size", SIZES)


def live_app(operator: live.ScriptedOperator, *deployments: Any) -> tuple[OdctlApp, frozen.FrozenFeed]:
    feed = frozen.FrozenFeed(live.snapshot(*deployments))
    app = make_app(feed)
    app.operator = operator
    return app, feed


async def open_page(pilot: Pilot[None], app: OdctlApp, *, is_writable: bool = False) -> DeploymentScreen:
    app.action_mode("deployments")
    await settle(pilot)
    await pilot.press("enter")
    if is_writable:
        await pilot.press("ctrl+x")
    await settle(pilot)
    assert isinstance(app.screen, DeploymentScreen)
    app.clear_notifications()
    return app.screen


def shown(app: OdctlApp, kind: type[S]) -> S:
    """The screen that is seen, which is of this kind."""
    screen = app.screen
    assert isinstance(screen, kind), screen
    return screen


def notices(app: OdctlApp) -> str:
    return "\n".join(f"{notice.title} {notice.message}" for notice in app._notifications)


@both_sizes
async def test_enter_opens_the_page_and_escape_leads_back(size: tuple[int, int]) -> None:
    app, _ = live_app(live.ScriptedOperator(*live.requests()))
    async with app.run_test(size=size) as pilot:
        screen = await open_page(pilot, app)
        text = screen_text(app)
        for said in ("Deployments ▸ chat", "● serving", "440 ms", "2/8", "● 1 running", "○ 1 queued", "111111"):
            assert said in text
        screen.set_focus(screen.query_one("#page", LinesView))
        await pilot.press("end")
        await settle(pilot)
        assert "cuda:2 fell off the bus" in screen_text(app), "what is below is reached by scrolling"
        await pilot.press("tab")
        await settle(pilot)
        assert isinstance(screen.focused, FleetTable), "tab moves between page and table"
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, RawTextScreen)
        assert f"req_{'1' * 24}" in screen_text(app), "a whole id, to be copied"
        await pilot.press("escape", "escape")
        await settle(pilot)
        assert isinstance(app.screen, DeploymentsScreen)


@both_sizes
async def test_a_request_is_cancelled_after_a_question_with_cancel_focused(size: tuple[int, int]) -> None:
    operator = live.ScriptedOperator(*live.requests())
    app, _ = live_app(operator)
    async with app.run_test(size=size) as pilot:
        screen = await open_page(pilot, app, is_writable=True)
        screen.set_focus(screen.query_one("#requests", FleetTable))
        await pilot.press("j", "x")
        await settle(pilot)
        assert isinstance(app.screen, ConfirmScreen)
        assert isinstance(app.screen.focused, Button)
        assert app.screen.focused.id == "cancel"
        assert f"req_{'2' * 24}" in screen_text(app), "the one under the cursor"
        await pilot.press("enter")
        await settle(pilot)
        assert operator.cancelled == [], "enter on a fresh dialog changes nothing"
        await pilot.press("x", "right", "enter")
        await settle(pilot)
        assert operator.cancelled == [f"req_{'2' * 24}"]
        assert len(screen.query_one("#requests", FleetTable).shown_keys) == 2
        assert "222222" in notices(app)


async def test_an_answer_that_comes_while_the_app_leaves_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The screen still stands then, and its parts are gone."""
    is_asked, is_leaving, is_told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class SlowOperator(live.ScriptedOperator):
        async def requests(self, feed: Feed, status: DeploymentStatus) -> RequestReport:
            if self.asked:
                is_asked.set()
                await is_leaving.wait()
                is_told.set()
            return await super().requests(feed, status)

    async def leave(self: LinesView) -> None:
        is_leaving.set()
        await asyncio.wait_for(is_told.wait(), timeout=10.0)
        await asyncio.sleep(0.05)

    operator = SlowOperator(*live.requests())
    app, _ = live_app(operator)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_page(pilot, app)
        screen.ask()
        await asyncio.wait_for(is_asked.wait(), timeout=10.0)
        monkeypatch.setattr(LinesView, "on_unmount", leave, raising=False)
    assert is_told.is_set()


async def test_the_request_that_was_asked_about_is_the_one_that_ends() -> None:
    """While the dialog is open the list moves on: the cursor's row is another request then."""
    operator = live.ScriptedOperator(*live.requests())
    app, _ = live_app(operator)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_page(pilot, app, is_writable=True)
        await pilot.press("x")
        await settle(pilot)
        operator.views[0] = live.request(9)
        await pilot.press("right", "enter")
        await settle(pilot)
        assert operator.cancelled == []
        assert f"no request `req_{'1' * 24}`" in notices(app)
        assert "999999" in "".join(screen.query_one("#requests", FleetTable).shown_keys)


async def test_a_read_only_session_neither_asks_nor_cancels_nor_puts_load_on() -> None:
    operator = live.ScriptedOperator(*live.requests())
    app, _ = live_app(operator)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_page(pilot, app)
        for keys in (("x",), ("B",), ("colon", *"bench chat", "enter")):
            app.clear_notifications()
            await pilot.press(*keys)
            await settle(pilot)
            assert isinstance(app.screen, DeploymentScreen), f"{keys} opened something"
            assert "read-only" in notices(app)
        titles = [command.title for command in app.get_system_commands(app.screen)]
        assert not any(title.startswith(":bench") for title in titles), "the palette offers what is allowed"
    assert (operator.cancelled, operator.benched) == ([], [])


async def test_below_the_screens_a_locked_session_is_refused_too() -> None:
    feed = frozen.FrozenFeed(live.snapshot())
    operator = FleetOperator(lambda: True)
    with pytest.raises(FleetError) as refused:
        await operator.cancel(feed, live.status(), "req_1")
    assert refused.value.code == "E121"
    with pytest.raises(FleetError) as refused:
        await operator.bench(feed, live.status(), object())  # type: ignore[arg-type] # it is not looked at
    assert refused.value.code == "E121"


async def test_requests_that_cannot_be_asked_for_say_why() -> None:
    error = FleetError("E808", "the gateway on 127.0.0.1:11434 does not answer", host="gpu01")
    app, _ = live_app(live.ScriptedOperator(error=error))
    async with app.run_test(size=(80, 24)) as pilot:
        await open_page(pilot, app, is_writable=True)
        assert "not known: gpu01: the gateway on" in screen_text(app)
        await pilot.press("x")
        await settle(pilot)
        assert "no request is in flight here" in notices(app)


async def test_a_deployment_that_vanishes_while_its_page_is_open_says_so() -> None:
    """1. Its controller falls silent. 2. It is gone. 3. Nothing breaks, and escape leads back."""
    app, feed = live_app(live.ScriptedOperator(*live.requests()))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_page(pilot, app, is_writable=True)
        error = ErrorDetail(code="E206", message="no agent answers", hint="bootstrap it", host="gpu01")
        feed.push(live.snapshot(live.deployment(error=error, flow=None)))
        await settle(pilot)
        assert "○ unknown" in screen_text(app)
        assert "its controller does not answer" in screen_text(app)
        feed.push(frozen.snapshot(deployments=()))
        await settle(pilot)
        assert "chat is not deployed any more" in screen_text(app)
        await pilot.press("x", "B")
        await settle(pilot)
        assert shown(app, DeploymentScreen) is screen
        await pilot.press("escape")
        await settle(pilot)
        shown(app, DeploymentsScreen)


async def test_a_hidden_page_asks_for_nothing() -> None:
    operator = live.ScriptedOperator(*live.requests())
    app, _ = live_app(operator)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_page(pilot, app)
        asked = operator.asked
        assert asked >= 1
        app.action_mode("fleet")
        await settle(pilot)
        screen.ask()
        await settle(pilot)
        assert operator.asked == asked


async def test_keys_lead_to_chat_plan_and_the_next_deployment() -> None:
    operator = live.ScriptedOperator()
    app, _ = live_app(operator, live.deployment("chat"), live.deployment("code"))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_page(pilot, app)
        await pilot.press("greater_than_sign")
        await settle(pilot)
        assert screen.deployment == "code"
        await pilot.press("c")
        await settle(pilot)
        assert shown(app, ChatScreen).deployment == "code"
        app.run_command("deployments chat")
        await settle(pilot)
        assert shown(app, DeploymentScreen).deployment == "chat"
        await pilot.press("p")
        await settle(pilot)
        shown(app, PlansScreen)
        app.run_command("deployments nonsense")
        await settle(pilot)
        assert "no deployment `nonsense`: chat, code" in notices(app)


# --- benchmark ------------------------------------------------------------------------------------------


async def ask_for(pilot: Pilot[None], app: OdctlApp, load: str) -> BenchDialog:
    await pilot.press("B")
    await settle(pilot)
    assert isinstance(app.screen, BenchDialog)
    app.screen.query_one(Input).value = load
    await settle(pilot)
    return app.screen


@both_sizes
async def test_a_benchmark_is_asked_for_with_its_load_and_shows_its_figures(size: tuple[int, int]) -> None:
    server = ScriptedServer()
    async with server.serve() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        operator = live.ScriptedOperator(client=client)
        app, _ = live_app(operator)
        async with app.run_test(size=size) as pilot:
            await open_page(pilot, app, is_writable=True)
            dialog = await ask_for(pilot, app, "concurrency=2 requests=6 prompt=20 output=4 warm-up=1 seed=7")
            assert isinstance(dialog.focused, Button)
            assert dialog.focused.id == "cancel"
            text = screen_text(app)
            assert "2 at a time; prompts of 20 tokens" in text
            assert "2 running and 1 queued now" in text
            await pilot.press("enter")
            await settle(pilot)
            assert operator.benched == [], "enter on a fresh dialog puts no load on anybody"
            await ask_for(pilot, app, "concurrency=2 requests=6 prompt=20 output=4 warm-up=1 seed=7")
            await pilot.press("right", "enter")
            await settle(pilot)
            assert isinstance(app.screen, BenchScreen)
            text = screen_text(app)
            assert "● measured" in text
            assert "6/6 answered, 0 failed" in text
            for said in ("first token", "per token", "whole request", "answer tok/s", "predicted:"):
                assert said in text
            assert server.num_asked == 7, "one to warm up, and six"
            copied: list[str] = []
            app.copy_to_clipboard = copied.append  # type: ignore[method-assign,assignment]
            await pilot.press("y")
            await settle(pilot)
            assert "6 requests answered" in copied[0]


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ("concurrency=0", "0 at a time"),
        ("concurrency=99", "carries 16"),
        ("requests=many", "requests=many is no whole number"),
        ("speed=3", "`speed=3` says nothing of a load"),
        ("prompt=3000 output=3000", "the context has 2048"),
        (f"requests={MAX_REQUESTS}", "`odctl bench` takes more"),
    ],
)
async def test_a_load_that_cannot_be_is_told_while_it_is_typed(load: str, said: str) -> None:
    app, _ = live_app(live.ScriptedOperator())
    async with app.run_test(size=(100, 30)) as pilot:
        await open_page(pilot, app, is_writable=True)
        dialog = await ask_for(pilot, app, load)
        text = " ".join(screen_text(app).split())
        assert "▲" in text
        assert said in text
        assert dialog.query_one("#confirm", Button).disabled


async def test_a_benchmark_is_stopped_and_keeps_its_figures() -> None:
    """The third request stalls: it is broken off with the measurement, the two before are told."""
    server = ScriptedServer()
    server.behaviour = lambda number: "stall" if number == 2 else "answer"
    async with server.serve() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        app, _ = live_app(live.ScriptedOperator(client=client))
        async with app.run_test(size=(80, 24)) as pilot:
            await open_page(pilot, app, is_writable=True)
            await ask_for(pilot, app, "concurrency=1 requests=6 prompt=20 output=4 warm-up=0")
            await pilot.press("right", "enter")
            await pilot.pause()
            async with asyncio.timeout(20):
                await server.stalled.acquire()
            screen = shown(app, BenchScreen)
            screen.redraw()
            await pilot.pause()
            assert "↻ measuring" in screen_text(app)
            for key in ("escape", "3"):
                await pilot.press(key)
                await pilot.pause()
                assert "Break the measurement off?" in screen_text(app), f"{key} would lose what is measured"
                await pilot.press("enter")
                await pilot.pause()
                assert shown(app, BenchScreen) is screen, "Cancel has the focus"
            await pilot.press("x")
            await settle(pilot)
            text = screen_text(app)
            assert "▲ stopped" in text
            assert "2/6 answered, 0 failed, 1 broken off" in text
            await pilot.press("escape")
            await settle(pilot)
            assert isinstance(app.screen, DeploymentScreen)


async def test_a_server_that_does_not_answer_is_told_with_its_way_out() -> None:
    error = FleetError("E808", "chat on gpu01 does not answer", hint="odctl status shows it")
    app, _ = live_app(live.ScriptedOperator(error=error))
    async with app.run_test(size=(80, 24)) as pilot:
        await open_page(pilot, app, is_writable=True)
        await ask_for(pilot, app, "requests=4")
        await pilot.press("right", "enter")
        await settle(pilot)
        text = screen_text(app)
        assert "✗ failed" in text
        assert "✗ chat on gpu01 does not answer" in text
        assert "→ odctl status shows it" in text
