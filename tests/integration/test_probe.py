"""`odctl probe` on a real lab of three hosts, driven as a user drives it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.planner.file import plan_from_toml
from agent.planner.plan import Plan
from odctl.fleet.clock import SystemClock
from odctl.inventory import load_inventory
from odctl.tui.app import OdctlApp
from odctl.tui.feed import FleetFeed
from odctl.tui.screens.probes import ProbesScreen
from tests.integration.cluster import Cluster, free_listen, open_cluster, until
from tests.odctl.tui.reading import screen_text

NAMES = ("h1", "h2", "h3")


@pytest.fixture(scope="module")
def cluster(endless_model: Path) -> Iterator[Cluster]:
    with open_cluster(num_hosts=3, model_dirs=(endless_model.parent,)) as cluster:
        yield cluster


def plan(cluster: Cluster, model: Path, target: Path) -> Plan:
    cluster.plan(model, target, "--name", "chat", "--stages", "3", "--context", "256", "--batch", "2")
    return plan_from_toml(target.read_text(), file="plan.toml")


def measuring(cluster: Cluster, host: str) -> list[int]:
    """Pids of the measuring processes that a host's agent has started."""
    agent = str(cluster.agent_pid(host))
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (path / "cmdline").read_bytes().split(b"\0")
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if arguments[1:4] == [b"-m", b"agent.engine", b"probe"] and parent == agent:
            found.append(int(path.name))
    return found


def test_what_is_measured_is_kept_shown_and_planned_with(
    cluster: Cluster, endless_model: Path, tmp_path: Path
) -> None:
    before = plan(cluster, endless_model, tmp_path / "before.toml")
    assert any("odctl probe measures them" in line for line in before.why)

    data = cluster.must("probe", "--quick")
    assert sorted(data["hosts"]) == list(NAMES)
    for name in NAMES:
        host = data["hosts"][name]
        assert host["is_fresh"]
        assert host["is_quick"]
        (device,) = host["devices"]
        assert device["copy_bytes_per_s"] > 1e8
        assert {(g["dtype"], g["quantisation"], g["rows"]) for g in device["gemms"]} >= {
            ("bfloat16", "none", 1),
            ("bfloat16", "int8", 64),
            ("float32", "none", 8),
        }
        assert all(gemm["flops_per_s"] > 0 and gemm["weight_bytes_per_s"] > 0 for gemm in device["gemms"])
        assert len(device["attention"]) == 2
    ends = {(link["source"], link["target"], link["carrier"]) for link in data["links"]}
    assert ends == {(a, b, "tls") for a in NAMES for b in NAMES if a != b}
    assert all(0 < link["latency_s"] < 1 and link["bytes_per_s"] > 1e5 for link in data["links"])
    assert sorted(len(group["members"]) for group in data["groups"]) == [2, 2, 2, 3]

    again = cluster.must("probe", "--quick")
    assert again["num_links_measured"] == 0
    assert not any(host["is_fresh"] for host in again["hosts"].values())
    assert all(again["hosts"][name]["measured_at_s"] == data["hosts"][name]["measured_at_s"] for name in NAMES)
    assert all(again["hosts"][name]["age_s"] > data["hosts"][name]["age_s"] for name in NAMES)

    after = plan(cluster, endless_model, tmp_path / "after.toml")
    assert any(line.startswith("links measured ") for line in after.why)
    assert after.facts_digest.startswith(before.facts_digest + " ~measured:")
    assert after.predicted.time_per_token_s != before.predicted.time_per_token_s

    forced = cluster.must("probe", "h2", "--force", "--quick")
    assert forced["hosts"]["h2"]["is_fresh"]
    assert forced["hosts"]["h2"]["measured_at_s"] > data["hosts"]["h2"]["measured_at_s"]
    assert sorted(forced["hosts"]) == ["h2"]

    prose = cluster.odctl("probe", "--quick")
    assert prose.exit_code == 0, prose
    for part in ("h3/cpu", "GB/s", "links by tls, from row to column", "h1/cpu + h2/cpu + h3/cpu", " ago, quick"):
        assert part in prose.stdout, prose.stdout


