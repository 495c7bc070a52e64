"""A real agent process, asked over its unix socket."""

from __future__ import annotations

import json
import os
import platform
import stat
import time
from collections.abc import Iterator

import httpx
import msgspec
import pytest

from agent.errors import ErrorDetail
from agent.facts.cluster import HostFacts
from agent.facts.sample import HostSample
from agent.journal import Journal
from agent.wire.agent import (
    AbortRequest,
    DeploymentRecord,
    Event,
    FaultReport,
    Handshake,
    Heartbeat,
    ModelHolding,
    ModelQuery,
)
from tests.agent.daemon import Daemon, frames, running_daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon(labels={"rack": "a"}, memory_fraction=0.5, release="r1") as daemon:
        yield daemon


def refusal(response: httpx.Response) -> tuple[int, ErrorDetail]:
    return response.status_code, msgspec.msgpack.decode(response.content, type=ErrorDetail)


def test_the_handshake_says_who_answers(daemon: Daemon) -> None:
    handshake = daemon.get("/v1/handshake", Handshake)
    assert (handshake.host, handshake.cluster, handshake.release) == ("alpha", "lab", "r1")
    assert handshake.pid == daemon.process.pid
    assert abs(handshake.started_at_s - time.time()) < 120


def test_facts_are_of_this_host(daemon: Daemon) -> None:
    facts = daemon.get("/v1/facts", HostFacts)
    assert (facts.name, facts.labels, facts.kernel) == ("alpha", {"rack": "a"}, platform.release())
    assert facts.devices[0].usable_bytes == facts.devices[0].memory_bytes // 2


def test_past_samples_come_first_and_then_live_ones(daemon: Daemon) -> None:
    taken: list[HostSample] = []
    buffer = b""
    with daemon.client() as client, client.stream("GET", "/v1/samples?history_s=60&follow=1") as response:
        for chunk in response.iter_raw():
            buffer += chunk
            whole, buffer = split_frames(buffer)
            taken += whole
            if len(taken) >= 3:
                break
    times = [sample.taken_at_s for sample in taken]
    assert times == sorted(set(times))
    agent = taken[-1].processes[0]
    assert (agent.role, agent.pid) == ("agent", daemon.process.pid)


def split_frames(data: bytes) -> tuple[list[HostSample], bytes]:
    end = 0
    while len(data) - end >= 4 and len(data) - end - 4 >= (length := int.from_bytes(data[end : end + 4], "big")):
        end += 4 + length
    return frames(data[:end]), data[end:]


def test_without_history_the_newest_sample_is_answered(daemon: Daemon) -> None:
    with daemon.client() as client:
        (sample,) = frames(client.get("/v1/samples").content)
    assert abs(sample.taken_at_s - time.time()) < 5


def test_events_tell_of_the_start_and_can_be_followed(daemon: Daemon) -> None:
    with daemon.client() as client:
        (started,) = frames(client.get("/v1/events?after=0&limit=1").content, Event)
        assert (started.kind, started.host) == ("AgentStarted", "alpha")
        assert json.loads(started.body)["pid"] == daemon.process.pid
        with client.stream("GET", "/v1/events?after=0&follow=1") as response:
            first = next(response.iter_raw())
        assert frames(first, Event)[0] == started


def test_the_newest_events_of_some_kinds_are_told_alone(daemon: Daemon) -> None:
    with daemon.client() as client:
        (started,) = frames(client.get("/v1/events?kinds=AgentStarted,FaultObserved&limit=5").content, Event)
        assert started.kind == "AgentStarted"
        assert frames(client.get("/v1/events?kinds=FaultObserved").content, Event) == []


