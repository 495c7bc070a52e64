"""Hosts of one machine that compute for a share of the time: who gets which core and turn, and what it comes to."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from tests.benchmarks.slow_hosts import can_slow, slow_hosts, turns_of
from tests.integration.cluster import until

EQUAL = {"h2": 0.45, "h3": 0.45, "h4": 0.45}
SPIN = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
"""With `agent.engine` among its arguments it is taken for a rank: who watches over ranks is not slowed down."""


def test_hosts_on_one_core_have_their_turns_one_after_the_other() -> None:
    assert turns_of(EQUAL, [], cores=[0, 1]) == {"h2": (0, 0.0), "h3": (1, 0.0), "h4": (0, 0.45)}


def test_hosts_that_compute_together_have_cores_of_their_own_and_turns_that_begin_together() -> None:
    turns = turns_of({"h2": 0.7, "h3": 0.45, "h4": 0.3}, [["h2"], ["h3", "h4"]], cores=[0, 1])
    assert turns == {"h3": (0, 0.0), "h4": (1, 0.0), "h2": (1, 0.3)}


@pytest.mark.parametrize(
    ("shares", "together"), [({"h2": 0.8, "h3": 0.8, "h4": 0.5}, []), (EQUAL, [["h2", "h3", "h4"]])]
)
def test_a_core_is_not_given_away_twice(shares: dict[str, float], together: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="no room for"):
        turns_of(shares, together, cores=[0, 1])


def test_a_host_computes_for_its_share_and_goes_on_when_it_is_over() -> None:
    if not can_slow():
        pytest.skip("needs root, control groups that can be written to, and real-time priority")
    with subprocess.Popen([sys.executable, "-c", SPIN, "agent.engine"]) as process:
        try:
            stats = psutil.Process(process.pid)
            with slow_hosts({"h2": process.pid}, {"h2": 0.3}, name="test"):
                # It is found within a moment, once the throttle's own process has begun.
                until(lambda: _cpu_share(stats) < 0.45, timeout_s=30, what="slowed down")
            assert stats.status() != psutil.STATUS_STOPPED
            assert _cpu_share(stats) > 0, "a process that stays frozen gets nothing"
        finally:
            process.kill()


def _cpu_share(process: psutil.Process) -> float:
    """Of a core, over the next second."""
    before, begin_s = process.cpu_times(), time.monotonic()
    time.sleep(1.0)
    now = process.cpu_times()
    return float(now.user + now.system - before.user - before.system) / (time.monotonic() - begin_s)
