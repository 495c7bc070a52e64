"""The host's CPU as a device: load, memory, temperature. No state but the last counters."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import psutil

from agent.facts.sample import DeviceSample, NotAvailable, Ok, Reading

TEMPERATURE_S = 5.0
_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""Drivers of CPU temperature sensors, the most exact first."""


class CpuReader:
    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._busy = 0.0
        self._temperature: Reading = NotAvailable("not sampled")
        self._temperature_at = 0.0

    def read_busy(self) -> float:
        """Busy share of all cores since the last call, 0 to 1."""
        times = psutil.cpu_times()
        # Guest time is counted within user time already; waiting for a disk is idle time.
        idle = times.idle + times.iowait
        total = times.user + times.nice + times.system + times.irq + times.softirq + times.steal + idle
        if self._last is not None and total > self._last[0]:
            share = 1 - (idle - self._last[1]) / (total - self._last[0])
            self._busy = min(1.0, max(0.0, share))
        self._last = (total, idle)
        return self._busy

    def read_device(self, now: float, *, memory_used: int, memory_total: int) -> DeviceSample:
        if now >= self._temperature_at:
            self._temperature_at = now + TEMPERATURE_S
            self._temperature = _read_temperature()
        no_gpu = NotAvailable("not a GPU")
        return DeviceSample(
            id="cpu",
            kind="cpu",
            name=cpu_name(),
            utilisation=Ok(self._busy),
            memory_used_bytes=Ok(float(memory_used)),
            memory_total_bytes=Ok(float(memory_total)),
            temperature_c=self._temperature,
            power_w=NotAvailable("not measured"),
            power_limit_w=NotAvailable("not measured"),
            sm_clock_hz=no_gpu,
            memory_clock_hz=no_gpu,
            ecc_uncorrected=NotAvailable("not measured"),
            ecc_corrected=NotAvailable("not measured"),
            throttle_unavailable="not measured",
            memory_temperature_c=NotAvailable("not measured"),
            nvlink_received_bytes_per_s=no_gpu,
            nvlink_sent_bytes_per_s=no_gpu,
            pcie_received_bytes_per_s=no_gpu,
            pcie_sent_bytes_per_s=no_gpu,
            pcie_generation=no_gpu,
            pcie_max_generation=no_gpu,
            pcie_lanes=no_gpu,
            pcie_max_lanes=no_gpu,
        )


@functools.cache
def cpu_name() -> str:
    """As the kernel calls it; the architecture where it has no name for it (many ARM boards)."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model\t")):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.machine()
    return platform.machine()


@functools.cache
def num_cores() -> int:
    """Physical cores that this process may run on: a second thread of a core adds nothing to dense arithmetic."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def _read_temperature() -> Reading:
    try:
        sensors = psutil.sensors_temperatures()
    except (OSError, AttributeError):
        return NotAvailable("no sensor")
    for name in _SENSORS:
        if values := [entry.current for entry in sensors.get(name, ()) if entry.current is not None]:
            return Ok(float(max(values)))
    return NotAvailable("no sensor")
