"""Children that outlive the agent: spawned in sessions of their own, recorded on disk, adopted at start.

A process is known by its pid and its start time, so a recycled pid is never taken for ours. Deaths are seen by
pidfd, which works for adopted processes too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import FleetError
from agent.supervisor.paths import HostPaths
from agent.telemetry.process_start import process_state, start_ticks

__all__ = ["ProcessExit", "ProcessRecord", "ProcessTable", "process_state", "start_ticks"]

log = logging.getLogger(__name__)

TERMINATE_WAIT_S = 5.0
KILL_WAIT_S = 5.0

ProcessRole = Literal["rank", "gateway"]


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One child, as `run/NAME.process.json` keeps it. `start_ticks` is field 22 of /proc/PID/stat."""

    name: str
    role: ProcessRole
    pid: int
    start_ticks: int
    socket: str
    deployment: str = ""
    generation: int = 0
    rank_id: str = ""
    device: str = ""
    listen: str = ""


class ProcessExit(msgspec.Struct, frozen=True, kw_only=True):
    """`evidence` holds the exit code or signal where they are known (an adopted process hides them)."""

    record: ProcessRecord
    was_expected: bool
    evidence: dict[str, str | int | float]


class ProcessTable:
    """All children of this host's agent. Used on one event loop only."""

    def __init__(self, paths: HostPaths, *, on_exit: Callable[[ProcessExit], None]) -> None:
        self._paths = paths
        self._on_exit = on_exit
        self._records: dict[str, ProcessRecord] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._pidfds: dict[str, int] = {}
        self._gone: dict[str, asyncio.Event] = {}
        self._expected: set[str] = set()
        self._blame: dict[str, dict[str, str | int | float]] = {}

    def adopt_all(self) -> list[ProcessRecord]:
        """Take over children of a former agent. Those that died meanwhile are returned, not watched."""
        dead = []
        for path in sorted(self._paths.run.glob("*.process.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=ProcessRecord)
            except msgspec.DecodeError:
                # Written in one rename, so only a foreign or damaged file gets here; it names no process of ours.
                log.warning("process record unreadable", extra={"path": str(path)})
                path.unlink()
                continue
            if start_ticks(record.pid) == record.start_ticks and process_state(record.pid) != "Z":
                self._watch(record)
            else:
                path.unlink()
                dead.append(record)
        return dead

    def spawn(
        self, record: ProcessRecord, argv: list[str], *, environment: Mapping[str, str] | None = None
    ) -> ProcessRecord:
        """Start `python -m …` in a session of its own; stdout and stderr go to its log. Fills pid and start."""
        assert record.name not in self._records, f"{record.name} runs already"
        self._paths.logs.mkdir(parents=True, exist_ok=True)
        Path(record.socket).unlink(missing_ok=True)
        try:
            with self._paths.log(record.name).open("ab") as output:
                child = subprocess.Popen(
                    [sys.executable, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**os.environ, **(environment or {})},
                )
        except OSError as error:
            raise FleetError("E804", f"cannot start {record.name}: {error}") from error
        record = msgspec.structs.replace(record, pid=child.pid, start_ticks=start_ticks(child.pid) or 0)
        _write_atomically(self._paths.record(record.name), msgspec.json.encode(record))
        self._children[record.name] = child
        self._watch(record)
        return record

    def get(self, name: str) -> ProcessRecord | None:
        return self._records.get(name)

    def all(self, role: ProcessRole | None = None) -> list[ProcessRecord]:
        return [record for record in self._records.values() if role in (None, record.role)]

    def expect_exit(self, name: str) -> None:
        """Its end, when it comes, is no fault."""
        self._expected.add(name)

    def kill(self, name: str, *, because: dict[str, str | int | float]) -> None:
        """SIGKILL at once; the exit then carries `because` as evidence."""
        record = self._records.get(name)
        if record is not None:
            self._blame[name] = because
            _signal(record, signal.SIGKILL)

    async def stop(self, name: str) -> None:
        """Terminate, wait 5 s, kill. Returns when it is gone."""
        record = self._records.get(name)
        if record is None:
            return
        gone = self._gone[name]
        self._expected.add(name)
        _signal(record, signal.SIGTERM)
        # A stopped process (SIGSTOP) does not see SIGTERM before it runs again.
        _signal(record, signal.SIGCONT)
        try:
            async with asyncio.timeout(TERMINATE_WAIT_S):
                await gone.wait()
        except TimeoutError:
            _signal(record, signal.SIGKILL)
            try:
                async with asyncio.timeout(KILL_WAIT_S):
                    await gone.wait()
            except TimeoutError as error:
                raise FleetError(
                    "E805", f"process {name} (pid {record.pid}) does not die, not even by SIGKILL"
                ) from error

    def close(self) -> None:
        """Stop watching; the children live on."""
        loop = asyncio.get_running_loop()
        for pidfd in self._pidfds.values():
            loop.remove_reader(pidfd)
            os.close(pidfd)
        self._pidfds.clear()

    def _watch(self, record: ProcessRecord) -> None:
        self._records[record.name] = record
        self._gone[record.name] = asyncio.Event()
        try:
            pidfd = os.pidfd_open(record.pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._ended, record.name)
            return
        self._pidfds[record.name] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended, record.name)

    def _ended(self, name: str) -> None:
        pidfd = self._pidfds.pop(name, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        record = self._records.pop(name)
        evidence: dict[str, str | int | float] = {"pid": record.pid}
        child = self._children.pop(name, None)
        if child is not None:
            status = child.wait()
            if status < 0:
                evidence["signal"] = signal.Signals(-status).name
            else:
                evidence["exit_status"] = status
        else:
            evidence["exit_status"] = "unknown: started by an earlier agent"
        evidence |= self._blame.pop(name, {})
        evidence |= _last_words(self._paths.log(name))
        was_expected = name in self._expected
        self._expected.discard(name)
        self._paths.record(name).unlink(missing_ok=True)
        Path(record.socket).unlink(missing_ok=True)
        self._gone.pop(name).set()
        self._on_exit(ProcessExit(record=record, was_expected=was_expected, evidence=evidence))


def _signal(record: ProcessRecord, number: signal.Signals) -> None:
    if start_ticks(record.pid) != record.start_ticks:
        return
    try:
        os.kill(record.pid, number)
    except ProcessLookupError:
        log.debug("already gone", extra={"child": record.name})


def _last_words(path: Path) -> dict[str, str | int | float]:
    try:
        with path.open("rb") as log_file:
            log_file.seek(max(0, path.stat().st_size - 2000))
            lines = log_file.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return {}
    return {"last_log_line": lines[-1][:300]} if lines else {}


def _write_atomically(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
