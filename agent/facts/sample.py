"""Telemetry readings. A value is `Ok`, or says why there is none; unknown is never 0.

`gc=False`: these hold no cycles, and ten thousand hosts' are a million values a second, which the garbage collector
would walk through with everybody waiting.
"""

from __future__ import annotations

import msgspec


class Ok(msgspec.Struct, frozen=True, gc=False, tag="ok"):
    value: float


class NotAvailable(msgspec.Struct, frozen=True, gc=False, tag="na"):
    """`reason` is for people: `not supported`, `no permission`, `no driver` …"""

    reason: str


class Stale(msgspec.Struct, frozen=True, gc=False, tag="stale"):
    """The last value, `age_s` old: its source did not answer since."""

    value: float
    age_s: float


class Lost(msgspec.Struct, frozen=True, gc=False, tag="lost"):
    """Its device is gone (`GPU is lost`, fell off the bus): a fault, and the row stays."""

    reason: str


Reading = Ok | NotAvailable | Stale | Lost


class DeviceProcess(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A process on a device; `rank_id` is empty for a foreign one.

    `start_ticks` is field 22 of /proc/PID/stat: with the pid it names one process for good. 0: it cannot be read.
    """

    pid: int
    user: str
    command: str
    memory_bytes: Reading
    deployment: str = ""
    rank_id: str = ""
    start_ticks: int = 0


class DeviceSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One device at one moment. Fractions are 0 to 1, temperatures in Celsius, power in watts.

    NVLink's rates are sums over all links of the device, without the protocol's overhead. A PCIe link whose
    generation or width is below its maximum while the device works is downtrained; idle ones save power so.
    """

    id: str
    kind: str
    name: str
    utilisation: Reading
    memory_used_bytes: Reading
    memory_total_bytes: Reading
    temperature_c: Reading
    power_w: Reading
    power_limit_w: Reading
    sm_clock_hz: Reading
    memory_clock_hz: Reading
    throttle_reasons: tuple[str, ...] = ()
    throttle_unavailable: str = ""
    """Why an empty list of reasons does not mean that nothing throttles."""
    ecc_uncorrected: Reading = NotAvailable("not sampled")
    ecc_corrected: Reading = NotAvailable("not sampled")
    xid: tuple[int, ...] = ()
    processes: tuple[DeviceProcess, ...] = ()
    memory_temperature_c: Reading = NotAvailable("not sampled")
    nvlink_received_bytes_per_s: Reading = NotAvailable("not sampled")
    nvlink_sent_bytes_per_s: Reading = NotAvailable("not sampled")
    pcie_received_bytes_per_s: Reading = NotAvailable("not sampled")
    pcie_sent_bytes_per_s: Reading = NotAvailable("not sampled")
    pcie_generation: Reading = NotAvailable("not sampled")
    pcie_max_generation: Reading = NotAvailable("not sampled")
    pcie_lanes: Reading = NotAvailable("not sampled")
    pcie_max_lanes: Reading = NotAvailable("not sampled")


class NicSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Rates per second over the last interval; errors and drops are totals since boot."""

    name: str
    is_up: bool
    speed_bits_per_s: float
    received_bytes_per_s: float
    sent_bytes_per_s: float
    errors: int
    drops: int


class DiskSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    mount: str
    total_bytes: int
    free_bytes: int
    read_bytes_per_s: float
    written_bytes_per_s: float


class ProcessSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One of our own processes. `role` is `agent`, `rank` or `gateway`; `cpu` is cores (1.0 = one core)."""

    role: str
    name: str
    pid: int
    rss_bytes: int
    cpu: float
    num_threads: int
    num_fds: int


class HostSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Everything an agent sees of its host at one moment (`taken_at_s`: seconds since the epoch, its clock)."""

    host: str
    taken_at_s: float
    cpu: float
    """Busy share of all cores, 0 to 1."""
    load_1m: float
    memory_total_bytes: int
    memory_used_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int
    uptime_s: float
    devices: tuple[DeviceSample, ...] = ()
    nics: tuple[NicSample, ...] = ()
    disks: tuple[DiskSample, ...] = ()
    processes: tuple[ProcessSample, ...] = ()
