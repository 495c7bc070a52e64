"""NVIDIA's Xid messages, from both places that have them: NVML events and the kernel's log.

NVML keeps no list of past ones, and either source can be closed to us, so both are watched.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

KEEP_S = 15 * 60
"""How long a code is shown."""
KEEP_CODES = 8
SAME_EVENT_S = 5.0
"""One Xid reaches us by both ways: the second report within this time is dropped."""
EVENT_WAIT_MS = 1000
KMSG = "/dev/kmsg"
KMSG_READ_BYTES = 8192

_KMSG_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)")


class XidWatch:
    """Codes by PCI bus id. Thread-safe: events come in on a thread of their own."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, deque[tuple[float, int]]] = {}
        self._lock = threading.Lock()
        self._event_set: Any = None
        self._bus_ids: dict[int, str] = {}
        self._kmsg: int | None = None

    def register(self, nvml: Any, handle: Any, bus_id: str) -> None:
        """Have NVML report critical Xids of a device. A driver that cannot leaves the kernel's log to us."""
        try:
            if self._event_set is None:
                self._event_set = nvml.nvmlEventSetCreate()
                threading.Thread(
                    target=self._wait_for_events, args=(nvml, self._event_set), name="xid", daemon=True
                ).start()
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._event_set)
        except nvml.NVMLError:
            return
        self._bus_ids[_address(handle)] = bus_id

    def open_kmsg(self) -> bool:
        """Watch the kernel's log from now on. False where we may not read it."""
        try:
            self._kmsg = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._kmsg, 0, os.SEEK_END)
        except OSError:
            return False
        return True

    def read_kmsg(self) -> None:
        """Take in what the kernel wrote since the last call."""
        while self._kmsg is not None:
            try:
                record = os.read(self._kmsg, KMSG_READ_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:
                # Records were overwritten before we came; the next read goes on behind them.
                continue
            except OSError:
                self._kmsg = None
                return
            self.note_kernel_line(record.decode(errors="replace"))

    def note_kernel_line(self, line: str) -> None:
        if match := _KMSG_XID.search(line):
            self.note(match[1], int(match[2]))

    def note(self, bus_id: str, code: int) -> None:
        now = self._clock()
        with self._lock:
            seen = self._seen.setdefault(_normal(bus_id), deque(maxlen=KEEP_CODES))
            if not any(other == code and now - at_s < SAME_EVENT_S for at_s, other in seen):
                seen.append((now, code))

    def recent(self, bus_id: str) -> tuple[int, ...]:
        """Codes of a device, oldest first."""
        oldest = self._clock() - KEEP_S
        with self._lock:
            return tuple(code for at_s, code in self._seen.get(_normal(bus_id), ()) if at_s >= oldest)

    def _wait_for_events(self, nvml: Any, event_set: Any) -> None:
        while True:
            try:
                event = nvml.nvmlEventSetWait_v2(event_set, EVENT_WAIT_MS)
            except nvml.NVMLError as error:
                if int(error.value) == nvml.NVML_ERROR_TIMEOUT:
                    continue
                # Nothing more will come this way (the GPU is lost, or the driver refuses); kmsg remains.
                return
            bus_id = self._bus_ids.get(_address(event.device))
            if bus_id is not None:
                self.note(bus_id, int(event.eventData))


def _address(handle: Any) -> int:
    """Value of an NVML device handle (a pointer): handles of one device are equal pointers."""
    import ctypes

    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _normal(bus_id: str) -> str:
    """`00000000:3B:00.0` (NVML) and `0000:3b:00` (kernel) as one: `3b:00` behind a domain without zeros."""
    domain, _, rest = bus_id.lower().partition(":")
    if ":" not in rest:
        domain, rest = "", bus_id.lower()
    return f"{domain.lstrip('0')}:{rest.partition('.')[0]}"
