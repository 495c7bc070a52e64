"""Find the TCP connections that a process group opened, so that they can be shut down under it.

Gloo has no abort that unblocks a pending receive; shutting its socket down does, within a millisecond.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path


def socket_inodes() -> frozenset[int]:
    """Inodes of all sockets that this process holds."""
    return frozenset(inode for _, inode in _socket_fds())


def connections_since(before: frozenset[int], *, except_port: int) -> tuple[socket.socket, ...]:
    """Duplicates of every TCP connection not among `before`, save those of the local port `except_port`.

    Duplicates, because the group may close its own descriptor and the number be used again for something else.
    """
    found = []
    for fd, inode in _socket_fds():
        if inode in before:
            continue
        with contextlib.suppress(OSError):  # closed since we listed it: not one of the group's
            found.append(socket.socket(fileno=os.dup(fd)))
    kept = []
    for connection in found:
        if _is_tcp_connection(connection, except_port):
            kept.append(connection)
        else:
            connection.close()
    return tuple(kept)


def shut_down(connections: tuple[socket.socket, ...]) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):  # the other end was faster
            connection.shutdown(socket.SHUT_RDWR)


def _socket_fds() -> list[tuple[int, int]]:
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers are wanted, not paths
        try:
            status = Path("/proc/self/fd", name).stat()
        except OSError:
            continue  # the listing's own descriptor, or one closed meanwhile
        if stat.S_ISSOCK(status.st_mode):
            found.append((int(name), status.st_ino))
    return found


def _is_tcp_connection(connection: socket.socket, except_port: int) -> bool:
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return False
    try:
        connection.getpeername()
        return bool(connection.getsockname()[1] != except_port)
    except OSError:
        return False  # a listener
