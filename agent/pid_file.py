"""One agent a prefix: `run/agent.pid` is locked for as long as the agent lives, and says who it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from agent.errors import FleetError


@contextlib.contextmanager
def hold_pid_file(path: Path) -> Iterator[None]:
    """Raises FleetError E903 when another agent holds it. The kernel drops the lock of a killed one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = _lock(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode().strip()
            os.close(descriptor)
            raise FleetError(
                "E903",
                f"an agent runs already under {path.parent.parent} (pid {holder or 'unknown'})",
                hint="stop it first, or choose another prefix",
            ) from error
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        # The former holder removed the file between our open and our lock.
        os.close(descriptor)
