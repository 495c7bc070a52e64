"""What tests ask of processes."""

from __future__ import annotations

from pathlib import Path


def is_running(pid: int | None) -> bool:
    """A zombie that its parent has not collected yet runs no more."""
    if pid is None:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
