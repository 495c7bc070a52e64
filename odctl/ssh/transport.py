"""How the operator reaches one host: a Protocol with an SSH backend and a local one. No policy here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec


class RemoteResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a command left: exit status (128 + signal when a signal ended it) and its output, undecoded."""

    exit_status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class ByteStream(Protocol):
    """A duplex byte stream, such as a channel to a remote unix socket. Used on the caller's event loop."""

    async def read(self, limit: int) -> bytes:
        """At most `limit` bytes; empty at the end."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


class Transport(Protocol):
    """One host. Every method may be awaited from any event loop, and raises FleetError E2xx naming the host.

    `run` takes an argv list, never a shell string; a cancelled or timed-out command does not live on remotely.
    """

    @property
    def host(self) -> str: ...

    async def connect(self) -> None:
        """Connect and check the host key. Other methods connect by themselves."""
        ...

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0, check: bool = False
    ) -> RemoteResult:
        """Run to its end. With `check`, a non-zero status is FleetError E301 with the end of stderr."""
        ...

    async def put(
        self,
        source: Path,
        target: str,
        *,
        mode: int = 0o644,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Copy a local file there, through a temporary name, atomically. Parents are made."""
        ...

    async def put_bytes(self, data: bytes, target: str, *, mode: int = 0o644) -> None:
        """Write a small file there, through a temporary name, atomically. Parents are made."""
        ...

    async def get(self, source: str, target: Path) -> None: ...

    async def open_unix(self, path: str) -> ByteStream:
        """Connect to a unix socket there. No local listener, nothing left on disk."""
        ...

    async def close(self) -> None: ...
