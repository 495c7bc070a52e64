"""Serves the agent's API on its two planes: the unix socket of operators, the TLS port of other agents."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from agent.api.tls import server_context, watch_leaf
from agent.errors import FleetError
from agent.wire.identity import agent_uri
from agent.wire.rank import TlsFiles

log = logging.getLogger(__name__)

MAX_SOCKET_PATH_BYTES = 107
"""Of the kernel, for unix sockets."""
KEEP_ALIVE_S = 75
SHUTDOWN_S = 1
"""Streams that follow something never end by themselves: they are cut after this."""
BACKLOG = 512


class _PlaneServer(Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the agent's business, not this server's."""
        yield


async def serve_control(app: Starlette, socket_path: Path) -> None:
    """Until cancelled, on a unix socket that only our user can open. Raises FleetError E902."""
    listener, inode = _listen_unix(socket_path)
    try:
        await _serve(_config(app), listener)
    finally:
        _remove_socket(socket_path, inode)


async def serve_cluster(app: Starlette, address: str, port: int, tls: TlsFiles, *, cluster: str) -> None:
    """Until cancelled, over TLS 1.3 on the cluster address; clients show an agent's leaf of this cluster.

    Raises FleetError E902 where the port cannot be had, E208 for unusable certificate files.
    """
    context = server_context(tls)
    listener = _listen_tcp(address, port)
    config = _config(app)
    config.http_protocol_class = _agents_only(cluster)
    config.ssl = context
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(watch_leaf([context], tls))
        try:
            await _serve(config, listener)
        finally:
            watch.cancel()


def _config(app: Starlette) -> Config:
    config = Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
        backlog=BACKLOG,
    )
    config.load()
    return config


async def _serve(config: Config, listener: socket.socket) -> None:
    server = _PlaneServer(config)
    try:
        await server.serve(sockets=[listener])
    finally:
        if server.started:
            # Cancelled while it served: uvicorn then leaves its sockets open.
            async with asyncio.timeout(SHUTDOWN_S + 1):
                await server.shutdown(sockets=[listener])
            # TLS closes by asking the other end, and an idle one does not answer.
            for connection in list(server.server_state.connections):
                if connection.transport is not None:
                    connection.transport.abort()


def _agents_only(cluster: str) -> type[H11Protocol]:
    """A protocol that drops a connection whose certificate does not name an agent of this cluster."""

    class AgentProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            peer = transport.get_extra_info("ssl_object")
            if peer is None or not _is_agent(peer, cluster):
                log.warning("peer refused", extra={"peer": str(transport.get_extra_info("peername"))})
                transport.abort()
                return
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.transport is not None:
                super().connection_lost(exc)

    return AgentProtocol


def _is_agent(peer: ssl.SSLObject, cluster: str) -> bool:
    certificate = peer.getpeercert() or {}
    names: Any = certificate.get("subjectAltName", ())
    return any(kind == "URI" and value.startswith(agent_uri("", cluster)) for kind, value in names)


def _listen_unix(path: Path) -> tuple[socket.socket, int]:
    """The bound socket, and the inode of its file."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise FleetError(
            "E902",
            f"socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes",
            hint="choose a shorter prefix",
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.chmod(0o700)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        # The pid file's lock says that no agent runs here: the socket is what a killed one left.
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        listener.close()
        raise FleetError("E902", f"cannot listen on {path}: {error.strerror}") from error
    return listener, path.stat().st_ino


def _remove_socket(path: Path, inode: int) -> None:
    """Unless a successor has put its own socket there already."""
    try:
        if path.stat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        log.debug("socket gone already", extra={"path": str(path)})


def _listen_tcp(address: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, endpoint = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise FleetError("E902", f"cannot listen on {address}:{port}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(endpoint)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise FleetError(
            "E902",
            f"cannot listen on {address}:{port}: {error.strerror}",
            hint="another process has the port, or the address is not one of this host",
        ) from error
    return listener
