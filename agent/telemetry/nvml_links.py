"""What a GPU's links carry: NVLink and PCIe rates, PCIe's generation and width, and the memory's temperature.

Rates are differences of counters that one call gives for all of a GPU. Where the driver counts no PCIe bytes it is
asked to watch the bus instead, which takes it 20 ms a direction: one GPU a reading, and old figures say their age.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from agent.facts.sample import Lost, NotAvailable, Ok, Reading, Stale
from agent.telemetry.nvml_errors import VALUE_NOT_AVAILABLE, Queries

MEMORY_TEMPERATURE = 82
NVLINK_SENT = 138
NVLINK_RECEIVED = 139
PCIE_SENT = 197
PCIE_RECEIVED = 198
"""`NVML_FI_DEV_…` of nvml.h. NVLink counts KiB of data, PCIe bytes."""
ALL_LINKS = 0xFFFFFFFF
"""NVLink's scope for the sum over a device's links."""
FIELDS: tuple[int | tuple[int, int], ...] = (
    MEMORY_TEMPERATURE,
    (NVLINK_SENT, ALL_LINKS),
    (NVLINK_RECEIVED, ALL_LINKS),
    PCIE_SENT,
    PCIE_RECEIVED,
)
_BYTES_PER_UNIT = {NVLINK_SENT: 1024, NVLINK_RECEIVED: 1024, PCIE_SENT: 1, PCIE_RECEIVED: 1}
_VALUE_TYPES = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
"""`nvmlValueType_t`: which member of the value's union is filled in."""
_SHORT_TYPES = (1, 6)
"""32 and 16 bits: a fast link runs through them more than once a reading, and nobody could tell."""
WATCHED_FRESH_S = 5.0
"""A watched PCIe rate older than this is shown with its age."""
_KIB = 1024
_NOT_SAMPLED = NotAvailable("not sampled")
_TOO_SHORT = NotAvailable("the driver's counter is too short")
_FIRST = NotAvailable("counted from the next reading on")


