"""The daemon as a whole: GPUs through a fake libnvidia-ml.so.1, and what it costs to run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from agent.facts.cluster import HostFacts
from agent.facts.sample import DeviceSample, Ok, Stale
from tests.agent.daemon import Daemon, frames, running_daemon, wait_until
from tests.agent.telemetry.fake_nvml import HANG, FakeNvml

IDLE_S = 60.0
MAX_RSS_BYTES = 60_000_000
MAX_CPU_SHARE = 0.01


def newest_gpu(daemon: Daemon) -> DeviceSample:
    with daemon.client() as client:
        (sample,) = frames(client.get("/v1/samples").content)
    device: DeviceSample = sample.devices[1]
    return device


def test_gpus_are_in_facts_and_samples_and_a_hang_does_not_reach_the_api(tmp_path: Path) -> None:
    """1. The first facts list both GPUs. 2. NVML hangs: samples go on with stale values, and every answer is still
    quick. 3. The agent leaves at once, and its collector with it."""
    fake = FakeNvml(tmp_path)
    with running_daemon(environment=fake.environment, devices=("cuda:0", "cuda:1"), memory_fraction=0.5) as daemon:
        facts = daemon.get("/v1/facts", HostFacts)
        assert [(device.id, device.usable_bytes) for device in facts.devices] == [
            ("cuda:0", 12_000_000_000),
            ("cuda:1", 12_000_000_000),
        ]
        assert (facts.driver, facts.gpu_unavailable) == ("999.01-fake", "")
        wait_until(lambda: newest_gpu(daemon).utilisation == Ok(0.40), what="a healthy reading")
        (collector,) = psutil.Process(daemon.process.pid).children()

        fake.set("nvmlDeviceGetPowerUsage", code=HANG)
        wait_until(lambda: isinstance(newest_gpu(daemon).utilisation, Stale), what="a stale reading")
        began = time.monotonic()
        assert daemon.get("/v1/facts", HostFacts).gpu_unavailable.startswith("NVML stuck ")
        assert time.monotonic() - began < 1

        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 6
        wait_until(lambda: not collector.is_running(), what="the collector's end")


@pytest.mark.slow
def test_the_daemon_idles_within_its_budget() -> None:
    """Under 60 MB and 1% of a core over a minute, with one follower as a terminal UI would be."""
    with running_daemon() as daemon:
        process = psutil.Process(daemon.process.pid)
        with daemon.client() as client, client.stream("GET", "/v1/samples?history_s=900&follow=1") as response:
            chunks = response.iter_raw()
            next(chunks)
            before, began = process.cpu_times(), time.monotonic()
            num_bytes = 0
            while time.monotonic() - began < IDLE_S:
                num_bytes += len(next(chunks))
            after, span_s = process.cpu_times(), time.monotonic() - began
        used_s = after.user + after.system - before.user - before.system
        rss_bytes = process.memory_info().rss
        print(
            f"\nidle agent: {rss_bytes / 1e6:.1f} MB resident, {100 * used_s / span_s:.2f}% of a core over "
            f"{span_s:.0f} s, {num_bytes / span_s:.0f} bytes/s of samples, {process.num_threads()} threads, "
            f"{os.cpu_count()} cores"
        )
        assert rss_bytes < MAX_RSS_BYTES
        assert used_s / span_s < MAX_CPU_SHARE
