"""A rank of a real lab is killed: its fault is a lane with every step, on the command line and in the watch."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from pathlib import Path

import pytest

from odctl.fleet import FleetSnapshot, open_fleet, watch_fleet
from odctl.fleet.clock import SystemClock
from odctl.inventory import load_inventory
from odctl.tui.model.fault_lanes import TimelineOf
from tests.integration.clients import ask
from tests.integration.cluster import free_listen, open_cluster, until

pytestmark = pytest.mark.slow

NAME = "chat"
CONTROLLER = "h1"
WATCH_LIMIT_S = 30.0


def test_a_killed_rank_is_seen_as_a_lane_with_all_its_steps(endless_model: Path, tmp_path: Path) -> None:
    """1. a pipeline over two hosts serves 2. a rank is killed 3. it heals 4. its story is told, both ways alike"""
    listen = free_listen()
    with open_cluster(num_hosts=2) as cluster:
        plan = cluster.plan(
            endless_model,
            tmp_path / "plan.toml",
            *("--name", NAME, "--listen", listen, "--controller", CONTROLLER),
            *("--strategy", "pipeline", "--stages", "2", "--context", "512"),
        )
        cluster.apply(plan)
        assert ask(listen, NAME)
        view = next(rank for rank in cluster.status(CONTROLLER, NAME).ranks if rank.host != CONTROLLER)
        os.kill(cluster.rank(NAME, view.rank_id).pid, signal.SIGKILL)
        until(lambda: cluster.faults(CONTROLLER), timeout_s=20, what=cluster.diary)
        cluster.wait_serving(CONTROLLER, NAME, timeout_s=90)
        until(lambda: all(fault.healed_at_s for fault in cluster.faults(CONTROLLER)), what=cluster.diary)

        told = cluster.must("faults", "--timeline", "--since", "1h")
        lane = next(lane for lane in told["lanes"] if lane["key"]["part"] == view.rank_id)
        (story,) = lane["stories"]
        assert (lane["key"]["host"], story["kind"], story["host"]) == (view.host, "rank_lost", view.host)
        phases = list(dict.fromkeys(step["phase"] for step in story["steps"] if step["is_exact"]))
        assert phases == ["detected", "diagnosed", "decided", "acted", "verified", "closed"]
        assert story["evidence"]["signal"] == "SIGKILL"
        assert story["decided_by"] == CONTROLLER
        assert story["ended_s"] > story["began_s"]
        assert set(told["clocks_ahead_s"]) == {"h1", "h2"}
        assert all(abs(ahead_s) < 0.5 for ahead_s in told["clocks_ahead_s"].values()), "one machine has one clock"
        assert (told["unread"], told["not_understood"], told["missing"]) == ({}, 0, [])
        prose = cluster.odctl("faults", "--timeline").stdout
        assert f"rank_lost of {NAME} {view.rank_id} on {view.host}: healed after" in prose
        assert f"restarting {view.rank_id}" in prose

        snapshot = asyncio.run(_watched(cluster.lab.inventory_path))
        lanes = TimelineOf().read(snapshot).lanes
        seen = next(lane for lane in lanes if lane.key.part == view.rank_id).newest
        assert [step.what for step in seen.steps] == [step["what"] for step in story["steps"]]
        cluster.must("destroy", NAME, "--yes")


async def _watched(inventory_path: Path) -> FleetSnapshot:
    """The first snapshot in which every host's journal was read."""
    async with (
        asyncio.timeout(WATCH_LIMIT_S),
        open_fleet(load_inventory(str(inventory_path))) as fleet,
        aclosing(watch_fleet(fleet, SystemClock())) as snapshots,
    ):
        async for snapshot in snapshots:
            if all(host.journal.read_at_s is not None for host in snapshot.hosts):
                return snapshot
    raise AssertionError("the watch ended by itself")
