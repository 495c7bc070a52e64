"""Length-prefixed msgpack over a byte stream: four bytes, big endian, then the message."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import msgspec

MAX_FRAME_BYTES = 256 * 1024 * 1024
_HEADER = struct.Struct(">I")


class StreamClosed(ConnectionError):
    """The other end is gone. Between two frames or inside one makes no difference to what must be done."""


def encode_frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    assert len(body) <= MAX_FRAME_BYTES, f"frame of {len(body)} bytes"
    return _HEADER.pack(len(body)) + body


def send_frame(connection: socket.socket, message: msgspec.Struct) -> None:
    """Send one message on a blocking socket. Raises OSError when the other end is gone."""
    connection.sendall(encode_frame(message))


def receive_frame(connection: socket.socket) -> bytes:
    """Body of the next frame on a blocking socket. Raises StreamClosed at its end, TimeoutError at its limit."""
    (length,) = _HEADER.unpack(_receive_exactly(connection, _HEADER.size))
    if length > MAX_FRAME_BYTES:
        raise StreamClosed(f"frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _receive_exactly(connection, length)


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Body of the next frame of an asyncio stream. Raises StreamClosed at its end."""
    try:
        (length,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if length > MAX_FRAME_BYTES:
            raise StreamClosed(f"frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise StreamClosed(str(error)) from error


def decode(body: bytes, kind: Any) -> Any:
    """Decode a frame's body as `kind` (a Struct or a tagged union). Raises msgspec.ValidationError."""
    return msgspec.msgpack.decode(body, type=kind)


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = connection.recv(min(count - len(parts), 1 << 20))
        except ConnectionError as error:
            raise StreamClosed(str(error)) from error
        if not part:
            raise StreamClosed("the other end closed the stream")
        parts += part
    return bytes(parts)
