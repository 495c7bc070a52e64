"""NVML's return codes as readings: not available, a fault, or unknown until it happens three times in a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.facts.sample import Lost, NotAvailable, Ok, Reading

FUNCTION_NOT_FOUND = 13
UNKNOWN = 999
UNKNOWN_LIMIT = 3
VALUE_NOT_AVAILABLE = 2**64 - 1
"""NVML's own marker in counters and sizes (`NVML_VALUE_NOT_AVAILABLE`)."""

NOT_AVAILABLE_CODES = {
    3: "not supported",
    4: "no permission",
    6: "not found",
    FUNCTION_NOT_FOUND: "driver too old",
    21: "no data",
    25: "version mismatch",
    26: "deprecated",
    27: "not ready",
}
FAULT_CODES = {
    10: "GPU timed out",
    11: "GPU interrupt trouble",
    14: "inforom is corrupted",
    15: "GPU is lost",
    16: "GPU needs a reset",
    28: "GPU not found",
}
DEVICE_GONE_CODES = frozenset({15, 16, 28})
"""After one of these no other value of the device can be had, nor believed."""

START_CODES = {
    4: "no permission",
    9: "no driver",
    12: "no driver library",
    18: "driver and library versions differ: reload the module or reboot",
    19: "driver and library versions differ: reload the module or reboot",
}
"""Of nvmlInit."""


class DeviceGone(Exception):
    """A call said that its device is lost. Caught by the reader of the device, which latches it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Queries:
    """Asks one device. Remembers which functions the driver lacks, and counts unknown errors in a row."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._missing: set[str] = set()
        self._unknown_in_a_row: dict[str, int] = {}

    def ask(self, name: str, call: Callable[[], float | None]) -> Reading:
        """One number as a reading. Raises DeviceGone."""
        value = self.ask_any(name, call)
        if isinstance(value, NotAvailable | Lost):
            return value
        if value is None or value == VALUE_NOT_AVAILABLE:
            return NotAvailable("no data")
        return Ok(float(value))

    def ask_any(self, name: str, call: Callable[[], Any]) -> Any:
        """What the call returns, or the NotAvailable or Lost that stands for its error. Raises DeviceGone."""
        if name in self._missing:
            return NotAvailable(NOT_AVAILABLE_CODES[FUNCTION_NOT_FOUND])
        try:
            value = call()
        except self._nvml.NVMLError as error:
            return self._reading_of(name, int(error.value))
        except UnicodeDecodeError:
            return NotAvailable("unreadable")
        self._unknown_in_a_row.pop(name, None)
        return value

    def _reading_of(self, name: str, code: int) -> NotAvailable | Lost:
        if code in DEVICE_GONE_CODES:
            raise DeviceGone(FAULT_CODES[code])
        if code in FAULT_CODES:
            return Lost(FAULT_CODES[code])
        if code == FUNCTION_NOT_FOUND:
            self._missing.add(name)
        if code != UNKNOWN:
            self._unknown_in_a_row.pop(name, None)
            return NotAvailable(NOT_AVAILABLE_CODES.get(code, f"NVML error {code}"))
        count = self._unknown_in_a_row.get(name, 0) + 1
        self._unknown_in_a_row[name] = count
        if count >= UNKNOWN_LIMIT:
            return Lost(f"unknown error, {count} times in a row")
        return NotAvailable("unknown error")
