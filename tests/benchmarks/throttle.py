"""Makes lab hosts unequal: CPU quotas for the processes of a host, rates for the links between two. Root only.

Quotas are the kernel's (cgroup v1 or v2), with a period of milliseconds so that a rank is slowed down evenly and not
stopped for long. Rates are `tc htb` classes on the loopback interface of a network namespace that the benchmark runs
in by itself; loopback has no latency to speak of, so that a message costs what its bytes take.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
PERIOD_US = 2000
LOOPBACK_MTU = 1500
IN_NAMESPACE = "ODCTL_BENCH_NAMESPACE"
TOLD = "unshare, tc and ip as root"


def can_throttle() -> bool:
    """Whether this machine lets us: root, a writable cpu controller, and the tools."""
    has_tools = all(shutil.which(tool) for tool in ("unshare", "tc", "ip"))
    return os.geteuid() == 0 and has_tools and _controller() is not None


def enter_namespace(module: str, arguments: list[str]) -> int | None:
    """Run this module again in a network namespace of its own and return its status; None once inside."""
    if IN_NAMESPACE in os.environ:
        _run("ip", "link", "set", "lo", "up", "mtu", str(LOOPBACK_MTU))
        return None
    command = ["unshare", "--net", sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env={**os.environ, IN_NAMESPACE: "1"}, check=False).returncode


@contextmanager
def quotas(shares: Mapping[int, float], *, name: str) -> Iterator[None]:
    """Processes by id, and those that they will start, get so many cores each, until the end."""
    controller = _controller()
    assert controller is not None, "asked before by can_throttle"
    groups = {pid: controller / f"odctl-{name}-{pid}" for pid in shares}
    try:
        for pid, share in shares.items():
            group = groups[pid]
            group.mkdir()
            quota_us = max(1000, round(share * PERIOD_US))
            period_us = round(quota_us / share)
            if controller == V1:
                (group / "cpu.cfs_period_us").write_text(str(period_us))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            else:
                (group / "cpu.max").write_text(f"{quota_us} {period_us}")
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for group in groups.values():
            if group.exists():
                for pid in (group / "cgroup.procs").read_text().split():
                    (controller / "cgroup.procs").write_text(pid)
                group.rmdir()


@contextmanager
def link_rates(rates: Mapping[tuple[str, str], float]) -> Iterator[None]:
    """Bytes/s between pairs of addresses, each way by itself. Only within `enter_namespace`."""
    assert IN_NAMESPACE in os.environ, "the machine's own loopback is not ours to shape"
    _run("tc", "qdisc", "replace", "dev", "lo", "root", "handle", "1:", "htb", "default", "0")
    minor = 10
    try:
        for (one, other), rate in rates.items():
            for source, target in ((one, other), (other, one)):
                bits = f"{round(rate * 8)}bit"
                burst = ("burst", "4kb", "cburst", "4kb")
                _run(
                    "tc",
                    "class",
                    "add",
                    "dev",
                    "lo",
                    "parent",
                    "1:",
                    "classid",
                    f"1:{minor}",
                    "htb",
                    "rate",
                    bits,
                    *burst,
                )
                _run(
                    *("tc", "filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", "prio", "1", "u32"),
                    *("match", "ip", "src", source, "match", "ip", "dst", target, "flowid", f"1:{minor}"),
                )
                minor += 1
        yield
    finally:
        _run("tc", "qdisc", "del", "dev", "lo", "root")


def _controller() -> Path | None:
    if (V1 / "cgroup.procs").exists() and os.access(V1, os.W_OK):
        return V1
    has_v2 = (V2 / "cgroup.controllers").exists() and "cpu" in (V2 / "cgroup.controllers").read_text().split()
    return V2 if has_v2 and os.access(V2, os.W_OK) else None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
