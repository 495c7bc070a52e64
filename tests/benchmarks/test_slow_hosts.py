"""Hosts of one machine that compute for a share of the time: what it comes to."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

import agent
from agent.wire.probe import DeviceProbeConfig, DeviceReport
from tests.agent.engine.test_device_probe import TINY
from tests.benchmarks.slow_hosts import slow_host
from tests.benchmarks.stretch import Pace, Stretch, usual_pace_s

BEFORE_IT_WAITS = """
import time
from agent.engine.links.pipeline import HiddenReceiver
from tests.benchmarks.stretch import stretch_engine

HiddenReceiver.receive = lambda self: time.perf_counter()
stretch_engine(0.2, 0.0)
begun, until_s = time.perf_counter(), time.thread_time() + 0.02
while time.thread_time() < until_s:
    pass
print(HiddenReceiver.receive(None) - begun)
"""


@pytest.mark.parametrize("work_s", [1e-3, 5e-3])
def test_a_thread_rests_for_what_it_computes_and_for_nothing_else(work_s: float) -> None:
    stretch = Stretch(0.25)
    time.sleep(0.05)
    begun, cpu_begun = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu_begun < 0.05:
        until_s = time.thread_time() + work_s
        while time.thread_time() < until_s:
            pass
        stretch.rest()
    took_s, cpu_s = time.perf_counter() - begun, time.thread_time() - cpu_begun
    assert took_s >= 0.85 * cpu_s / 0.25


def test_a_wait_for_a_core_is_taken_off_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter([0.0, 0.03, 0.04, 0.04, 0.04])  # at the beginning, and before and after each rest
    monkeypatch.setattr(Stretch, "_wait_for_core_s", lambda _: next(waits))
    stretch = Stretch(0.2)
    rests_s = []
    for _ in range(2):
        until_s = time.thread_time() + 0.01
        while time.thread_time() < until_s:
            pass
        begun = time.perf_counter()
        stretch.rest()
        rests_s.append(time.perf_counter() - begun)
    first_s, second_s = rests_s
    assert first_s >= 0.01, "of 40 ms, 30 had been waited for already"
    assert second_s >= first_s + 0.015


@pytest.mark.parametrize("slowness", [0.8, 1.0, 2.0])
def test_what_neighbours_take_of_the_memory_is_taken_off_the_rest(slowness: float) -> None:
    """As long in all, whatever the same work takes now: twice as much of computing leaves less to rest."""

    class Told(Pace):
        @property
        def seconds(self) -> float:
            return slowness * 1e-3

    stretch = Stretch(0.25, pace=Told(), usual_s=1e-3)
    took_s = []
    for _ in range(3):  # the shortest: waiting for a core of a busy machine may be longer than all there is to rest
        stretch.begin()
        begun, cpu_begun = time.perf_counter(), time.thread_time()
        for _ in range(10):
            until_s = time.thread_time() + 5e-3 * slowness
            while time.thread_time() < until_s:
                pass
            stretch.rest()
        took_s.append(time.perf_counter() - begun)
        assert time.thread_time() - cpu_begun >= 0.05 * slowness
    assert min(took_s) == pytest.approx(0.05 / 0.25, rel=0.25)


def test_reading_memory_takes_what_it_takes() -> None:
    assert 0.3 < Pace().seconds / usual_pace_s() < 3.0


def test_a_rank_rests_before_it_waits_for_another_and_not_after() -> None:
    """What it did while others computed is no part of what they wait for."""
    out = subprocess.run([sys.executable, "-c", BEFORE_IT_WAITS], capture_output=True, text=True, check=True).stdout
    assert float(out) >= 0.9 * 0.02 / 0.2


@pytest.mark.slow
def test_only_engines_of_the_slow_host_are_slow(tmp_path: Path) -> None:
    """The very release that agents run, beside itself."""
    rates: dict[str, list[float]] = {}
    for name in ("quick", "slow"):
        shutil.copytree(Path(agent.__file__).parent, tmp_path / name / "current" / "agent")
    slow_host(tmp_path / "slow", 0.2)
    for name in ("quick", "slow", "quick", "slow"):
        report = _probe(tmp_path / name / "current")
        rates.setdefault(name, []).append(max(gemm.flops_per_s for gemm in report.device.gemms))
    assert 0.05 < max(rates["slow"]) / max(rates["quick"]) < 0.4


def _probe(release: Path) -> DeviceReport:
    config = DeviceProbeConfig(
        host="h", device="cpu", kind="cpu", name="it", threads=1, sizes=TINY, disk_dir=str(release), limit_s=60
    )
    done = subprocess.run(
        [sys.executable, "-m", "agent.engine", "probe"],
        input=msgspec.json.encode(config),
        capture_output=True,
        cwd=release,
        check=True,
        timeout=120,
    )
    return msgspec.json.decode(done.stdout, type=DeviceReport)