class LinkReadings(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes per second, and what PCIe has negotiated against what it could."""

    memory_temperature_c: Reading = _NOT_SAMPLED
    nvlink_received_bytes_per_s: Reading = _NOT_SAMPLED
    nvlink_sent_bytes_per_s: Reading = _NOT_SAMPLED
    pcie_received_bytes_per_s: Reading = _NOT_SAMPLED
    pcie_sent_bytes_per_s: Reading = _NOT_SAMPLED
    pcie_generation: Reading = _NOT_SAMPLED
    pcie_max_generation: Reading = _NOT_SAMPLED
    pcie_lanes: Reading = _NOT_SAMPLED
    pcie_max_lanes: Reading = _NOT_SAMPLED


class LinkReader:
    """Of one GPU. Every method raises DeviceGone."""

    def __init__(self, nvml: Any, queries: Queries) -> None:
        self._nvml = nvml
        self._queries = queries
        self._counts: dict[int, tuple[float, float]] = {}
        self._watched: dict[int, Reading] = {}
        self._watched_at = 0.0
        self._negotiated: dict[str, Reading] = {}
        self._needs_watching = False

    @property
    def needs_watching(self) -> bool:
        """Whether PCIe's rates can be had by watching only."""
        return self._needs_watching

    def read_limits(self, handle: Any) -> None:
        """What PCIe could do at most, which does not change."""
        for name, call in (
            ("pcie_max_generation", self._nvml.nvmlDeviceGetMaxPcieLinkGeneration),
            ("pcie_max_lanes", self._nvml.nvmlDeviceGetMaxPcieLinkWidth),
        ):
            self._negotiated[name] = self._queries.ask(name, functools.partial(call, handle))

    def read_negotiated(self, handle: Any) -> None:
        """What PCIe runs at now."""
        for name, call in (
            ("pcie_generation", self._nvml.nvmlDeviceGetCurrPcieLinkGeneration),
            ("pcie_lanes", self._nvml.nvmlDeviceGetCurrPcieLinkWidth),
        ):
            self._negotiated[name] = self._queries.ask(name, functools.partial(call, handle))

    def watch_pcie(self, handle: Any, now: float) -> None:
        """Have the driver watch the bus for 20 ms each way."""
        for field, counter in (
            (PCIE_SENT, self._nvml.NVML_PCIE_UTIL_TX_BYTES),
            (PCIE_RECEIVED, self._nvml.NVML_PCIE_UTIL_RX_BYTES),
        ):
            call = functools.partial(self._nvml.nvmlDeviceGetPcieThroughput, handle, counter)
            rate = self._queries.ask(f"pcie throughput {counter}", call)
            self._watched[field] = Ok(rate.value * _KIB) if isinstance(rate, Ok) else rate
        self._watched_at = now

    def read(self, handle: Any, now: float) -> LinkReadings:
        """Rates since the reading before, `now` being monotonic."""
        values = self._read_fields(handle)
        sent, received = (self._rate(field, values[field], now) for field in (PCIE_SENT, PCIE_RECEIVED))
        is_uncounted = isinstance(values[PCIE_SENT], NotAvailable)
        self._needs_watching = is_uncounted
        if is_uncounted and self._watched:
            sent, received = self._aged(PCIE_SENT, now), self._aged(PCIE_RECEIVED, now)
        return LinkReadings(
            memory_temperature_c=_temperature(values[MEMORY_TEMPERATURE]),
            nvlink_sent_bytes_per_s=self._rate(NVLINK_SENT, values[NVLINK_SENT], now),
            nvlink_received_bytes_per_s=self._rate(NVLINK_RECEIVED, values[NVLINK_RECEIVED], now),
            pcie_sent_bytes_per_s=sent,
            pcie_received_bytes_per_s=received,
            **self._negotiated,
        )

    def _read_fields(self, handle: Any) -> dict[int, Reading]:
        wanted = [field if isinstance(field, int) else field[0] for field in FIELDS]
        found = self._queries.ask_any(
            "field values", lambda: self._nvml.nvmlDeviceGetFieldValues(handle, list(FIELDS))
        )
        if isinstance(found, NotAvailable | Lost):
            return dict.fromkeys(wanted, found)
        return {
            field: _TOO_SHORT
            if field in _BYTES_PER_UNIT and entry.valueType in _SHORT_TYPES and not entry.nvmlReturn
            else self._queries.ask(f"field {field}", functools.partial(self._value_of, entry))
            for field, entry in zip(wanted, found, strict=True)
        }

    def _value_of(self, entry: Any) -> float | None:
        """One field's value; its own return code is raised as any other of NVML's."""
        if entry.nvmlReturn:
            raise self._nvml.NVMLError(entry.nvmlReturn)
        kind = _VALUE_TYPES.get(entry.valueType)
        value = None if kind is None else float(getattr(entry.value, kind))
        return None if value is not None and value >= VALUE_NOT_AVAILABLE else value

    def _rate(self, field: int, reading: Reading, now: float) -> Reading:
        """Bytes per second since the reading before; nothing where a counter started anew."""
        if not isinstance(reading, Ok):
            self._counts.pop(field, None)
            return reading
        before = self._counts.get(field)
        self._counts[field] = (now, reading.value)
        if before is None or now <= before[0]:
            return _FIRST
        counted = reading.value - before[1]
        if counted < 0:
            return NotAvailable("the counter started anew")
        return Ok(counted * _BYTES_PER_UNIT[field] / (now - before[0]))

    def _aged(self, field: int, now: float) -> Reading:
        watched, age_s = self._watched[field], now - self._watched_at
        if isinstance(watched, Ok) and age_s > WATCHED_FRESH_S:
            return Stale(watched.value, age_s)
        return watched


def _temperature(reading: Reading) -> Reading:
    # Boards without such a sensor answer 0, which no memory at work has.
    return NotAvailable("no sensor") if isinstance(reading, Ok) and reading.value == 0 else reading
