"""What GPUs' links carry, through the collector subprocess and the real nvidia-ml-py, against the fake library."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.facts.sample import DeviceSample, NotAvailable, Ok, Reading, Stale
from agent.telemetry.gpu import GpuReader
from agent.telemetry.process_start import start_ticks
from tests.agent.telemetry.fake_nvml import FakeNvml
from tests.agent.telemetry.test_gpu import read_until


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(tmp_path)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


@pytest.fixture
async def reader(fake: FakeNvml) -> AsyncIterator[GpuReader]:
    reader = GpuReader(deadline_s=2.0)
    yield reader
    await reader.close()


async def first_device(reader: GpuReader) -> DeviceSample:
    return (await reader.read()).devices[0]


def number(reading: Reading) -> float:
    assert isinstance(reading, Ok), reading
    return reading.value


async def test_counters_become_rates_over_the_time_between_two_readings(fake: FakeNvml, reader: GpuReader) -> None:
    before_first = time.monotonic()
    first = await first_device(reader)
    after_first = time.monotonic()
    assert isinstance(first.nvlink_sent_bytes_per_s, NotAvailable), "one count is no rate"
    fake.set("field_138", device=0, value=2_000_000)
    fake.set("field_139", device=0, value=1_000_000)
    fake.set("field_197", device=0, value=700_000_000)
    fake.set("field_198", device=0, value=900_000_000)
    before_second = time.monotonic()
    reply = await reader.read()
    after_second = time.monotonic()
    device = reply.devices[0]
    for reading, counted in (
        (device.nvlink_sent_bytes_per_s, 2_000_000 * 1024),
        (device.nvlink_received_bytes_per_s, 1_000_000 * 1024),
        (device.pcie_sent_bytes_per_s, 700_000_000),
        (device.pcie_received_bytes_per_s, 900_000_000),
    ):
        rate = number(reading)
        assert counted / (after_second - before_first) <= rate <= counted / (before_second - after_first)
    assert device.memory_temperature_c == Ok(72)
    assert reply.devices[1].nvlink_sent_bytes_per_s == Ok(0.0), "the other GPU's counters stood still"


async def test_pcie_is_told_against_what_it_could_be(reader: GpuReader) -> None:
    device = await first_device(reader)
    assert (device.pcie_generation, device.pcie_max_generation) == (Ok(4), Ok(5))
    assert (device.pcie_lanes, device.pcie_max_lanes) == (Ok(16), Ok(16))


@pytest.mark.parametrize(
    ("code", "reason"), [(3, "not supported"), (4, "no permission"), (21, "no data"), (2, "NVML error 2")]
)
async def test_a_field_that_cannot_be_had_says_why_and_hides_no_other(
    fake: FakeNvml, reader: GpuReader, code: int, reason: str
) -> None:
    fake.set("field_139", device=0, code=code)
    await reader.read()
    first, second = (await reader.read()).devices
    assert first.nvlink_received_bytes_per_s == NotAvailable(reason)
    assert first.nvlink_sent_bytes_per_s == Ok(0.0)
    assert second.nvlink_received_bytes_per_s == Ok(0.0)


async def test_a_driver_without_field_values_says_so_for_each(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("nvmlDeviceGetFieldValues", code=3)
    device = await first_device(reader)
    assert device.memory_temperature_c == device.nvlink_sent_bytes_per_s == NotAvailable("not supported")
    assert device.utilisation == Ok(0.40)


async def test_a_counter_that_starts_anew_gives_no_rate_once(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("field_138", device=0, value=5_000)
    await reader.read()
    fake.set("field_138", device=0, value=10)
    assert (await first_device(reader)).nvlink_sent_bytes_per_s == NotAvailable("the counter started anew")
    assert (await first_device(reader)).nvlink_sent_bytes_per_s == Ok(0.0)


async def test_where_pcie_is_not_counted_it_is_watched_one_gpu_a_reading(fake: FakeNvml, reader: GpuReader) -> None:
    for field in ("field_197", "field_198"):
        fake.set(field, code=3)
    await reader.read()
    counted = []
    for _ in range(2):
        devices = (await reader.read()).devices
        counted.append([isinstance(device.pcie_sent_bytes_per_s, Ok) for device in devices])
    assert sorted(map(sum, counted)) == [1, 2], "each reading watched one more"
    assert devices[0].pcie_sent_bytes_per_s == Ok(3000 * 1024)
    assert devices[0].pcie_received_bytes_per_s == Ok(5000 * 1024)


async def test_a_watched_rate_that_is_not_renewed_says_its_age() -> None:
    """Eight GPUs are watched in turn, so each waits: its figure is of then and not of now."""
    from agent.telemetry.nvml_errors import Queries
    from agent.telemetry.nvml_links import WATCHED_FRESH_S, LinkReader

    class Uncounted:
        NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1

        class NVMLError(Exception):
            value = 3

        def nvmlDeviceGetPcieThroughput(self, _handle: object, _counter: int) -> int:  # noqa: N802
            return 10

        def nvmlDeviceGetFieldValues(self, _handle: object, _fields: object) -> object:  # noqa: N802
            raise self.NVMLError

    nvml = Uncounted()
    links = LinkReader(nvml, Queries(nvml))
    links.watch_pcie(None, 100.0)
    assert links.read(None, 101.0).pcie_sent_bytes_per_s == Ok(10240)
    late = links.read(None, 100.0 + WATCHED_FRESH_S + 2)
    assert late.pcie_sent_bytes_per_s == Stale(10240, WATCHED_FRESH_S + 2)


async def test_a_counter_of_32_bits_is_not_believed(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("field_type", value=1)
    for field in ("field_138", "field_139", "field_82"):
        fake.set(field, value=70)
    await reader.read()
    device = await first_device(reader)
    assert device.nvlink_sent_bytes_per_s == NotAvailable("the driver's counter is too short")
    assert device.memory_temperature_c == Ok(70)


async def test_a_stuck_driver_leaves_links_old_and_never_fresh(fake: FakeNvml) -> None:
    reader = GpuReader(deadline_s=0.3)
    try:
        await reader.read()
        assert isinstance((await first_device(reader)).nvlink_sent_bytes_per_s, Ok)
        fake.set("nvmlDeviceGetFieldValues", device=0, code=-1)
        await reader.read()
        device = await first_device(reader)
        assert isinstance(device.nvlink_sent_bytes_per_s, Stale)
        assert isinstance(device.memory_temperature_c, Stale)
    finally:
        await reader.close()


async def test_a_process_is_named_by_pid_and_start(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("nvmlDeviceGetComputeRunningProcesses_v3", device=0, value=os.getpid())
    (process,) = (await first_device(reader)).processes
    assert process.start_ticks == start_ticks(os.getpid())
    assert process.start_ticks


async def test_an_empty_list_of_throttle_reasons_can_mean_that_nobody_knows(
    fake: FakeNvml, reader: GpuReader
) -> None:
    fake.set("nvmlDeviceGetCurrentClocksEventReasons", device=0, code=3)
    first, second = (await reader.read()).devices
    assert (first.throttle_reasons, first.throttle_unavailable) == ((), "not supported")
    assert (second.throttle_reasons, second.throttle_unavailable) == (("power cap",), "")
    async with asyncio.timeout(5):
        fake.clear("nvmlDeviceGetCurrentClocksEventReasons", device=0)
        reply = await read_until(reader.read, lambda reply: not reply.devices[0].throttle_unavailable)
    assert reply.devices[0].throttle_reasons == ("power cap",)
