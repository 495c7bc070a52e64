"""Messages about one host as a machine: its kernel's log, its logs as they grow, and what may be ended on it."""

from __future__ import annotations

from typing import Literal

import msgspec

KernelSource = Literal["kmsg", "journal", ""]
KERNEL_LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
"""By the number that the kernel gives, 0 to 7."""
MAX_KERNEL_LINES = 1000


class KernelMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the kernel's log. `at_s`: seconds since the epoch, by the host's clock."""

    at_s: float
    level: str
    text: str


class KernelLog(msgspec.Struct, frozen=True, kw_only=True):
    """The last messages, oldest first. `unavailable` says why there are none to be had; `source`, who gave them."""

    messages: tuple[KernelMessage, ...] = ()
    source: KernelSource = ""
    unavailable: str = ""
    way_out: str = ""


class LogLines(msgspec.Struct, frozen=True, kw_only=True):
    """Lines that one log had when it was first looked at (`is_past`), or has got since.

    `at_s` is the host's clock when they were read: for lines that have no time of their own. `skipped_bytes` were
    written faster than they could be told.
    """

    name: str
    lines: tuple[str, ...]
    at_s: float
    is_past: bool = False
    skipped_bytes: int = 0


class EndProcess(msgspec.Struct, frozen=True, kw_only=True):
    """End a process on one of the host's devices that is not ours.

    Pid and start time must be those of a process that the agent sees on `device` now. E105 when there is none, E107
    when it is one of ours, E805 when the agent may not signal it.
    """

    pid: int
    start_ticks: int
    device: str
    by: str
    """Who asks, for the journal."""
    is_forced: bool = False
    """SIGKILL, in the place of SIGTERM."""


class RestartAgent(msgspec.Struct, frozen=True, kw_only=True):
    """Have the agent end, so that what keeps it starts it anew. E805 where nothing keeps it."""

    by: str
