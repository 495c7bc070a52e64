"""A recording's bytes: a mark, a header, then frames, each whole by itself. No I/O.

    mark     16 bytes, `odctl-recording` and a line feed
    header   4 bytes of length (big endian), msgpack of `Header`
    frame    a `FRAME` preamble, then two sections, each deflated msgpack: `NewRows`, and a `FrameChange`

Rows stand apart so that a history can be put together without reading anything else. Every `KEY_EVERY`th frame is a
key: its change is all of a snapshot, and its deflated bytes need no others. The changes after it are deflated with
the end of the one before as their dictionary, for most of what they say was said there.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from typing import Any, NamedTuple

import msgspec

from agent.errors import FleetError
from agent.wire.framing import MAX_FRAME_BYTES
from odctl.recording.change import FrameChange
from odctl.recording.rows import NewRows

MARK = b"odctl-recording\n"
FORMAT = 1
KEY_EVERY = 30
"""Frames from one key to the next: so many are read at most to show any moment."""
FRAME = struct.Struct(">IIBd")
"""Bytes of rows, bytes of the change, 1 for a key, seconds since the epoch."""
LENGTH = struct.Struct(">I")
MAX_HEADER_BYTES = 64 * 1024
LEVEL = 3
"""Of deflate: twice as quick as its default, and a tenth larger."""
_DICTIONARY_BYTES = 32 * 1024
"""As far as deflate looks back."""

NOT_A_RECORDING = "E122"
BROKEN_FRAME = "E124"
NO_FLEET = "E123"
"""A recording was asked for what only a live fleet has."""


@cache
def _changes() -> msgspec.msgpack.Decoder[FrameChange]:
    """Built when a recording is read: its types are all that a snapshot holds."""
    return msgspec.msgpack.Decoder(FrameChange)


@cache
def _rows() -> msgspec.msgpack.Decoder[NewRows]:
    return msgspec.msgpack.Decoder(NewRows)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    cluster: str
    started_at_s: float
    every_s: float
    """Seconds between two frames, as they were asked for."""
    odctl: str = ""
    """Version of the one that wrote it."""


class FrameAt(NamedTuple):
    """Where a frame stands in its file."""

    offset: int
    """Of its first section."""
    rows_bytes: int
    change_bytes: int
    is_key: bool
    at_s: float

    @property
    def end(self) -> int:
        return self.offset + self.rows_bytes + self.change_bytes


class BrokenSection(ValueError):
    """Bytes that are no section; its message says what is wrong with them."""


def header_bytes(header: Header) -> bytes:
    body = msgspec.msgpack.encode(header)
    return MARK + LENGTH.pack(len(body)) + body


def read_header(data: bytes, *, path: str) -> tuple[Header, int]:
    """The header, and the offset of the first frame. `data` is the file's beginning.

    Raises FleetError E122 for a file that is no recording, or one of a later format.
    """
    if not data.startswith(MARK):
        what = "it is empty" if not data else f"it begins with {data[:16]!r}"
        raise not_a_recording(path, what)
    first = len(MARK) + LENGTH.size
    if len(data) < first:
        raise not_a_recording(path, "it ends inside its header")
    (length,) = LENGTH.unpack_from(data, len(MARK))
    if length > MAX_HEADER_BYTES or len(data) < first + length:
        raise not_a_recording(path, "it ends inside its header")
    body = data[first : first + length]
    try:
        found = msgspec.msgpack.decode(body)
        number = found.get("format") if isinstance(found, dict) else None
        if isinstance(number, int) and number > FORMAT:
            raise FleetError(
                NOT_A_RECORDING,
                f"{path} has format {number}, written by odctl {found.get('odctl', '?')}; this one reads {FORMAT}",
                hint="use a later odctl",
            )
        return msgspec.convert(found, Header), first + length
    except msgspec.MsgspecError as error:
        raise not_a_recording(path, f"its header is broken: {error}") from error


def not_a_recording(path: str, why: str) -> FleetError:
    return FleetError(
        NOT_A_RECORDING, f"{path} is no recording of a fleet: {why}", hint="`odctl record FILE` writes one"
    )


def pack_rows(rows: NewRows) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(rows), LEVEL)


def unpack_rows(section: bytes) -> NewRows:
    """Raises BrokenSection."""
    raw = _inflated(section, b"")
    try:
        return _rows().decode(raw)
    except msgspec.MsgspecError as error:
        raise BrokenSection(str(error)) from error


def pack_change(change: Any, dictionary: bytes) -> tuple[bytes, bytes]:
    """The section, and the dictionary for the next one. An empty dictionary makes a key."""
    raw = msgspec.msgpack.encode(change)
    deflater = zlib.compressobj(LEVEL, zdict=dictionary) if dictionary else zlib.compressobj(LEVEL)
    return deflater.compress(raw) + deflater.flush(), raw[-_DICTIONARY_BYTES:]


def unpack_change(section: bytes, dictionary: bytes) -> tuple[Any, bytes]:
    """The `FrameChange`, and the dictionary for the next one. Raises BrokenSection."""
    raw = _inflated(section, dictionary)
    try:
        return _changes().decode(raw), raw[-_DICTIONARY_BYTES:]
    except msgspec.MsgspecError as error:
        raise BrokenSection(str(error)) from error


def _inflated(section: bytes, dictionary: bytes) -> bytes:
    inflater = zlib.decompressobj(zdict=dictionary) if dictionary else zlib.decompressobj()
    try:
        raw = inflater.decompress(section, MAX_FRAME_BYTES)
    except zlib.error as error:
        raise BrokenSection(str(error)) from error
    if not inflater.eof:
        raise BrokenSection("it ends early, or is larger than a frame may be")
    return raw
