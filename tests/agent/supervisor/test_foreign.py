"""Ending processes: real ones, started here, and only those that are not ours."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.facts.sample import DeviceProcess, DeviceSample, NotAvailable
from agent.journal import Journal
from agent.supervisor.foreign import end_foreign, restart_agent, who_keeps
from agent.supervisor.paths import HostPaths
from agent.telemetry.process_start import start_ticks
from agent.wire.host import EndProcess, RestartAgent

NA = NotAvailable("not sampled")
NOBODY = frozenset({0})


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite", host="alpha")
    yield journal
    journal.close()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def device(*processes: DeviceProcess) -> DeviceSample:
    return DeviceSample(
        id="cuda:0",
        kind="cuda",
        name="GPU",
        utilisation=NA,
        memory_used_bytes=NA,
        memory_total_bytes=NA,
        temperature_c=NA,
        power_w=NA,
        power_limit_w=NA,
        sm_clock_hz=NA,
        memory_clock_hz=NA,
        processes=processes,
    )


def seen(pid: int, **changes: object) -> DeviceProcess:
    process = DeviceProcess(
        pid=pid, user="bob", command="train", memory_bytes=NA, start_ticks=start_ticks(pid) or 0
    )
    return msgspec.structs.replace(process, **changes)


def order(process: DeviceProcess, **changes: object) -> EndProcess:
    made = EndProcess(pid=process.pid, start_ticks=process.start_ticks, device="cuda:0", by="ada@desk:1")
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(("is_forced", "number"), [(False, signal.SIGTERM), (True, signal.SIGKILL)])
def test_a_foreign_process_is_ended_and_that_is_written_down(
    sleeper: subprocess.Popen[bytes], journal: Journal, is_forced: bool, number: signal.Signals
) -> None:
    process = seen(sleeper.pid)
    wanted = order(process, is_forced=is_forced)
    done = end_foreign(wanted, host="alpha", devices=[device(process)], own_pids=NOBODY, journal=journal)
    assert sleeper.wait(10) == -number
    assert number.name in done.message
    (event,) = journal.read_last(1)
    body = json.loads(event.body)
    assert (event.kind, body["pid"], body["signal"], body["by"]) == (
        "ForeignProcessSignalled",
        sleeper.pid,
        number.name,
        "ada@desk:1",
    )


def refused(
    journal: Journal, wanted: EndProcess, *processes: DeviceProcess, own_pids: frozenset[int] = NOBODY
) -> FleetError:
    with pytest.raises(FleetError) as caught:
        end_foreign(wanted, host="alpha", devices=[device(*processes)], own_pids=own_pids, journal=journal)
    assert journal.read_last(1) == [], "nothing was done, so nothing is written down"
    return caught.value


def test_a_pid_that_went_to_another_process_is_left_alone(
    sleeper: subprocess.Popen[bytes], journal: Journal
) -> None:
    """The device's list is older than the process that has the pid now."""
    old = seen(sleeper.pid, start_ticks=1)
    error = refused(journal, order(old), old)
    assert (error.code, error.host) == ("E105", "alpha")
    assert sleeper.poll() is None


def test_what_is_on_no_device_is_not_ended(sleeper: subprocess.Popen[bytes], journal: Journal) -> None:
    process = seen(sleeper.pid)
    assert refused(journal, order(process)).code == "E105"
    assert refused(journal, order(process, device="cuda:1"), process).code == "E105"
    assert refused(journal, order(process, start_ticks=0), seen(sleeper.pid, start_ticks=0)).code == "E105"
    assert sleeper.poll() is None


def test_what_is_ours_is_not_ended(sleeper: subprocess.Popen[bytes], journal: Journal) -> None:
    process = seen(sleeper.pid)
    by_pid = refused(journal, order(process), process, own_pids=frozenset({sleeper.pid}))
    rank = refused(journal, order(process), msgspec.structs.replace(process, rank_id="r0s0t0"))
    child = refused(journal, order(process), process, own_pids=frozenset({os.getpid()}))
    assert {error.code for error in (by_pid, rank, child)} == {"E107"}
    assert sleeper.poll() is None


def test_what_the_agents_user_may_not_signal_says_whose_it_is(
    sleeper: subprocess.Popen[bytes], journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pidfd: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    process = seen(sleeper.pid)
    error = refused(journal, order(process), process)
    assert error.code == "E805"
    assert "belongs to bob" in error.message
    assert "as bob or as root" in error.hint


async def test_an_agent_that_nothing_keeps_is_not_ended(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(FleetError, match="nothing would start this agent again") as caught:
        restart_agent(RestartAgent(by="ada"), host="alpha", paths=HostPaths(tmp_path), journal=journal)
    assert caught.value.code == "E805"
    assert journal.read_last(1) == []


async def test_an_agent_below_the_keeper_ends_with_sigterm(tmp_path: Path, journal: Journal) -> None:
    paths = HostPaths(tmp_path)
    paths.run.mkdir()
    (paths.run / "keeper.pid").write_text(f"{os.getppid()}\n")
    assert who_keeps(paths) == "the keeper"
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard.set)
    try:
        done = restart_agent(RestartAgent(by="ada"), host="alpha", paths=paths, journal=journal)
        assert not heard.is_set(), "the answer goes out first"
        async with asyncio.timeout(5):
            await heard.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    assert "the keeper starts it again" in done.message
    (event,) = journal.read_last(1)
    assert event.kind == "AgentRestartAsked"


def test_a_keeper_that_is_not_above_this_process_keeps_it_not(tmp_path: Path) -> None:
    paths = HostPaths(tmp_path)
    paths.run.mkdir()
    (paths.run / "keeper.pid").write_text("999999999\n")
    assert who_keeps(paths) == ""
    (paths.run / "keeper.pid").write_text("damaged")
    assert who_keeps(paths) == ""
