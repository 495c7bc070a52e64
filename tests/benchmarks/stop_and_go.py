"""`python -m tests.benchmarks.stop_and_go`: freezes processes and lets them go on by turns, until its input ends.

A line of input is a list of `Turn`s, and takes the place of the list before. It runs before all other processes, so
that it is late by tens of microseconds; its own work is a few per cent of a core.
"""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

PERIOD_S = 0.002
LOOK_S = 0.02
"""How often it is looked which processes there are, and whether other turns are wanted."""
REAL_TIME_PRIORITY = 50
NOT_PERMITTED = 77
"""The exit status where this machine gives no real-time priority. Anything else that ends it is a bug."""
CPU_ROOT = Path("/sys/fs/cgroup/cpu/cgroup.procs")
"""Of cgroup v1, where each controller has groups of its own."""
ENGINE = "engine"
"""The group below a host's in which its ranks and probes are."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """Engines of a control group go on from `begin` for `share` of each period, both 0 to 1, and are frozen else.

    By the group's freezer: signals would stop them as well, and agents kill a rank that somebody has stopped.
    """

    group: str
    begin: float
    share: float


class _Controlled:
    """A turn's processes. Those that are agents stay as they are: who watches over ranks is no part of a model."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self._group = Path(turn.group)
        self._known: set[int] = set()
        engine = self._group / ENGINE
        engine.mkdir(exist_ok=True)
        self._engine_members = engine / "cgroup.procs"
        is_v2 = (engine / "cgroup.freeze").exists()
        self._words = (b"0", b"1") if is_v2 else (b"THAWED", b"FROZEN")
        self._switch = os.open(engine / ("cgroup.freeze" if is_v2 else "freezer.state"), os.O_WRONLY)

    def look(self) -> None:
        """Take in what has been started since."""
        found = set(members(self._group))
        for pid in found - self._known:
            if _computes(pid):
                with suppress(OSError):  # it has ended since
                    self._engine_members.write_text(str(pid))
        self._known = found

    def set_frozen(self, is_frozen: bool) -> None:
        os.pwrite(self._switch, self._words[is_frozen], 0)

    def release(self) -> None:
        self.set_frozen(False)
        os.close(self._switch)


def members(group: Path) -> list[int]:
    """Processes of a control group, by id."""
    return [int(word) for word in (group / "cgroup.procs").read_text().split()]


def _computes(pid: int) -> bool:
    try:
        return b"agent.engine" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def main() -> None:
    if CPU_ROOT.exists():  # a group below it may have no real-time priority to give
        CPU_ROOT.write_text(str(os.getpid()))
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAL_TIME_PRIORITY))
    except PermissionError:
        sys.exit(NOT_PERMITTED)
    controlled: list[_Controlled] = []
    edges: list[tuple[float, bool, _Controlled]] = []
    begin_s = time.monotonic()
    look_s = 0.0
    text = b""
    while True:
        if begin_s >= look_s:
            look_s = begin_s + LOOK_S
            if select.select([0], [], [], 0)[0]:
                chunk = os.read(0, 1 << 16)
                text += chunk
                *lines, text = text.split(b"\n")
                if lines:
                    _release(controlled)
                    controlled = [_Controlled(turn) for turn in msgspec.json.decode(lines[-1], type=list[Turn])]
                    edges = _edges(controlled)
                if not chunk:
                    _release(controlled)
                    return
            for processes in controlled:
                processes.look()
        for offset, is_frozen, processes in edges:
            wait_s = begin_s + offset * PERIOD_S - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            processes.set_frozen(is_frozen)
        begin_s = max(begin_s + PERIOD_S, time.monotonic() - PERIOD_S)
        if not edges:
            time.sleep(LOOK_S)


def _edges(controlled: list[_Controlled]) -> list[tuple[float, bool, _Controlled]]:
    """When in a period whose processes are frozen or let go on; who ends a turn is told before who begins one."""
    found = []
    for processes in controlled:
        turn = processes.turn
        found += [(turn.begin, 1, processes), (min(1.0, turn.begin + turn.share), 0, processes)]
    return [(at, not goes_on, processes) for at, goes_on, processes in sorted(found, key=lambda edge: edge[:2])]


def _release(controlled: list[_Controlled]) -> None:
    for processes in controlled:
        processes.release()


if __name__ == "__main__":
    main()