def test_an_agent_that_holds_nothing_says_so(daemon: Daemon) -> None:
    assert daemon.get("/v1/models", tuple[ModelHolding, ...]) == ()
    assert daemon.get("/v1/deployments", tuple[DeploymentRecord, ...]) == ()
    assert daemon.get("/v1/faults", FaultReport) == FaultReport(faults=())
    assert daemon.get("/v1/heartbeat?controller=alpha", Heartbeat).ranks == ()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/nothing", None, 404, "E102"),
        ("POST", "/v1/facts", b"", 405, "E102"),
        ("POST", "/v1/apply", b"\x00", 400, "E102"),
        ("POST", "/v1/instruct", msgspec.msgpack.encode({"type": "dance"}), 400, "E102"),
        ("GET", "/v1/samples?history_s=-3", None, 400, "E102"),
        ("GET", "/v1/events?kinds=AgentStarted&after=0", None, 400, "E102"),
        ("GET", "/v1/deployments/chat", None, 404, "E701"),
        ("GET", "/v1/logs?name=../../etc/passwd", None, 400, "E105"),
        ("POST", "/v1/abort", msgspec.msgpack.encode(AbortRequest(deployment="x", holder="me")), 404, "E701"),
        ("POST", "/v1/manifest", msgspec.msgpack.encode(ModelQuery(digest="0" * 64)), 404, "E7"),
    ],
)
def test_errors_have_a_status_and_a_detail(
    daemon: Daemon, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    with daemon.client() as client:
        got_status, detail = refusal(client.request(method, path, content=body))
    assert got_status == status
    assert detail.code.startswith(code)
    assert detail.message


def test_people_with_curl_get_json(daemon: Daemon) -> None:
    with daemon.client() as client:
        answer = client.get("/v1/handshake", headers={"accept": "application/json"})
    assert answer.json()["host"] == "alpha"


def test_logs_are_json_lines(daemon: Daemon) -> None:
    with daemon.client() as client:
        assert "agent" in client.get("/v1/logs").text.split()
        lines = client.get("/v1/logs?name=agent&tail=50").text.splitlines()
    started = next(line for line in map(json.loads, lines) if line["event"] == "agent started")
    assert (started["pid"], started["level"]) == (daemon.process.pid, "info")


def test_prometheus_sees_the_same_figures(daemon: Daemon) -> None:
    with daemon.client() as client:
        text = client.get("/metrics").text
    memory = next(line for line in text.splitlines() if line.startswith("odctl_host_memory_total_bytes{"))
    (sample,) = frames(httpx_get(daemon, "/v1/samples"))
    assert float(memory.split()[-1]) == sample.memory_total_bytes
    # No sensor, no series: an unknown temperature is not 0.
    if 'odctl_device_temperature_celsius{device="cpu"' in text:
        assert 'odctl_device_temperature_celsius{device="cpu",host="alpha",kind="cpu"} 0.0' not in text


def httpx_get(daemon: Daemon, path: str) -> bytes:
    with daemon.client() as client:
        return client.get(path).content


def test_the_socket_is_its_owners_alone(daemon: Daemon) -> None:
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.socket.parent.stat().st_mode) == 0o700


def test_sigterm_ends_the_agent_in_order_and_a_successor_takes_over() -> None:
    """1. An agent runs and its pid file says so. 2. A second one under the same prefix is refused. 3. SIGTERM: it
    leaves with 0, without socket or pid file. 4. Its journal tells of start and stop, and the next one goes on."""
    with running_daemon() as first:
        pid_file = first.prefix / "run" / "agent.pid"
        assert int(pid_file.read_text()) == first.process.pid

        second = Daemon(first.prefix, first.config, environment={})
        output, _ = second.process.communicate(timeout=20)
        assert second.process.returncode == 1
        assert f"an agent runs already under {first.prefix} (pid {first.process.pid})" in output.decode()

        with first.client() as client, client.stream("GET", "/v1/samples?follow=1") as response:
            # A stream without end must not keep the agent from leaving.
            next(response.iter_raw())
            began = time.monotonic()
            assert first.stop() == 0
            assert time.monotonic() - began < 5
        assert not pid_file.exists()
        assert not first.socket.exists()

        third = Daemon(first.prefix, first.config, environment={})
        third.wait_ready()
        assert third.stop() == 0
        journal = Journal(first.prefix / "var" / "journal.sqlite", host="alpha")
        kinds = [event.kind for event in journal.read(0, 100)]
        journal.close()
        assert kinds == ["AgentStarted", "AgentStopped"] * 2


def test_a_killed_agent_leaves_nothing_that_stops_its_successor() -> None:
    with running_daemon() as first:
        first.process.kill()
        first.process.communicate(timeout=10)
        assert first.socket.exists()
        second = Daemon(first.prefix, first.config, environment={})
        second.wait_ready()
        assert second.get("/v1/handshake", Handshake).pid == second.process.pid
        assert second.stop() == 0


def test_a_config_that_cannot_be_read_is_named() -> None:
    with running_daemon() as daemon:
        daemon.stop()
        (daemon.prefix / "etc" / "agent.json").write_text('{"cluster": 3}')
        again = Daemon(daemon.prefix, daemon.config, environment={})
        output, _ = again.process.communicate(timeout=20)
        assert again.process.returncode == 1
        assert output.decode().startswith("E101: ")
        assert "bootstrap this host again" in output.decode()
        assert os.listdir(daemon.prefix / "run") == []  # noqa: PTH208
