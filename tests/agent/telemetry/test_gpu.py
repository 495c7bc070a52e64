"""The collector subprocess with the real nvidia-ml-py against a fake libnvidia-ml.so.1."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from agent.facts.sample import DeviceSample, Lost, NotAvailable, Ok, Stale
from agent.telemetry.gpu import GpuReader
from agent.telemetry.gpu_reply import GpuReply
from tests.agent.telemetry.fake_nvml import HANG, FakeNvml


class Clock:
    """Time that tests move on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(tmp_path)
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


@pytest.fixture
async def reader(fake: FakeNvml) -> AsyncIterator[GpuReader]:
    reader = GpuReader(deadline_s=1.0)
    yield reader
    await reader.close()


async def read_until(
    read: Callable[[], Awaitable[GpuReply]], holds: Callable[[GpuReply], bool], *, timeout_s: float = 10.0
) -> GpuReply:
    async with asyncio.timeout(timeout_s):
        while not holds(reply := await read()):
            pass
    return reply


async def test_every_value_of_a_healthy_gpu_is_read(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("nvmlDeviceGetComputeRunningProcesses_v3", device=0, value=os.getpid())
    reply = await reader.read()
    assert (reply.unavailable, reply.driver, reply.whole) == ("", "999.01-fake", ("cuda:0", "cuda:1"))
    first, second = reply.devices
    assert (first.id, first.kind, first.name) == ("cuda:0", "cuda", "Fake GPU 0")
    assert first.utilisation == Ok(0.40)
    assert second.utilisation == Ok(0.41)
    assert (first.memory_used_bytes, first.memory_total_bytes) == (Ok(6e9), Ok(24e9))
    assert (first.temperature_c, first.power_w, first.power_limit_w) == (Ok(61), Ok(250), Ok(450))
    assert (first.sm_clock_hz, first.memory_clock_hz) == (Ok(1.8e9), Ok(9.5e9))
    # Idle (bit 0) is no reason to worry; the power cap (bit 2) is.
    assert first.throttle_reasons == ("power cap",)
    assert (first.ecc_corrected, first.ecc_uncorrected) == (Ok(12), Ok(3))
    (process,) = first.processes
    assert process.pid == os.getpid()
    assert process.memory_bytes == Ok(1e9)
    assert process.user == psutil.Process().username()
    assert process.command == " ".join(psutil.Process().cmdline())


@pytest.mark.parametrize(
    ("code", "reason"),
    [(3, "not supported"), (4, "no permission"), (21, "no data"), (27, "not ready"), (13, "driver too old")],
)
async def test_a_value_that_cannot_be_had_says_why_and_hides_nothing_else(
    fake: FakeNvml, reader: GpuReader, code: int, reason: str
) -> None:
    fake.set("nvmlDeviceGetPowerUsage", device=0, code=code)
    first, second = (await reader.read()).devices
    assert first.power_w == NotAvailable(reason)
    assert first.utilisation == Ok(0.40)
    assert second.power_w == Ok(250)


async def test_nvmls_own_marker_for_no_value_is_no_value(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("nvmlDeviceGetMemoryInfo", device=0, value=2**64 - 1)
    fake.set("nvmlDeviceGetTotalEccErrors", device=0, value=2**64 - 1)
    fake.set("nvmlDeviceGetComputeRunningProcesses_v3", device=1, value=os.getpid())
    first, second = (await reader.read()).devices
    assert first.memory_used_bytes == first.memory_total_bytes == NotAvailable("no data")
    assert first.ecc_uncorrected == NotAvailable("no data")
    assert second.processes[0].memory_bytes == NotAvailable("no data")


async def test_a_lost_gpu_keeps_its_row_and_the_other_its_values(fake: FakeNvml, reader: GpuReader) -> None:
    assert isinstance((await reader.read()).devices[1].utilisation, Ok)
    fake.set("nvmlDeviceGetUtilizationRates", device=1, code=15)
    reply = await reader.read()
    first, second = reply.devices
    assert (second.id, second.name) == ("cuda:1", "Fake GPU 1")
    assert second.utilisation == second.memory_total_bytes == Lost("GPU is lost")
    assert first.utilisation == Ok(0.40)
    # The loss is latched: one call that succeeds by chance does not bring the device back.
    fake.clear("nvmlDeviceGetUtilizationRates", device=1)
    assert (await reader.read()).devices[1].power_w == Lost("GPU is lost")


async def test_a_gpu_that_has_no_handle_is_listed_as_lost(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("nvmlDeviceGetHandleByIndex_v2", device=0, code=15)
    first, second = (await reader.read()).devices
    assert (first.id, first.utilisation) == ("cuda:0", Lost("GPU is lost"))
    assert second.utilisation == Ok(0.41)


async def test_an_unknown_error_is_a_fault_only_after_three_in_a_row(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("nvmlDeviceGetTemperature", device=0, code=999)
    seen = [(await reader.read()).devices[0].temperature_c for _ in range(3)]
    assert seen == [
        NotAvailable("unknown error"),
        NotAvailable("unknown error"),
        Lost("unknown error, 3 times in a row"),
    ]
    fake.clear("nvmlDeviceGetTemperature", device=0)
    assert (await reader.read()).devices[0].temperature_c == Ok(61)


async def test_unified_memory_is_the_hosts_and_said_to_be_shared(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("nvmlDeviceGetMemoryInfo", device=0, code=3)
    first = (await reader.read()).devices[0]
    assert first.name == "Fake GPU 0 (shared memory)"
    assert first.memory_total_bytes == Ok(float(psutil.virtual_memory().total))


async def test_mig_says_so_instead_of_drawing_zero(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("nvmlDeviceGetMigMode", device=0, value=1)
    fake.set("nvmlDeviceGetUtilizationRates", device=0, value=0)
    reply = await reader.read()
    assert [device.id for device in reply.devices] == ["cuda:0", "cuda:0/mig:0", "cuda:0/mig:1", "cuda:1"]
    assert reply.devices[0].utilisation == NotAvailable("MIG is on")
    assert reply.devices[1].memory_total_bytes == Ok(24e9)
    assert reply.devices[1].utilisation == NotAvailable("not supported with MIG")
    assert reply.whole == ("cuda:1",)


async def test_an_xid_is_shown_on_its_device(fake: FakeNvml, reader: GpuReader) -> None:
    fake.set("nvmlEventSetWait_v2", value=79)
    reply = await read_until(reader.read, lambda reply: bool(reply.devices[1].xid))
    assert reply.devices[1].xid == (79,)
    assert reply.devices[0].xid == ()


async def test_a_hanging_call_leaves_old_values_with_their_age(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A reading. 2. NVML hangs: the reader answers by its deadline, with stale values and the reason, and asks
    nothing more. 3. The driver comes back: the same collector answers with fresh values."""
    clock = Clock()
    reader = GpuReader(clock=clock, deadline_s=0.2)
    try:
        assert (await reader.read()).devices[0].utilisation == Ok(0.40)
        collector = reader.pid
        fake.set("nvmlDeviceGetUtilizationRates", device=0, code=HANG)
        await reader.read()
        clock.now += 7
        async with asyncio.timeout(2):
            reply = await reader.read()
        assert reply.unavailable == "NVML stuck 7 s"
        assert [device.utilisation for device in reply.devices] == [Stale(0.40, 7.0), Stale(0.41, 7.0)]

        fake.set("nvmlDeviceGetUtilizationRates", device=0, value=55)
        reply = await read_until(reader.read, lambda reply: not reply.unavailable)
        fresh: DeviceSample = (await reader.read()).devices[0]
        assert fresh.utilisation == Ok(0.55)
        assert reader.pid == collector
    finally:
        await reader.close()


async def test_nvml_that_hangs_at_its_start_is_no_reason_to_wait(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.telemetry.gpu.FIRST_DEADLINE_S", 0.3)
    fake.set("nvmlInitWithFlags", code=HANG)
    clock = Clock()
    reader = GpuReader(clock=clock, deadline_s=0.1)
    try:
        assert await reader.read() == GpuReply(unavailable="NVML stuck 0 s")
        clock.now += 12
        assert await reader.read() == GpuReply(unavailable="NVML stuck 12 s")
    finally:
        pid = reader.pid
        async with asyncio.timeout(5):
            await reader.close()
    assert pid is not None
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(9, "no driver"), (18, "driver and library versions differ: reload the module or reboot")],
)
async def test_a_driver_that_does_not_start_is_a_reason_not_an_error(
    fake: FakeNvml, reader: GpuReader, code: int, reason: str
) -> None:
    fake.set("nvmlInitWithFlags", code=code)
    assert await reader.read() == GpuReply(unavailable=reason)


async def test_a_collector_that_dies_is_started_again_after_a_pause(fake: FakeNvml) -> None:
    clock = Clock()
    reader = GpuReader(clock=clock, deadline_s=2.0)
    try:
        await reader.read()
        first = reader.pid
        assert first is not None
        os.kill(first, signal.SIGSEGV)
        reply = await reader.read()
        assert reply.unavailable == f"collector ended (exit status {-signal.SIGSEGV})"
        assert reply.devices[0].utilisation == Stale(0.40, 0.0)
        assert reader.pid is None
        await reader.read()
        assert reader.pid is None
        clock.now += 31
        assert (await reader.read()).unavailable == ""
        assert reader.pid not in (None, first)
    finally:
        await reader.close()


async def test_without_the_library_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.telemetry.gpu.LIBRARY", "libnvidia-ml-that-is-nowhere.so.1")
    reader = GpuReader()
    assert await reader.read() == GpuReply(unavailable="no driver")
    assert reader.pid is None
