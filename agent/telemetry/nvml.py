"""Reads every GPU of the host through NVML. Runs in the collector subprocess only: any call here may hang.

Values come in three tiers, because power and process lists are dear and limits hardly change. One device in
trouble hides no other, and its row stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import psutil

from agent.facts.sample import DeviceProcess, DeviceSample, Lost, NotAvailable, Ok, Reading
from agent.telemetry.gpu_reply import GpuReply
from agent.telemetry.nvml_errors import START_CODES, VALUE_NOT_AVAILABLE, DeviceGone, Queries
from agent.telemetry.nvml_links import LinkReader
from agent.telemetry.process_start import start_ticks
from agent.telemetry.xid import XidWatch

SLOW_S = 5.0
"""ECC counts, MIG mode."""
SETTLED_S = 60.0
"""Names, limits, the list of devices; a lost device is asked again at this pace."""
RETRY_S = 30.0
"""Pause between two tries to start NVML."""

_THROTTLE_BITS = {
    0x02: "application clocks",
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}
"""`nvmlClocksEventReasons`; idle (0x01) is no throttling."""


class NvmlReader:
    """`nvml` is the pynvml module; `clock` is monotonic."""

    def __init__(self, nvml: Any, *, clock: Callable[[], float], xid: XidWatch) -> None:
        self._nvml = nvml
        self._clock = clock
        self._xid = xid
        self._is_started = False
        self._unavailable = ""
        self._retry_at = 0.0
        self._list_at = 0.0
        self._driver = ""
        self._turn = 0
        self._gpus: dict[int, Gpu] = {}

    def read(self) -> GpuReply:
        now = self._clock()
        if not self._is_started:
            if now < self._retry_at:
                return GpuReply(unavailable=self._unavailable)
            self._start(now)
            if not self._is_started:
                return GpuReply(unavailable=self._unavailable)
        if now >= self._list_at:
            self._list_gpus(now)
        devices: list[DeviceSample] = []
        watched = self._whose_turn()
        for gpu in self._gpus.values():
            devices.extend(gpu.read(now, self._xid.recent(gpu.bus_id), may_watch_pcie=gpu is watched))
        return GpuReply(
            devices=tuple(devices),
            driver=self._driver,
            unavailable="" if devices else "the driver lists no GPU",
            whole=tuple(gpu.id for gpu in self._gpus.values() if not gpu.is_split),
        )

    def _whose_turn(self) -> Gpu | None:
        """The GPU whose PCIe bus may be watched in this reading: eight at once would take a third of a second."""
        waiting = [gpu for gpu in self._gpus.values() if gpu.links.needs_watching]
        if not waiting:
            return None
        self._turn += 1
        return waiting[self._turn % len(waiting)]

    def _start(self, now: float) -> None:
        try:
            self._nvml.nvmlInitWithFlags(0)
        except self._nvml.NVMLError as error:
            self._unavailable = START_CODES.get(int(error.value), f"NVML does not start: {error}")
            self._retry_at = now + RETRY_S
            return
        self._is_started = True
        driver = Queries(self._nvml).ask_any("driver", self._nvml.nvmlSystemGetDriverVersion)
        self._driver = driver if isinstance(driver, str) else ""

    def _list_gpus(self, now: float) -> None:
        self._list_at = now + SETTLED_S
        count = Queries(self._nvml).ask_any("count", self._nvml.nvmlDeviceGetCount)
        if not isinstance(count, int):
            return
        # A device that fell off the bus may no longer be counted: its row stays.
        for index in range(count):
            if index not in self._gpus:
                self._gpus[index] = Gpu(self._nvml, index)
                self._watch_xid(self._gpus[index])

    def _watch_xid(self, gpu: Gpu) -> None:
        if gpu.handle is not None:
            self._xid.register(self._nvml, gpu.handle, gpu.bus_id)


class Gpu:
    """One device, with what was read of it before. Its id counts in PCI bus order, as NVML does."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._queries = Queries(nvml)
        self._index = index
        self._name = f"GPU {index}"
        self._lost = ""
        self._slow_at = 0.0
        self._settled_at = 0.0
        self._power_limit: Reading = NotAvailable("not sampled")
        self._ecc_corrected: Reading = NotAvailable("not sampled")
        self._ecc_uncorrected: Reading = NotAvailable("not sampled")
        self._commands: dict[int, tuple[str, str, int]] = {}
        self.links = LinkReader(nvml, self._queries)
        self.id = f"cuda:{index}"
        self.handle: Any = None
        self.bus_id = ""
        self.is_split = False
        self._open()

    def read(self, now: float, xid: tuple[int, ...], *, may_watch_pcie: bool = False) -> list[DeviceSample]:
        """The device, and behind it its MIG instances. Watching its PCIe bus takes 40 ms."""
        if self._lost and now >= self._settled_at:
            self._settled_at = now + SETTLED_S
            self._open()
        if self._lost:
            return [self._lost_sample(xid)]
        try:
            if now >= self._settled_at:
                self._settled_at = now + SETTLED_S
                self._read_settled()
            if now >= self._slow_at:
                self._slow_at = now + SLOW_S
                self._read_slow()
            if may_watch_pcie:
                self.links.watch_pcie(self.handle, now)
            return [self._read_fast(now, xid), *self._read_instances()]
        except DeviceGone as error:
            self._lost = error.reason
            self._settled_at = now + SETTLED_S
            return [self._lost_sample(xid)]

    def _open(self) -> None:
        try:
            handle = self._queries.ask_any("handle", lambda: self._nvml.nvmlDeviceGetHandleByIndex(self._index))
        except DeviceGone as error:
            self._lost = error.reason
            return
        if isinstance(handle, NotAvailable | Lost):
            self._lost = handle.reason
            return
        self.handle = handle
        self._lost = ""
        try:
            pci = self._queries.ask_any("pci", lambda: self._nvml.nvmlDeviceGetPciInfo(handle))
        except DeviceGone as error:
            self._lost = error.reason
            return
        if not isinstance(pci, NotAvailable | Lost):
            self.bus_id = pci.busId.decode() if isinstance(pci.busId, bytes) else str(pci.busId)

    # --- tiers --------------------------------------------------------------------------------------

    def _read_settled(self) -> None:
        name = self._queries.ask_any("name", lambda: self._nvml.nvmlDeviceGetName(self.handle))
        if isinstance(name, str):
            self._name = name
        self._power_limit = self._queries.ask(
            "power limit", lambda: self._nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1000
        )
        self.links.read_limits(self.handle)

    def _read_slow(self) -> None:
        mode = self._queries.ask_any("mig mode", lambda: self._nvml.nvmlDeviceGetMigMode(self.handle))
        self.is_split = isinstance(mode, list) and bool(mode[0])
        self._ecc_uncorrected = self._read_ecc(self._nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
        self._ecc_corrected = self._read_ecc(self._nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)
        self.links.read_negotiated(self.handle)

    def _read_ecc(self, kind: int) -> Reading:
        return self._queries.ask(
            f"ecc {kind}",
            lambda: self._nvml.nvmlDeviceGetTotalEccErrors(self.handle, kind, self._nvml.NVML_VOLATILE_ECC),
        )

    def _read_fast(self, now: float, xid: tuple[int, ...]) -> DeviceSample:
        used, total, is_shared = self._read_memory(self.handle)
        reasons, unavailable = self._read_throttle()
        return DeviceSample(
            id=self.id,
            kind="cuda",
            name=f"{self._name} (shared memory)" if is_shared else self._name,
            utilisation=self._read_utilisation(),
            memory_used_bytes=used,
            memory_total_bytes=total,
            temperature_c=self._read_temperature(),
            power_w=self._queries.ask("power", lambda: self._nvml.nvmlDeviceGetPowerUsage(self.handle) / 1000),
            power_limit_w=self._power_limit,
            sm_clock_hz=self._read_clock(self._nvml.NVML_CLOCK_SM),
            memory_clock_hz=self._read_clock(self._nvml.NVML_CLOCK_MEM),
            throttle_reasons=reasons,
            throttle_unavailable=unavailable,
            ecc_uncorrected=self._ecc_uncorrected,
            ecc_corrected=self._ecc_corrected,
            xid=xid,
            processes=self._read_processes(),
            **msgspec.structs.asdict(self.links.read(self.handle, now)),
        )

    def _read_utilisation(self) -> Reading:
        if self.is_split:
            # NVML answers "not supported" or zeroes here; the instances have no figure of their own either.
            return NotAvailable("MIG is on")
        reading = self._queries.ask(
            "utilisation", lambda: self._nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu / 100
        )
        return Ok(min(1.0, reading.value)) if isinstance(reading, Ok) else reading

    def _read_memory(self, handle: Any) -> tuple[Reading, Reading, bool]:
        """Used and total bytes, and whether it is the host's own memory (Jetson, GB10)."""
        memory = self._queries.ask_any("memory", lambda: self._nvml.nvmlDeviceGetMemoryInfo(handle))
        if isinstance(memory, Lost) or (isinstance(memory, NotAvailable) and memory.reason != "not supported"):
            return memory, memory, False
        if isinstance(memory, NotAvailable) or memory.total == 0:
            host = psutil.virtual_memory()
            return Ok(float(host.total - host.available)), Ok(float(host.total)), True
        return _size(memory.used), _size(memory.total), False

    def _read_temperature(self) -> Reading:
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        reading = self._queries.ask("temperature", lambda: self._nvml.nvmlDeviceGetTemperature(self.handle, sensor))
        if isinstance(reading, NotAvailable) and reading.reason in ("deprecated", "driver too old"):
            return self._queries.ask(
                "temperature v", lambda: self._nvml.nvmlDeviceGetTemperatureV(self.handle, sensor)
            )
        return reading

    def _read_clock(self, kind: int) -> Reading:
        return self._queries.ask(
            f"clock {kind}", lambda: self._nvml.nvmlDeviceGetClockInfo(self.handle, kind) * 1_000_000
        )

    def _read_throttle(self) -> tuple[tuple[str, ...], str]:
        """Why it runs slower than it could; and why that cannot be said."""
        mask = self._queries.ask_any(
            "event reasons", lambda: self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle)
        )
        if isinstance(mask, NotAvailable) and mask.reason == "driver too old":
            mask = self._queries.ask_any(
                "throttle reasons", lambda: self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)
            )
        if isinstance(mask, NotAvailable | Lost):
            return (), mask.reason
        return tuple(word for bit, word in _THROTTLE_BITS.items() if int(mask) & bit), ""

    def _read_processes(self) -> tuple[DeviceProcess, ...]:
        found: dict[int, Reading] = {}
        for name, call in (
            ("compute processes", self._nvml.nvmlDeviceGetComputeRunningProcesses),
            ("graphics processes", self._nvml.nvmlDeviceGetGraphicsRunningProcesses),
        ):
            listed = self._queries.ask_any(name, functools.partial(call, self.handle))
            if isinstance(listed, list):
                for entry in listed:
                    found[int(entry.pid)] = _size(entry.usedGpuMemory)
        self._commands = {pid: self._described(pid) for pid in found}
        return tuple(
            DeviceProcess(
                pid=pid,
                user=self._commands[pid][0],
                command=self._commands[pid][1],
                start_ticks=self._commands[pid][2],
                memory_bytes=memory,
            )
            for pid, memory in sorted(found.items())
        )

    def _described(self, pid: int) -> tuple[str, str, int]:
        """User, command and start time; looked up again where the pid has gone to another process."""
        started = start_ticks(pid) or 0
        known = self._commands.get(pid)
        return known if known is not None and known[2] == started else (*_describe(pid), started)

    def _read_instances(self) -> list[DeviceSample]:
        if not self.is_split:
            return []
        count = self._queries.ask_any("mig count", lambda: self._nvml.nvmlDeviceGetMaxMigDeviceCount(self.handle))
        instances: list[DeviceSample] = []
        for number in range(count if isinstance(count, int) else 0):
            handle = self._queries.ask_any(
                f"mig {number}",
                functools.partial(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, self.handle, number),
            )
            if isinstance(handle, NotAvailable | Lost):
                # Instances are numbered without gaps: the first that is not there ends them.
                break
            used, total, _ = self._read_memory(handle)
            instances.append(
                _silent_sample(
                    f"{self.id}/mig:{number}",
                    f"{self._name} MIG {number}",
                    NotAvailable("not supported with MIG"),
                    memory=(used, total),
                )
            )
        return instances

    def _lost_sample(self, xid: tuple[int, ...]) -> DeviceSample:
        return _silent_sample(self.id, self._name, Lost(self._lost), xid=xid)


