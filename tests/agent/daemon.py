"""A real agent in a process of its own, with certificates of a real authority, below a short temporary prefix."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from agent.facts.sample import HostSample
from agent.tls_request import load_or_make_key, make_request
from agent.wire.agent import AgentConfig, HostAddress
from agent.wire.rank import TlsFiles
from odctl.pki.authority import ClusterAuthority, LeafIdentity, open_authority

START_TIMEOUT_S = 20.0
CLUSTER = "lab"


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 10.0, what: str = "the condition") -> Any:
    """Returns the first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not hold within {timeout_s} s"
        time.sleep(0.02)
    return value


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """pytest's own temporary paths are too long for unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="od", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def authority(directory: Path, cluster: str = CLUSTER) -> ClusterAuthority:
    return open_authority(cluster, directory=directory)


def write_leaf(
    authority: ClusterAuthority, directory: Path, *, host: str, identity: LeafIdentity | None = None
) -> TlsFiles:
    """Key, leaf and CA as bootstrap lays them out."""
    directory.mkdir(parents=True, exist_ok=True)
    files = TlsFiles(
        ca=str(directory / "ca.pem"), cert=str(directory / "host.pem"), key=str(directory / "host.key")
    )
    key = load_or_make_key(Path(files.key))
    identity = identity or LeafIdentity(cluster=authority.cluster, host=host, cluster_address="127.0.0.1")
    Path(files.ca).write_bytes(authority.ca_pem)
    Path(files.cert).write_bytes(authority.issue(make_request(key, host), identity, now=datetime.now(UTC)))
    return files


class Daemon:
    """One agent process below `prefix`."""

    def __init__(self, prefix: Path, config: AgentConfig, *, environment: dict[str, str]) -> None:
        self.prefix = prefix
        self.config = config
        self.address = HostAddress(host=config.host, address="127.0.0.1", port=config.cluster_port)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent", "--prefix", str(prefix)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )

    @property
    def socket(self) -> Path:
        return self.prefix / "run" / "agent.sock"

    @property
    def tls(self) -> TlsFiles:
        tls = self.prefix / "etc" / "tls"
        return TlsFiles(ca=str(tls / "ca.pem"), cert=str(tls / "host.pem"), key=str(tls / "host.key"))

    def client(self) -> httpx.Client:
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://agent", timeout=10
        )

    def get(self, path: str, kind: Any) -> Any:
        with self.client() as client:
            response = client.get(path)
        assert response.status_code == 200, response.content
        return msgspec.msgpack.decode(response.content, type=kind)

    def wait_ready(self) -> None:
        wait_until(self._is_ready, timeout_s=START_TIMEOUT_S, what=f"the agent of {self.config.host}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            output = self.process.stdout.read().decode() if self.process.stdout else ""
            log = self.prefix / "var" / "log" / "agent.log"
            raise AssertionError(f"the agent ended: {output}\n{log.read_text() if log.exists() else ''}")
        # httpx leaves its socket open when it cannot connect.
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        with self.client() as client:
            return client.get("/v1/handshake").status_code == 200


def frames(data: bytes, kind: Any = HostSample) -> list[Any]:
    """All messages of a framed body."""
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        found.append(msgspec.msgpack.decode(data[4:end], type=kind))
        data = data[end:]
    return found


@contextlib.contextmanager
def running_daemon(
    *, host: str = "alpha", environment: dict[str, str] | None = None, **settings: Any
) -> Iterator[Daemon]:
    with short_directory() as prefix:
        write_leaf(authority(prefix / "authority"), prefix / "etc" / "tls", host=host)
        config = AgentConfig(
            cluster=CLUSTER,
            host=host,
            prefix=str(prefix),
            cluster_address="127.0.0.1",
            cluster_port=free_port(),
            **settings,
        )
        (prefix / "etc" / "agent.json").write_bytes(msgspec.json.encode(config))
        daemon = Daemon(prefix, config, environment=environment or {})
        try:
            daemon.wait_ready()
            yield daemon
        finally:
            daemon.stop()
