"""A gateway's two listening sockets, and who may not be listened to."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from agent.errors import FleetError
from agent.wire.gateway import GatewayConfig

BACKLOG = 512


@contextlib.contextmanager
def listen_tcp(config: GatewayConfig) -> Iterator[socket.socket]:
    """The client API's socket. Raises FleetError E1xx for a bad or open address, E808 when it is taken."""
    address, port = _parse(config)
    if not ipaddress.ip_address(address).is_loopback and not config.api_keys:
        raise FleetError(
            "E191",
            f"refusing to listen on {config.listen} without API keys",
            hint="anyone who reaches that address could use the model: write keys to etc/api_keys, "
            "or listen on 127.0.0.1",
            host=config.host,
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Named TCP: else asyncio leaves Nagle's delay on, and a stream's first piece waits 40 ms until its headers are
    # acknowledged. Accepted connections inherit both.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((address, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise FleetError("E808", f"cannot listen on {config.listen}: {error}", host=config.host) from error
        yield listener


@contextlib.contextmanager
def listen_unix(config: GatewayConfig) -> Iterator[socket.socket]:
    """The control socket, for its owner alone (0600). Takes the place of one that nobody answers on."""
    path = Path(config.socket)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        mask = os.umask(0o177)
        try:
            _clear(path, host=config.host)
            listener.bind(str(path))
            listener.listen(BACKLOG)
        except OSError as error:
            raise FleetError("E808", f"cannot listen on {path}: {error}", host=config.host) from error
        finally:
            os.umask(mask)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def name_of(listener: socket.socket) -> str:
    """`address:port` as bound, which tells a port that was asked for as 0."""
    address, port = listener.getsockname()[:2]
    return f"[{address}]:{port}" if listener.family == socket.AF_INET6 else f"{address}:{port}"


def _parse(config: GatewayConfig) -> tuple[str, int]:
    address, _, port = config.listen.rpartition(":")
    address = "127.0.0.1" if address == "localhost" else address.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(address)
        if not 0 <= int(port) <= 65535:
            raise ValueError(f"port {port} is not from 0 to 65535")
    except ValueError as error:
        raise FleetError(
            "E190",
            f"`listen` is not an address and a port: {config.listen}: {error}",
            hint="for example 127.0.0.1:11434",
            host=config.host,
        ) from error
    return address, int(port)


def _clear(path: Path, *, host: str) -> None:
    """Remove a dead socket. Raises FleetError when a process still answers on it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise FleetError("E808", f"another gateway answers on {path}", host=host)