def _silent_sample(
    device_id: str,
    name: str,
    reading: Reading,
    *,
    memory: tuple[Reading, Reading] | None = None,
    xid: tuple[int, ...] = (),
) -> DeviceSample:
    used, total = memory or (reading, reading)
    return DeviceSample(
        id=device_id,
        kind="cuda",
        name=name,
        utilisation=reading,
        memory_used_bytes=used,
        memory_total_bytes=total,
        temperature_c=reading,
        power_w=reading,
        power_limit_w=reading,
        sm_clock_hz=reading,
        memory_clock_hz=reading,
        ecc_uncorrected=reading,
        ecc_corrected=reading,
        xid=xid,
        throttle_unavailable=reading.reason if isinstance(reading, NotAvailable | Lost) else "",
        memory_temperature_c=reading,
        nvlink_received_bytes_per_s=reading,
        nvlink_sent_bytes_per_s=reading,
        pcie_received_bytes_per_s=reading,
        pcie_sent_bytes_per_s=reading,
        pcie_generation=reading,
        pcie_max_generation=reading,
        pcie_lanes=reading,
        pcie_max_lanes=reading,
    )


def _size(value: int | None) -> Reading:
    return NotAvailable("no data") if value is None or value == VALUE_NOT_AVAILABLE else Ok(float(value))


def _describe(pid: int) -> tuple[str, str]:
    """User and command of a process, or the reason in the place of the command."""
    try:
        process = psutil.Process(pid)
        user = process.username()
        return user, " ".join(process.cmdline()) or process.name()
    except psutil.ZombieProcess:
        return "", "Zombie Process"
    except psutil.NoSuchProcess:
        return "", "No Such Process"
    except psutil.AccessDenied:
        return "", "No Permissions"
