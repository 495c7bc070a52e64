"""A real deployment on a lab, watched and handled by keys: its page, requests, a benchmark and the chat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from odctl.fleet.clock import SystemClock
from odctl.fleet.snapshot import DeploymentView
from odctl.inventory import load_inventory
from odctl.tui.app import OdctlApp
from odctl.tui.feed import FleetFeed
from odctl.tui.screens.bench import BenchScreen
from odctl.tui.screens.bench_dialog import BenchDialog
from odctl.tui.screens.chat import ChatScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.deployment import DeploymentScreen
from odctl.tui.screens.deployments import DeploymentsScreen
from odctl.tui.widgets.fleet_table import FleetTable
from tests.integration.clients import Stream
from tests.integration.cluster import Cluster, free_listen, open_cluster, until
from tests.odctl.tui.reading import screen_text

pytestmark = pytest.mark.timeout(240)
NAME = "chat"
CONTROLLER = "h1"
T = TypeVar("T")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(num_hosts=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def listen(cluster: Cluster, endless_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two stages on two hosts, the controller on a third one: what is asked goes from agent to agent."""
    listen = free_listen()
    plan = cluster.plan(
        endless_model,
        tmp_path_factory.mktemp("plan") / "plan.toml",
        *("--name", NAME, "--listen", listen, "--controller", CONTROLLER),
        *("--stages", "2", "--context", "4096", "--batch", "4"),
    )
    cluster.apply(plan)
    return listen


@asynccontextmanager
async def running_app(cluster: Cluster, *, size: tuple[int, int] = (120, 40)) -> AsyncIterator[Pilot[None]]:
    clock = SystemClock()
    app = OdctlApp(FleetFeed(load_inventory(str(cluster.lab.inventory_path)), clock), clock=clock)
    app.animation_level = "none"
    async with app.run_test(size=size, notifications=True) as pilot:
        await eventually(pilot, lambda: served(app), what="a snapshot with the deployment")
        yield pilot


def served(app: OdctlApp) -> bool:
    view = app.snapshot.deployment(NAME) if app.snapshot is not None else None
    return view is not None and view.status is not None and view.error is None


def with_rates(app: OdctlApp) -> DeploymentView | None:
    """The deployment, once each of its two ranks was seen to work."""
    view = app.snapshot.deployment(NAME) if app.snapshot is not None else None
    flow = view.flow if view is not None else None
    is_known = flow is not None and len(flow.ranks) == 2 and all(rank.steps_per_s > 0 for rank in flow.ranks)
    return view if is_known else None


async def eventually(pilot: Pilot[None], condition: Callable[[], T], *, what: str, timeout_s: float = 30.0) -> T:
    """The first true value; fails with what the screen shows."""
    app = pilot.app
    assert isinstance(app, OdctlApp)
    try:
        async with asyncio.timeout(timeout_s):
            while not (value := condition()):
                await pilot.pause(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:.0f} s: {what}\n{screen_text(app)}") from None
    return value


async def open_page(pilot: Pilot[None]) -> tuple[OdctlApp, DeploymentScreen]:
    app = pilot.app
    assert isinstance(app, OdctlApp)
    await pilot.press("3")
    await eventually(pilot, lambda: isinstance(app.screen, DeploymentsScreen), what="the list")
    await eventually(pilot, lambda: app.screen.query_one(FleetTable).cursor_key, what="a row")
    await pilot.press("enter")
    await eventually(pilot, lambda: isinstance(app.screen, DeploymentScreen), what="the page")
    assert isinstance(app.screen, DeploymentScreen)
    return app, app.screen


