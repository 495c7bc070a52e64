"""What the kernel knows of a TCP connection's round trip time. It measures while data flows; asking costs 2 µs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

_SMOOTHED_AT = 68
"""Offset of `tcpi_rtt` in Linux' `struct tcp_info`, a 32-bit number of microseconds; stable since 2.6."""
_INFO_BYTES = 104


def slowest_round_trip_s(connections: Iterable[socket.socket]) -> float | None:
    """The largest smoothed round trip time; None when none of them is an open TCP connection.

    A receiver of one-way traffic sends nothing but acknowledgements: ask the end that sends.
    """
    found = [seconds for each in connections if (seconds := _round_trip_s(each)) is not None]
    return max(found, default=None)


def _round_trip_s(connection: socket.socket) -> float | None:
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:
        return None  # closed meanwhile
    if len(info) < _SMOOTHED_AT + 4:
        return None
    (microseconds,) = struct.unpack_from("=I", info, _SMOOTHED_AT)
    return float(microseconds) / 1e6 if microseconds else None
