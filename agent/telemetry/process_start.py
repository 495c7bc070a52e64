"""When a process started, as the kernel counts: with its pid that names one process, even when pids come round."""

from __future__ import annotations

from pathlib import Path


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat: clock ticks since boot. None when there is no such process."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else None


def process_state(pid: int) -> str:
    """The kernel's state letter: `R`, `S`, `D`, `T` (stopped), `Z` (zombie); empty when it is gone."""
    fields = stat_fields(pid)
    return fields[0] if fields else ""


def stat_fields(pid: int) -> list[str] | None:
    """Fields 3 and on of /proc/PID/stat."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold spaces and parentheses: fields start after the last one.
    return text.rpartition(")")[2].split()
