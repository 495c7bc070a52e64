"""The routes about the host as a machine, of a real agent process over a fake NVML library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.errors import ErrorDetail
from agent.facts.sample import DeviceProcess, HostSample
from agent.wire.agent import Done, Event
from agent.wire.host import EndProcess, KernelLog, LogLines, RestartAgent
from tests.agent.daemon import Daemon, frames, running_daemon, wait_until
from tests.agent.telemetry.fake_nvml import FakeNvml


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def daemon(fake: FakeNvml) -> Iterator[Daemon]:
    with running_daemon(environment=fake.environment) as daemon:
        yield daemon


def post(daemon: Daemon, path: str, message: msgspec.Struct) -> tuple[int, bytes]:
    with daemon.client() as client:
        response = client.post(path, content=msgspec.msgpack.encode(message))
    return response.status_code, response.content


def process_on_gpu(daemon: Daemon, pid: int) -> DeviceProcess | None:
    with daemon.client() as client:
        (sample,) = frames(client.get("/v1/samples").content, HostSample)
    return next((process for device in sample.devices for process in device.processes if process.pid == pid), None)


def test_a_process_that_is_foreign_is_ended_and_one_that_is_ours_is_not(daemon: Daemon, fake: FakeNvml) -> None:
    """1. the agent's own pid is on the GPU: refused. 2. another process is: it ends. 3. it is gone: refused."""
    fake.set("nvmlDeviceGetComputeRunningProcesses_v3", device=0, value=daemon.process.pid)
    own = wait_until(lambda: process_on_gpu(daemon, daemon.process.pid), what="the agent on the GPU")
    order = EndProcess(pid=own.pid, start_ticks=own.start_ticks, device="cuda:0", by="ada", is_forced=True)
    status, answer = post(daemon, "/v1/end_process", order)
    assert (status, msgspec.msgpack.decode(answer, type=ErrorDetail).code) == (400, "E107")

    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        fake.set("nvmlDeviceGetComputeRunningProcesses_v3", device=0, value=sleeper.pid)
        found = wait_until(lambda: process_on_gpu(daemon, sleeper.pid), what="the process on the GPU")
        order = EndProcess(pid=found.pid, start_ticks=found.start_ticks, device="cuda:0", by="ada")
        wrong = msgspec.structs.replace(order, start_ticks=found.start_ticks + 1)
        status, answer = post(daemon, "/v1/end_process", wrong)
        assert (status, msgspec.msgpack.decode(answer, type=ErrorDetail).code) == (400, "E105")
        assert sleeper.poll() is None
        status, answer = post(daemon, "/v1/end_process", order)
        assert (status, msgspec.msgpack.decode(answer, type=Done).message) == (
            200,
            f"SIGTERM was sent to {found.pid}",
        )
        assert sleeper.wait(10) == -15
    finally:
        sleeper.kill()
        sleeper.wait()
    status, answer = post(daemon, "/v1/end_process", order)
    assert (status, msgspec.msgpack.decode(answer, type=ErrorDetail).code) == (400, "E105")
    with daemon.client() as client:
        events = frames(client.get("/v1/events").content, Event)
    assert [event.kind for event in events].count("ForeignProcessSignalled") == 1


def test_the_kernels_messages_come_or_the_reason_why_not(daemon: Daemon) -> None:
    log = daemon.get("/v1/kernel?tail=3", KernelLog)
    assert bool(log.messages) != bool(log.unavailable)
    assert len(log.messages) <= 3


def test_an_agent_that_nothing_keeps_refuses_to_be_restarted(daemon: Daemon) -> None:
    status, answer = post(daemon, "/v1/restart", RestartAgent(by="ada"))
    detail = msgspec.msgpack.decode(answer, type=ErrorDetail)
    assert (status, detail.code) == (500, "E805")
    assert "odctl bootstrap alpha" in detail.hint
    assert daemon.process.poll() is None


def test_every_log_is_followed_and_one_alone_by_its_name(daemon: Daemon) -> None:
    extra = daemon.prefix / "var" / "log" / "extra.log"

    def first(route: str, count: int) -> list[LogLines]:
        found: list[LogLines] = []
        buffer = b""
        with daemon.client() as client, client.stream("GET", route) as response:
            for chunk in response.iter_raw():
                buffer += chunk
                end = 4 + int.from_bytes(buffer[:4], "big")
                while len(buffer) >= 4 and len(buffer) >= end:
                    found += frames(buffer[:end], LogLines)
                    buffer = buffer[end:]
                    end = 4 + int.from_bytes(buffer[:4], "big")
                if len(found) >= count:
                    return found
                if not extra.exists():
                    extra.write_text("hello\n")
        raise AssertionError("the stream ended")

    agent, added = first("/v1/logs?tail=1&follow=1", 2)
    assert (agent.name, len(agent.lines), agent.is_past) == ("agent", 1, True)
    assert (added.name, added.lines, added.is_past) == ("extra", ("hello",), False)
    (alone,) = first("/v1/logs?name=extra&tail=5&follow=1", 1)
    assert (alone.name, alone.lines) == ("extra", ("hello",))
    with daemon.client() as client:
        once = frames(client.get("/v1/logs?tail=1&frames=1").content, LogLines)
        assert [(lines.name, len(lines.lines)) for lines in once] == [("agent", 1), ("extra", 1)]
        assert client.get("/v1/logs").text.split("\n") == ["agent", "extra"]
        assert client.get("/v1/logs?name=../agent&follow=1").status_code == 400


def test_a_host_without_a_gpu_says_so_for_each_link(tmp_path: Path) -> None:
    with running_daemon(environment={"LD_LIBRARY_PATH": str(tmp_path)}) as daemon, daemon.client() as client:
        (sample,) = frames(client.get("/v1/samples").content, HostSample)
    cpu = sample.devices[0]
    assert {cpu.nvlink_sent_bytes_per_s, cpu.pcie_lanes} == {cpu.pcie_generation}
    assert "not a GPU" in str(cpu.pcie_generation)
