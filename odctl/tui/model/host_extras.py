"""What a host page shows beside the snapshot, as it was asked for."""

from __future__ import annotations

import msgspec

from agent.wire.host import KernelLog
from odctl.logs import LogEntry


class HostExtras(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's messages and the last lines of logs, oldest first; or why there are none."""

    kernel: KernelLog = KernelLog()
    kernel_trouble: str = ""
    entries: tuple[LogEntry, ...] = ()
    entries_trouble: str = ""
