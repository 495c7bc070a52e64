"""`python -m tests.benchmarks.stop_and_go`: stops and continues processes by turns, until its input ends.

A line of input is a list of `Turn`s, and takes the place of the list before. It runs before all other processes, so
that it is late by tens of microseconds; its own work is a few per cent of a core.
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import msgspec

PERIOD_S = 0.002
LOOK_S = 0.02
"""How often it is looked which processes there are, and whether other turns are wanted."""
REAL_TIME_PRIORITY = 50


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """Processes of a control group go on from `begin` for `share` of each period, both 0 to 1, and stand else."""

    group: str
    begin: float
    share: float


class _Controlled:
    """A turn's processes. Those that are agents stay as they are: who watches over ranks is no part of a model."""

    def __init__(self, turn: Turn) -> None:
        self._members = Path(turn.group) / "cgroup.procs"
        self._kept: dict[int, bool] = {}
        self.pids: tuple[int, ...] = ()

    def look(self) -> None:
        found = [int(word) for word in self._members.read_text().split()]
        self._kept = {pid: self._kept[pid] if pid in self._kept else _computes(pid) for pid in found}
        self.pids = tuple(pid for pid, computes in self._kept.items() if computes)

    def send(self, number: int) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def _computes(pid: int) -> bool:
    try:
        return b"agent.engine" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def main() -> None:
    select.select([0], [], [])  # who began this has put it into the right group by then
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAL_TIME_PRIORITY))
    controlled: list[tuple[Turn, _Controlled]] = []
    edges: list[tuple[float, int, _Controlled]] = []
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
                    controlled = [
                        (turn, _Controlled(turn)) for turn in msgspec.json.decode(lines[-1], type=list[Turn])
                    ]
                    edges = _edges(controlled)
                if not chunk:
                    _release(controlled)
                    return
            for _, processes in controlled:
                processes.look()
        for offset, number, processes in edges:
            wait_s = begin_s + offset * PERIOD_S - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            processes.send(number)
        begin_s = max(begin_s + PERIOD_S, time.monotonic() - PERIOD_S)
        if not edges:
            time.sleep(LOOK_S)


def _edges(controlled: list[tuple[Turn, _Controlled]]) -> list[tuple[float, int, _Controlled]]:
    """When in a period who is told what; who ends a turn is told before who begins one."""
    found = []
    for turn, processes in controlled:
        found += [
            (turn.begin, 1, signal.SIGCONT, processes),
            (min(1.0, turn.begin + turn.share), 0, signal.SIGSTOP, processes),
        ]
    return [(at, number, processes) for at, _, number, processes in sorted(found, key=lambda edge: edge[:2])]


def _release(controlled: list[tuple[Turn, _Controlled]]) -> None:
    for _, processes in controlled:
        processes.send(signal.SIGCONT)


if __name__ == "__main__":
    main()
