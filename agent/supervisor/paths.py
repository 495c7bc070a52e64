"""Where everything lies below a host's prefix. Unix sockets must stay short: the kernel allows 107 bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

MAX_SOCKET_PATH_BYTES = 107


class HostPaths(msgspec.Struct, frozen=True):
    prefix: Path

    @property
    def run(self) -> Path:
        return self.prefix / "run"

    @property
    def models(self) -> Path:
        return self.prefix / "var" / "models"

    @property
    def packed_shards(self) -> Path:
        """Shards as kernels want them, by content hash: made once, mapped by later starts."""
        return self.prefix / "var" / "packed"

    @property
    def logs(self) -> Path:
        return self.prefix / "var" / "log"

    @property
    def tls(self) -> Path:
        return self.prefix / "etc" / "tls"

    @property
    def agent_socket(self) -> Path:
        return self.run / "agent.sock"

    def socket(self, process: str) -> Path:
        """Socket of a child process, named by a short hash so that long deployment names fit."""
        path = self.run / f"{hashlib.sha256(process.encode()).hexdigest()[:10]}.sock"
        assert len(str(path).encode()) <= MAX_SOCKET_PATH_BYTES, f"{path} is too long for a unix socket"
        return path

    def config(self, process: str) -> Path:
        return self.run / f"{process}.config.json"

    def record(self, process: str) -> Path:
        return self.run / f"{process}.process.json"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"
