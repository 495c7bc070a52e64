"""Plans by keys on a real lab: listed, compared, applied, aborted, and gone back to through their history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from agent.planner.file import plan_from_toml
from odctl.fleet.clock import SystemClock
from odctl.inventory import load_inventory
from odctl.tui.app import OdctlApp
from odctl.tui.feed import FleetFeed
from odctl.tui.screens.apply import ApplyScreen
from odctl.tui.screens.compare import CompareScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.plan_history import PlanHistoryScreen
from odctl.tui.screens.plans import PlansScreen
from odctl.tui.widgets.lines import LinesView
from tests.integration.cluster import Cluster, free_listen, open_cluster
from tests.odctl.tui.agreeing import agree
from tests.odctl.tui.reading import screen_text

pytestmark = pytest.mark.timeout(240)
APPLY_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster() as cluster:
        yield cluster


@pytest.fixture
def folder(cluster: Cluster, endless_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two plans of one deployment that differ by a boundary."""
    even, moved = tmp_path / "even.toml", tmp_path / "moved.toml"
    cluster.plan(
        endless_model, even, "--stages", "2", "--name", "chat", "--context", "256", "--listen", free_listen()
    )
    first = plan_from_toml(even.read_text(), file="even.toml").replicas[0].stages[0].layers
    by = "-1" if first[1] > 1 else "+1"  # what was measured before decides where the planner cuts
    edited = cluster.odctl("plan", "edit", str(even), "--move-boundary", f"0.0={by}", "-o", str(moved))
    assert edited.exit_code == 0, edited
    monkeypatch.chdir(tmp_path)
    return tmp_path


@asynccontextmanager
async def opened(cluster: Cluster, size: tuple[int, int]) -> AsyncIterator[tuple[OdctlApp, Pilot[None]]]:
    clock = SystemClock()
    app = OdctlApp(FleetFeed(load_inventory(cluster.lab.inventory_path), clock), clock=clock)
    app.animation_level = "none"
    async with app.run_test(size=size) as pilot:
        await wait(lambda: app.snapshot is not None and all(host.state == "live" for host in app.snapshot.hosts))
        yield app, pilot


async def wait(condition: Callable[[], bool], *, timeout_s: float = APPLY_TIMEOUT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the app has no event for what its agents do
            await asyncio.sleep(0.05)


def page_text(app: OdctlApp) -> str:
    return "\n".join("".join(span.text for span in spans) for spans in app.screen.query_one(LinesView).lines)


async def test_plans_are_compared_applied_and_gone_back_to_by_keys(cluster: Cluster, folder: Path) -> None:
    """1. both files are listed, marked and compared  2. B is applied from there  3. A is applied from the list
    4. the history shows both, measured  5. b goes back to generation 1  6. odctl tells the same
    """
    async with opened(cluster, (140, 40)) as (app, pilot):
        await pilot.press("2")
        plans = app.screen
        assert isinstance(plans, PlansScreen)
        await wait(lambda: plans.table.shown_keys == ("file:even.toml", "file:moved.toml"))
        await wait(lambda: "✓ hosts" in page_text(app))
        await pilot.press("space", "down", "space", "c")
        await wait(lambda: isinstance(app.screen, CompareScreen))
        await wait(lambda: "1 of 6 layers moves" in page_text(app))
        await pilot.press("ctrl+x", "a")
        await wait(lambda: isinstance(app.screen, ConfirmScreen))
        await agree(pilot, name="chat")
        await wait(lambda: isinstance(app.screen, ApplyScreen) and "● serving" in page_text(app))
        assert "canary" in page_text(app)
        await pilot.press("escape", "escape")
        await wait(lambda: plans.table.shown_keys == ("run:chat", "file:even.toml", "file:moved.toml"))
        await wait(lambda: "● serving, generation 1" in page_text(app) or "file, it runs" in screen_text(app))

        plans.choose("file:even.toml")
        await wait(lambda: "against running generation 1" in page_text(app))
        await pilot.press("a")
        await wait(lambda: isinstance(app.screen, ConfirmScreen))
        await agree(pilot, name="chat")
        await wait(lambda: isinstance(app.screen, ApplyScreen) and "● serving" in page_text(app))
        await pilot.press("escape")

        await pilot.press("h")
        await wait(lambda: isinstance(app.screen, PlanHistoryScreen) and len(app.screen.entries) == 2)
        history = app.screen
        assert isinstance(history, PlanHistoryScreen)
        await wait(lambda: "measured over predicted" in page_text(app))
        await pilot.press("down")
        await wait(lambda: "chat generation 1" in page_text(app))
        await pilot.press("b")
        await wait(lambda: isinstance(app.screen, ConfirmScreen))
        assert "Roll chat back to generation 1" in screen_text(app)
        await agree(pilot, name="chat")
        await wait(lambda: isinstance(app.screen, ApplyScreen) and "● serving" in page_text(app))
        await pilot.press("escape")
        await wait(lambda: isinstance(app.screen, PlanHistoryScreen) and len(app.screen.entries) == 3)
    told = cluster.must("history", "chat")["deployments"]["chat"]
    assert [(each["cause"], each["reason"]) for each in told] == [
        ("apply", ""),
        ("apply", ""),
        ("rollback", "to generation 1"),
    ]
    assert told[2]["plan_hash"] == told[0]["plan_hash"] != told[1]["plan_hash"]
    assert told[2]["is_current"]
    cluster.must("destroy", "chat", "--yes")


async def test_an_apply_that_another_began_is_seen_and_aborted_by_keys(cluster: Cluster, folder: Path) -> None:
    """1. even.toml runs  2. odctl begins to apply moved.toml and holds after `start`  3. the screen shows that
    4. A rolls it back: generation 1 serves on
    """
    cluster.apply(folder / "even.toml")
    odctl = cluster.start_odctl("apply", "moved.toml", "--yes", "--stop-after", "start")
    try:
        async with opened(cluster, (80, 24)) as (app, pilot):
            await pilot.press("2")
            await wait(lambda: "↻ an apply of chat is under way: start" in page_text(app))
            await pilot.press("A")
            await pilot.pause()
            assert not isinstance(app.screen, ConfirmScreen), "a read-only session does not even ask"
            await pilot.press("ctrl+x", "A")
            await wait(lambda: isinstance(app.screen, ConfirmScreen))
            await agree(pilot, name="chat")
            await wait(lambda: isinstance(app.screen, PlansScreen) and "is under way" not in page_text(app))
        _, stderr = odctl.communicate(timeout=60)
        assert odctl.returncode != 0
        assert "aborted on request" in stderr
        status = cluster.wait_serving("h1", "chat")
        assert status.generation == 1
    finally:
        odctl.kill()
        cluster.must("destroy", "chat", "--yes")