def test_a_rehearsed_model_is_planned_at_the_level_of_its_rehearsal(
    cluster: Cluster, endless_model: Path, tmp_path: Path
) -> None:
    data = cluster.must("probe", "h1,h2", "--quick", "--model", str(endless_model))
    known = {name: data["hosts"][name]["devices"][0]["models"] for name in ("h1", "h2")}
    assert {name: [each["parts"] for each in models] for name, models in known.items()} == {
        "h1": [1, 2],
        "h2": [1, 2],
    }
    again = cluster.must("probe", "h1,h2", "--quick", "--model", str(endless_model))
    assert again["hosts"]["h1"]["devices"][0]["models"] == known["h1"], "what is known is not measured again"
    forced = cluster.must("probe", "h1", "--quick", "--model", str(endless_model), "--force")
    assert not forced["hosts"]["h1"]["is_fresh"], "the device itself is not measured again"
    assert forced["hosts"]["h1"]["devices"][0]["models"] != known["h1"]

    target = tmp_path / "one.toml"
    cluster.plan(endless_model, target, "--name", "chat", "--hosts", "h2", "--context", "256", "--batch", "2")
    text = cluster.odctl("show", str(target), "--explain")
    assert text.exit_code == 0, text
    assert "rehearsed" in text.stdout, text.stdout
    prose = cluster.odctl("probe", "h2", "--quick")
    assert "whole layer" in prose.stdout, prose.stdout


async def test_marked_hosts_are_measured_from_the_ui(cluster: Cluster) -> None:
    """1. a host is probed quickly from its row 2. the screen shows the new figures 3. learning has no data"""
    clock = SystemClock()
    app = OdctlApp(FleetFeed(load_inventory(cluster.lab.inventory_path), clock), clock=clock)
    app.animation_level = "none"
    began_s = clock.now_s()
    async with app.run_test(size=(140, 40)) as pilot:
        await wait(lambda: app.snapshot is not None and all(host.state == "live" for host in app.snapshot.hosts))
        await pilot.press("9", "ctrl+x")
        await pilot.pause()
        screen = app.screen
        assert isinstance(screen, ProbesScreen)
        screen.draw(app.snapshot)
        screen.table.move_to("h2/cpu" if "h2/cpu" in screen.table.shown_keys else "h2")
        await pilot.press("P")
        await pilot.pause()
        await pilot.press("right", "enter")
        await wait(lambda: not screen.is_probing and "measured" in screen_text(app))

        def measured_at_s() -> float:
            host = app.snapshot.host("h2") if app.snapshot is not None else None
            probe = host.probes.probe if host is not None and host.probes is not None else None
            return probe.measured_at_s if probe is not None else 0.0

        await wait(lambda: measured_at_s() >= began_s)
        assert "1 host and 0 directions measured" in screen_text(app)
        await pilot.press("5")
        await wait(lambda: "nothing was measured yet" in screen_text(app))


async def wait(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the app has no event for what its agents do
            await asyncio.sleep(0.05)


def test_a_killed_measurement_is_named_and_leaves_nothing_running(cluster: Cluster) -> None:
    odctl = cluster.start_odctl("probe", "h1,h3", "--force", "--quick", "--json")
    (pid,) = until(lambda: measuring(cluster, "h1"), what="the measuring process of h1")
    os.kill(pid, signal.SIGKILL)
    _, stderr = odctl.communicate(timeout=60)
    assert odctl.returncode == 5, stderr
    assert "h1: the probe of cpu was killed by SIGKILL" in stderr
    assert "Traceback" not in stderr
    assert not any(measuring(cluster, name) for name in NAMES)
    until(lambda: cluster.odctl("probe", "h1,h3", "--quick").exit_code == 0, what="a probe after it")


def test_a_host_that_serves_is_refused_unless_asked_for(
    cluster: Cluster, endless_model: Path, tmp_path: Path
) -> None:
    cluster.plan(
        endless_model, tmp_path / "chat.toml", "--name", "chat", "--hosts", "h1", "--context", "256",
        "--listen", free_listen(),
    )  # fmt: skip
    cluster.apply(tmp_path / "chat.toml")
    refused = cluster.odctl("probe", "h1,h2", "--force", "--quick")
    assert refused.exit_code == 7
    assert "h1: it serves deployment chat" in refused.stderr
    assert "--even-serving" in refused.stderr
    assert not any(measuring(cluster, name) for name in NAMES)
    assert cluster.odctl("probe", "h1,h2", "--quick").exit_code == 0, "what is known is shown all the same"
    assert cluster.must("probe", "h1", "--force", "--quick", "--even-serving")["hosts"]["h1"]["is_fresh"]
    cluster.must("destroy", "chat", "--yes")
