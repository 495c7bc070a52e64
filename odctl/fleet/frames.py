"""Framed msgpack (`agent.wire.framing`) out of a stream of byte chunks. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from agent.wire.framing import MAX_FRAME_BYTES, StreamClosed

_HEADER = struct.Struct(">I")


class FrameSplitter:
    """Chunks in, bodies of whole frames out. `is_between_frames` tells a clean end from a cut-off one."""

    def __init__(self) -> None:
        self._pending = bytearray()

    @property
    def is_between_frames(self) -> bool:
        return not self._pending

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Bodies completed by this chunk. Raises StreamClosed for a frame over the limit."""
        self._pending += chunk
        while len(self._pending) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._pending)
            if length > MAX_FRAME_BYTES:
                raise StreamClosed(f"frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = _HEADER.size + length
            if len(self._pending) < end:
                return
            body = bytes(self._pending[_HEADER.size : end])
            del self._pending[:end]
            yield body
