"""Makes lab hosts of one machine unequal: a share of a core for all processes of a host. Root only.

The kernel's quotas (cgroup v1 or v2), with periods of a few milliseconds: a rank is slowed down evenly, and not at
full speed until it is stopped for the rest of a tenth of a second. All threads of a host stay on one core, where
shares of several hosts fit: quota that a thread on another core has fetched and not used is lost to the rest, a
millisecond at a time, and would make ranks slower than their share whenever a message wakes another thread.

What that is worth was measured: a pipeline of two hosts with 0.4 of a core each takes 27 ms for a token where whole
cores take 11.3, with a period of 4 ms; 31 ms with one of 2 ms, of which a timer of 4 ms loses a part; 19 with one
of 10 ms, in which short steps are over before the quota is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
PERIOD_US = 4000
"""A tick of kernels with HZ=250, which is when use is charged."""
LEAST_QUOTA_US = 1000
"""The kernel accepts no less."""


def can_limit() -> bool:
    """Whether this machine lets us: root, and a cpu controller that can be written to."""
    return os.geteuid() == 0 and _controller() is not None


@contextmanager
def cpu_quotas(cores: Mapping[int, float], *, name: str) -> Iterator[None]:
    """Processes by id get so many cores each, with all that they start later, until the end."""
    controller = _controller()
    assert controller is not None, "can_limit says so before"
    groups = {pid: controller / f"odctl-{name}-{pid}" for pid in cores}
    homes = _homes(cores)
    try:
        for pid, share in cores.items():
            groups[pid].mkdir()
            _limit(groups[pid], share, is_v1=controller == V1)
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {homes[pid]})
            (groups[pid] / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for group in groups.values():
            if group.exists():
                for pid_text in (group / "cgroup.procs").read_text().split():
                    (controller / "cgroup.procs").write_text(pid_text)
                group.rmdir()


def _homes(cores: Mapping[int, float]) -> dict[int, int]:
    """A core for each, the largest shares first, each on the core with the most left."""
    left = dict.fromkeys(sorted(os.sched_getaffinity(0), reverse=True), 1.0)
    homes: dict[int, int] = {}
    for pid, share in sorted(cores.items(), key=lambda item: -item[1]):
        homes[pid] = max(left, key=lambda core: left[core])
        left[homes[pid]] -= share
    return homes


def _limit(group: Path, share: float, *, is_v1: bool) -> None:
    quota_us = max(LEAST_QUOTA_US, round(share * PERIOD_US))
    period_us = round(quota_us / share)
    if is_v1:
        (group / "cpu.cfs_period_us").write_text(str(period_us))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    else:
        (group / "cpu.max").write_text(f"{quota_us} {period_us}")


def _controller() -> Path | None:
    if (V1 / "cgroup.procs").exists() and os.access(V1, os.W_OK):
        return V1
    controllers = V2 / "cgroup.controllers"
    has_cpu = controllers.exists() and "cpu" in controllers.read_text().split()
    return V2 if has_cpu and os.access(V2, os.W_OK) else None