async def test_a_request_is_seen_and_cancelled_by_keys(cluster: Cluster, listen: str) -> None:
    """1. It streams: rates, links and the request are on the page. 2. Locked, `x` asks nothing. 3. It is ended."""
    stream = Stream(listen=listen, model=NAME, seed=1).start()
    async with running_app(cluster) as pilot:
        app, screen = await open_page(pilot)
        table = screen.query_one("#requests", FleetTable)
        await eventually(pilot, lambda: table.shown_keys, what="the request in flight")
        view = await eventually(pilot, lambda: with_rates(app), what="rates of both ranks")
        assert view is not None
        assert view.flow is not None
        assert all(0 < rank.busy_share <= 1 for rank in view.flow.ranks)
        [sends] = [end for rank in view.flow.ranks for end in rank.links if end.sent_bytes_per_s > 0]
        assert sends.round_trip_s is not None, "TLS over TCP between the hosts"
        assert 0 < sends.round_trip_s < 1
        assert view.flow.bubble is None or 0 <= view.flow.bubble <= 1
        assert view.status is not None
        assert view.status.backend is not None
        assert view.status.backend.kv_blocks > 0
        text = screen_text(app)
        assert "● 1 running" in text
        assert "127.0.0.1" in text
        await pilot.press("x")
        await pilot.pause()
        assert isinstance(app.screen, DeploymentScreen), "read-only: it does not even ask"
        await pilot.press("ctrl+x", "x")
        await eventually(pilot, lambda: isinstance(app.screen, ConfirmScreen), what="the question")
        await pilot.press("right", "enter")
        await eventually(pilot, lambda: stream.is_over, what="the end of the stream")
        await eventually(pilot, lambda: not table.shown_keys, what="an empty table")
    stream.join()
    assert "an operator cancelled this request" in stream.error
    assert (stream.broke, stream.is_done) == ("", False)
    assert stream.pieces > 0
    [event] = [event for event in cluster.events(CONTROLLER) if event.kind == "RequestCancelled"]
    assert (event.deployment, event.generation) == (NAME, 1)
    assert "@" in json.loads(event.body)["by"], "who wanted it: user@machine:pid"


def test_scripts_list_and_cancel_the_same(cluster: Cluster, listen: str) -> None:
    assert cluster.odctl("requests", NAME).stdout == f"{NAME}: no request is in flight\n"
    stream = Stream(listen=listen, model=NAME, seed=2).start()
    [found] = until(lambda: cluster.must("requests", NAME)["requests"], what="the request")
    assert found["state"] == "running"
    refused = cluster.odctl("cancel", NAME, found["request_id"])
    assert refused.exit_code == 3, "no terminal to ask on, and no --yes"
    assert not stream.is_over
    ended = cluster.must("cancel", NAME, found["request_id"][:12], "--yes")
    assert ended["request_id"] == found["request_id"]
    stream.join()
    assert "an operator cancelled this request" in stream.error
    again = cluster.odctl("cancel", NAME, found["request_id"], "--yes", "--json")
    assert (again.exit_code, again.data["code"]) == (3, "E125")
    assert cluster.odctl("requests", "nobody").exit_code == 3


@pytest.mark.usefixtures("listen")
async def test_a_benchmark_by_keys_measures_the_real_deployment(cluster: Cluster) -> None:
    async with running_app(cluster) as pilot:
        app, _ = await open_page(pilot)
        await pilot.press("ctrl+x", "B")
        await eventually(pilot, lambda: isinstance(app.screen, BenchDialog), what="the question")
        app.screen.query_one(Input).value = "concurrency=2 requests=4 prompt=32 output=16 warm-up=1"
        await pilot.pause()
        await pilot.press("right", "enter")
        await eventually(pilot, lambda: isinstance(app.screen, BenchScreen), what="the benchmark")
        screen = app.screen
        assert isinstance(screen, BenchScreen)
        await eventually(pilot, lambda: screen.is_over, what="its end")
        await pilot.pause()
        [(label, figures)] = screen.measurement.totals()
        assert label.startswith(f"{NAME} on ")
        assert (figures.num_answered, figures.num_failed, figures.mean_output_tokens) == (4, 0, 16.0)
        assert "4/4 answered, 0 failed" in screen_text(app)


@pytest.mark.usefixtures("listen")
async def test_an_answer_is_stopped_and_the_talk_goes_on(cluster: Cluster) -> None:
    """1. Asked by keys: it streams. 2. esc stops it: the gateway's slot is free. 3. The next turn streams, too."""
    async with running_app(cluster, size=(80, 24)) as pilot:
        app, _ = await open_page(pilot)
        await pilot.press("c")
        await eventually(pilot, lambda: isinstance(app.screen, ChatScreen), what="the chat")
        screen = app.screen
        assert isinstance(screen, ChatScreen)
        for number in (1, 2):
            await eventually(pilot, lambda: screen.deployment, what="whom to talk to")
            screen.action_write()
            await pilot.press(*"go", "enter")
            await eventually(pilot, lambda: screen.conversation.is_waiting, what="the question")
            await eventually(pilot, lambda: screen.conversation.turns[-1].num_pieces > 3, what="pieces")
            await pilot.press("escape")
            await eventually(pilot, lambda: not screen.conversation.is_waiting, what="its end")
            assert len(screen.conversation.turns) == number
            assert screen.conversation.turns[-1].answer
        assert "stopped" in screen_text(app)
        await asyncio.to_thread(
            until,
            lambda: not cluster.must("requests", NAME)["requests"],
            what="free slots",
        )
