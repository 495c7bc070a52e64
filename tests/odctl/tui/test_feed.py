"""The feed's thread against a real socket."""

from __future__ import annotations

import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from agent.errors import FleetError
from agent.facts.cluster import HostFacts
from agent.facts.sample import HostSample
from agent.wire.agent import FaultReport
from odctl.fleet import FleetSnapshot
from odctl.fleet.clock import SystemClock
from odctl.inventory import Inventory, parse_inventory
from odctl.tui.feed import FleetFeed
from tests.odctl.fleet import values
from tests.odctl.fleet.served_agent import ServedAgent, serving
from tests.odctl.fleet.until import until


def inventory_of(agent: ServedAgent) -> Inventory:
    text = f"""
    [cluster]
    name = "lab"
    [hosts.one]
    transport = "local"
    home = "{agent.root}"
    prefix = "{agent.root}"
    """
    return parse_inventory(text, path=agent.root / "inventory.toml")


@pytest.fixture
def agent(tmp_path: Path) -> ServedAgent:
    served = ServedAgent(tmp_path / "one")
    served.answers |= {
        "/v1/facts": values.facts("one"),
        "/v1/handshake": values.handshake("one"),
        "/v1/deployments": (),
        "/v1/faults": FaultReport(faults=()),
    }
    served.add_sample(values.sample("one"))
    return served


async def test_snapshots_calls_and_streams_come_from_another_thread(agent: ServedAgent) -> None:
    feed = FleetFeed(inventory_of(agent), SystemClock())
    snapshots: list[FleetSnapshot] = []
    threads: set[int] = set()
    failures: list[BaseException] = []

    def take(snapshot: FleetSnapshot) -> None:
        threads.add(threading.get_ident())
        snapshots.append(snapshot)

    async with serving(agent):
        feed.start(take, failures.append)
        await until(lambda: bool(snapshots) and snapshots[-1].hosts[0].state == "live")
        assert threading.get_ident() not in threads
        assert (await feed.call(lambda fleet: fleet.get("one", "/v1/facts", HostFacts))).name == "one"
        with pytest.raises(FleetError, match="not in the inventory"):
            await feed.call(lambda fleet: fleet.get("two", "/v1/facts", HostFacts))
        stream = feed.stream(lambda fleet: fleet.stream("one", "GET", "/v1/samples", None, HostSample))
        async with aclosing(stream) as samples:
            assert (await anext(samples)).host == "one"
        broken = feed.stream(lambda fleet: fleet.stream("two", "GET", "/v1/samples", None, HostSample))
        with pytest.raises(FleetError, match="not in the inventory"):
            await anext(broken)
        await feed.stop()
        num_snapshots = len(snapshots)
    assert failures == []
    assert len(snapshots) == num_snapshots


async def test_a_bug_in_the_watch_reaches_the_screen(agent: ServedAgent) -> None:
    feed = FleetFeed(inventory_of(agent), SystemClock())
    failures: list[BaseException] = []

    def take(snapshot: FleetSnapshot) -> None:
        raise ZeroDivisionError("a bug")

    async with serving(agent):
        feed.start(take, failures.append)
        await until(lambda: bool(failures))
        await feed.stop()
    assert "a bug" in repr(failures[0])
