"""Is the device there, and does the shard fit? Asked before loading, because Linux kills instead of refusing."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import torch

from agent.errors import FleetError

log = logging.getLogger(__name__)

# The numbers of `mallopt` (malloc.h).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30
_LARGEST_KEPT_PIECE_BYTES = 64 << 20


def wake_device(device: torch.device) -> None:
    """Make the CUDA context, which takes seconds and holds the interpreter: before anybody expects answers."""
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        try:
            torch.zeros(1, device=device)
        except RuntimeError as error:
            log.warning("device does not wake", extra={"device": str(device), "error": str(error)})


def check_memory(device: torch.device, needed_bytes: int) -> None:
    """Raise E805 when the device is missing and E804 when less than `needed_bytes` are available on it."""
    if device.type == "cuda":
        index = device.index or 0
        count = torch.cuda.device_count()
        if index >= count:
            raise FleetError(
                "E805",
                f"device {device} is not there: torch sees {count} CUDA devices",
                hint="is the driver loaded?",
            )
        available_bytes, _ = torch.cuda.mem_get_info(device)
    else:
        available_bytes = _available_host_bytes()
    if needed_bytes > available_bytes:
        raise FleetError(
            "E804",
            f"the shard needs {needed_bytes / 1e9:.2f} GB on {device}, {available_bytes / 1e9:.2f} GB are free",
            hint="another process took memory since the plan was made: free it, or plan again",
        )


def keep_freed_memory() -> None:
    """From now on, memory that a step frees stays with the process for the next step, which wants as much.

    A step's activations are planned to stay within what is kept. Given back and taken anew, each of their pages is
    cleared by a page fault: a tenth of a prefill's time in int8. What loading freed goes back first.
    """
    libc = ctypes.CDLL(None)
    try:
        libc.malloc_trim(0)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_PIECE_BYTES)
    except AttributeError as error:  # another C library than glibc
        log.info("freed memory is given back", extra={"why": str(error)})


def _available_host_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/meminfo has no MemAvailable")
