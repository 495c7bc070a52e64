"""Makes lab hosts of one machine unequal: each computes for a share of every two milliseconds. Root only.

A host's ranks and probes are frozen and let go on again and again, so that everything takes longer, as on a slower
core. The kernel's quotas do not do that: they are charged by its timer, every 4 ms where HZ=250, and saved up
meanwhile. A stage that computes for 3 ms and then waits for the others is never stopped by a quota of a third of a
core, and one that computes without a pause is, for 7 ms at a time.

Hosts that share a core have their turns one after the other. Those that compute together, ranks of one group of
tensor parallelism, get cores of their own and turns that begin together: no machine waits for another one's pauses.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from tests.benchmarks.stop_and_go import ENGINE, NOT_PERMITTED, Turn, members

THROTTLE = (sys.executable, "-m", "tests.benchmarks.stop_and_go")
V1, V2 = Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup")


class SlowHosts:
    """Hosts under the throttle, by name. `place` says which of them compute together from now on."""

    def __init__(self, shares: Mapping[str, float], groups: Mapping[str, Path], process: subprocess.Popen[bytes]):
        self._shares = shares
        self._groups = groups
        self._process = process

    def place(self, together: Sequence[Sequence[str]] = ()) -> None:
        """Cores and turns: groups that compute together first. Raises ValueError where a core is overbooked."""
        turns = turns_of(self._shares, together, cores=sorted(os.sched_getaffinity(0)))
        for host, (core, _) in turns.items():
            for pid in _pids(self._groups[host]):
                _pin(pid, core)
        orders = [
            Turn(group=str(self._groups[host]), begin=begin, share=self._shares[host])
            for host, (_, begin) in turns.items()
        ]
        assert self._process.stdin is not None, "it was opened with one"
        self._process.stdin.write(msgspec.json.encode(orders) + b"\n")
        self._process.stdin.flush()


def turns_of(
    shares: Mapping[str, float], together: Sequence[Sequence[str]], *, cores: Sequence[int]
) -> dict[str, tuple[int, float]]:
    """A core for each host, and where in a period its turn begins (0 to 1)."""
    used = dict.fromkeys(cores, 0.0)
    turns: dict[str, tuple[int, float]] = {}
    groups = sorted((group for group in together if len(group) > 1), key=len, reverse=True)
    grouped = {host for group in groups for host in group}
    alone = sorted(set(shares) - grouped, key=lambda host: (-shares[host], host))
    for group in [*groups, *((host,) for host in alone)]:
        homes = sorted(cores, key=lambda core: (used[core], core))[: len(group)]
        begin = max(used[core] for core in homes)
        if len(homes) < len(group) or begin + max(shares[host] for host in group) > 1:
            raise ValueError(f"no room for {', '.join(group)} beside the others on {len(cores)} cores")
        for host, core in zip(sorted(group, key=lambda host: -shares[host]), homes, strict=True):
            turns[host] = core, begin
            used[core] = begin + shares[host]
    return turns


def can_slow() -> bool:
    """Whether this machine lets us: root, groups that can be frozen, and real-time priority.

    Raises CalledProcessError where the throttle ends for any other reason.
    """
    if os.geteuid() != 0 or _controller() is None:
        return False
    tried = subprocess.run(THROTTLE, stdin=subprocess.DEVNULL, check=False)
    if tried.returncode != NOT_PERMITTED:
        tried.check_returncode()
    return tried.returncode == 0


@contextmanager
def slow_hosts(agents: Mapping[str, int], shares: Mapping[str, float], *, name: str) -> Iterator[SlowHosts]:
    """Hosts by name, of these agents' processes and all that those start later, compute for their shares."""
    controller = _controller()
    assert controller is not None, "can_slow says so before"
    groups = {host: controller / f"odctl-{name}-{pid}" for host, pid in agents.items()}
    process = subprocess.Popen(THROTTLE, stdin=subprocess.PIPE)
    try:
        for host, pid in agents.items():
            groups[host].mkdir()
            (groups[host] / "cgroup.procs").write_text(str(pid))
        hosts = SlowHosts(shares, groups, process)
        hosts.place()
        yield hosts
    finally:
        assert process.stdin is not None, "it was opened with one"
        process.stdin.close()
        process.wait()
        for of_host in groups.values():
            for group in (of_host / ENGINE, of_host):
                if group.exists():
                    for pid in members(group):
                        with suppress(OSError):  # it has ended since
                            (controller / "cgroup.procs").write_text(str(pid))
                    group.rmdir()


def _pids(host: Path) -> list[int]:
    return [pid for group in (host, host / ENGINE) if group.exists() for pid in members(group)]


def _pin(pid: int, core: int) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), {core})


def _controller() -> Path | None:
    """Where groups are made that can be frozen."""
    for folder in (V1, V2):
        if (folder / "cgroup.procs").exists() and os.access(folder, os.W_OK):
            return folder
    return None
