"""hosts, devices, metrics, --watch, record and replay on a real lab with a running deployment."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from odctl.recording import open_recording
from odctl.tui.model.host_rows import HostRows
from odctl.tui.model.records import host_records
from odctl.tui.replay import replay_app
from tests.integration.cluster import Cluster, free_listen, open_cluster, until
from tests.odctl.tui.reading import screen_text, settle

pytestmark = pytest.mark.slow

NAMES = ["h1", "h2"]


@pytest.fixture(scope="module")
def cluster(endless_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with open_cluster(num_hosts=2, model_dirs=(endless_model.parent,)) as cluster:
        plan = cluster.plan(
            endless_model,
            tmp_path_factory.mktemp("plan") / "plan.toml",
            *("--name", "chat", "--stages", "2", "--context", "256", "--batch", "2", "--listen", free_listen()),
        )
        cluster.apply(plan)
        yield cluster


def test_hosts_and_devices_are_tables_and_records(cluster: Cluster) -> None:
    data = cluster.must("hosts")
    assert [host["host"] for host in data["hosts"]] == NAMES
    for host in data["hosts"]:
        assert host["state"] == "live"
        assert 0.0 <= host["cpu_fraction"] <= 1.0
        assert 0 < host["memory_used_bytes"] < host["memory_total_bytes"]
        assert host["num_ranks"] == 1
        assert host["sample_age_s"] < 5.0
        assert host["received_bytes_per_s"] >= 0.0
        assert host["gpu_fraction"] is not None or host["unknown"]["gpu_fraction"]
    only = cluster.must("hosts", "h2")
    assert [host["host"] for host in only["hosts"]] == ["h2"]
    devices = cluster.must("devices", "--filter", "^h1")["devices"]
    assert devices[0]["host"] == "h1"
    assert {device["host"] for device in devices} == {"h1"}
    cpu = next(device for device in devices if device["device"] == "cpu")
    assert cpu["usable_bytes"] > 0
    assert cpu["temperature_c"] is not None or cpu["unknown"]["temperature_c"]

    table = cluster.odctl("hosts")
    assert table.exit_code == 0
    assert "● live" in table.stdout
    assert table.stdout.splitlines()[2].split()[:2] == ["HOST", "STATE"]
    assert "…" not in table.stdout, "what is piped is not cut"
    wrong = cluster.odctl("hosts", "--sort", "speed")
    assert wrong.exit_code == 3
    assert "no column `speed`" in wrong.stderr


def test_metrics_are_of_what_was_served(cluster: Cluster) -> None:
    assert cluster.odctl("run", "chat", "Hello", "--max-tokens", "24").exit_code == 0
    data = cluster.must("metrics", "chat")
    (deployment,) = data["deployments"]
    assert deployment["state"] == "serving"
    assert deployment["finished"] >= 1
    assert deployment["generated_tokens"] >= 24
    assert deployment["ttft_s_p50"] > 0
    assert deployment["time_per_token_s_p50"] > 0
    assert deployment["predicted_tokens_per_s"] > 0
    assert deployment["kv_tokens_total"] == 2 * 256
    assert deployment["num_ranks_linked"] == deployment["num_ranks"] == 2
    assert [host["host"] for host in data["hosts"]] == NAMES
    of_host = cluster.must("metrics", "h1")
    assert (of_host["deployments"], [host["host"] for host in of_host["hosts"]]) == ([], ["h1"])
    wrong = cluster.odctl("metrics", "nobody")
    assert wrong.exit_code == 3
    assert "no deployment `nobody`" in wrong.stderr
    assert "deployments: chat" in wrong.stderr
    assert "chat" in cluster.odctl("metrics").stdout


@pytest.mark.parametrize("verb", ["hosts", "devices", "metrics", "status"])
def test_watch_prints_an_object_a_line_until_ctrl_c(cluster: Cluster, verb: str) -> None:
    process = cluster.start_odctl(verb, "--watch", "--every", "1s", "--json")
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert {line["kind"] for line in lines} == {verb}
    if verb != "status":
        times = [line["data"]["taken_at_s"] for line in lines]
        assert times == sorted(set(times))
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert all(json.loads(line)["kind"] == verb for line in rest.splitlines())


def test_watch_ends_quietly_when_nobody_reads(cluster: Cluster) -> None:
    process = cluster.start_odctl("hosts", "--watch", "--every", "0.5s")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(cluster.must("status")["cluster"])
    process.stdout.close()
    assert process.wait(timeout=20) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_recording_of_the_lab_is_replayed(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "lab.rec"
    asking = threading.Thread(target=lambda: cluster.odctl("run", "chat", "Hello", "--max-tokens", "64"))
    asking.start()
    data = cluster.must("record", str(path), "--for", "4s")
    asking.join()
    assert data["num_moments"] >= 3
    assert data["ended"] == "4 s are over"
    assert data["size_bytes"] == path.stat().st_size
    again = cluster.odctl("record", str(path), "--for", "1s")
    assert again.exit_code == 3
    assert "is there already" in again.stderr

    info = json.loads(cluster.odctl("replay", str(path), "--info", "--json").stdout)["data"]
    assert (info["hosts"], info["deployments"], info["spare_bytes"]) == (NAMES, ["chat"], 0)
    with open_recording(path) as recording:
        last = recording.snapshot_at(recording.times[-1])
    assert all(host.state == "live" for host in last.hosts)
    assert all(len(host.history) > 3 for host in last.hosts), "the past of the hosts is there, too"
    records = host_records(last, HostRows(last), range(2))
    assert [record["num_ranks"] for record in records] == [1, 1]
    asyncio.run(_replay(path))


async def _replay(path: Path) -> None:
    app = replay_app(open_recording(path))
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        await pilot.press("L")
        await settle(pilot)
        text = screen_text(app)
        assert "‖ REC" in text
        assert "● live" in text
        app.action_mode("deployments")
        await settle(pilot)
        assert "● linked" in screen_text(app)
        await pilot.press("comma")
        await settle(pilot)
        assert app.snapshot is not None
        assert app.snapshot.taken_at_s == app.time.times[-2]


def test_ctrl_c_ends_a_recording_that_is_good(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "stopped.rec"
    process = cluster.start_odctl("record", str(path), "--json")
    until(lambda: path.exists() and path.stat().st_size > 4000, timeout_s=30, what="a recording")
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    data = json.loads(out)["data"]
    assert data["ended"] == "stopped by hand"
    assert "recording" in errors, "progress is on stderr"
    with open_recording(path) as recording:
        assert len(recording.times) == data["num_moments"]


def test_a_killed_recorder_leaves_a_good_recording(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "killed.rec"
    process = cluster.start_odctl("record", str(path))
    until(lambda: path.exists() and path.stat().st_size > 4000, timeout_s=30, what="a recording")
    process.kill()
    process.communicate(timeout=20)
    with open_recording(path) as recording:
        assert recording.snapshot_at(recording.times[-1]).hosts


def test_a_host_that_is_gone_is_shown_and_ends_with_4(cluster: Cluster) -> None:
    """The last test: the lab is not whole after it."""
    cluster.kill_host("h2")
    answer = cluster.odctl("hosts", "--json")
    assert answer.exit_code == 4
    lost = answer.data["hosts"][1]
    assert (lost["host"], lost["cpu_fraction"]) == ("h2", None)
    assert lost["state"] in {"unreachable", "connecting"}
    assert lost["unknown"]["cpu_fraction"]
    assert answer.data["hosts"][0]["state"] == "live"
    table = cluster.odctl("hosts")
    assert table.exit_code == 4
    assert "✗ unreachable" in table.stdout
    assert cluster.odctl("hosts", "h1").exit_code == 0
