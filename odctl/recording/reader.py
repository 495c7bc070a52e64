"""Reads recordings: any moment of one, in any order, from the key before it."""

from __future__ import annotations

import io
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from agent.errors import FleetError
from odctl.fleet import FleetSnapshot
from odctl.fleet.history import HISTORY_S
from odctl.recording.change import snapshot_of
from odctl.recording.format import (
    BROKEN_FRAME,
    FRAME,
    KEY_EVERY,
    MAX_HEADER_BYTES,
    BrokenSection,
    FrameAt,
    Header,
    not_a_recording,
    read_header,
    unpack_change,
    unpack_rows,
)
from odctl.recording.rows import Histories, NewRows, histories_of, with_rows
from odctl.recording.timeline import index_at

CANNOT_READ = "E101"
KEPT_HOST_VIEWS = 30_000
"""Hosts in all snapshots that stay in memory, so that stepping back within a key's frames reads nothing anew."""


class _Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """What must be known of a frame to read the next one."""

    index: int
    snapshot: FleetSnapshot
    histories: Histories
    dictionary: bytes


class Recording:
    """A `Timeline` over a file. It may be asked from any thread, one question at a time."""

    def __init__(
        self, path: Path, file: BinaryIO, *, header: Header, frames: tuple[FrameAt, ...], num_bytes: int
    ) -> None:
        self.path = path
        self.header = header
        self.num_bytes = num_bytes
        self.times: tuple[float, ...] = tuple(frame.at_s for frame in frames)
        self._frames = frames
        self._file = file
        self._cursor: _Cursor | None = None
        self._kept: OrderedDict[int, FleetSnapshot] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def step_s(self) -> float:
        return self.header.every_s

    @property
    def spare_bytes(self) -> int:
        """Bytes after the last whole frame: of one that was under way when its writer ended."""
        return self.num_bytes - self._frames[-1].end

    def snapshot_at(self, at_s: float) -> FleetSnapshot:
        """The last one at or before that time, or else the first. Raises FleetError E122 for broken bytes."""
        with self._lock:
            return self._snapshot(index_at(self.times, at_s))

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _snapshot(self, index: int) -> FleetSnapshot:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        key = next(at for at in range(index, -1, -1) if self._frames[at].is_key)
        cursor = self._cursor
        if cursor is None or not key <= cursor.index < index:
            cursor = self._at_key(key)
        while cursor.index < index:
            cursor = self._after(cursor)
        return cursor.snapshot

    def _at_key(self, index: int) -> _Cursor:
        """A key's snapshot, with histories from the rows of the fifteen minutes before it."""
        first = bisect_left(self.times, self.times[index] - HISTORY_S)
        past = [rows for at in range(first, index) if (rows := self._rows_or_none(at)) is not None]
        return self._moved(index, None, histories_of([*past, self._rows(index)]), b"")

    def _after(self, cursor: _Cursor) -> _Cursor:
        index = cursor.index + 1
        is_key = self._frames[index].is_key
        histories = with_rows(cursor.histories, self._rows(index))
        before, dictionary = (None, b"") if is_key else (cursor.snapshot, cursor.dictionary)
        return self._moved(index, before, histories, dictionary)

    def _moved(self, index: int, before: FleetSnapshot | None, histories: Histories, dictionary: bytes) -> _Cursor:
        frame = self._frames[index]
        try:
            section = self._read(frame.offset + frame.rows_bytes, frame.change_bytes)
            change, dictionary = unpack_change(section, dictionary)
        except BrokenSection as error:
            raise self._broken(frame, error) from error
        snapshot = snapshot_of(before, change, histories, taken_at_s=frame.at_s)
        self._cursor = _Cursor(index=index, snapshot=snapshot, histories=histories, dictionary=dictionary)
        self._kept[index] = snapshot
        most = min(KEY_EVERY * 2, max(2, KEPT_HOST_VIEWS // max(1, len(snapshot.hosts))))
        while len(self._kept) > most:
            self._kept.popitem(last=False)
        return self._cursor

    def _rows(self, index: int) -> NewRows:
        frame = self._frames[index]
        try:
            return unpack_rows(self._read(frame.offset, frame.rows_bytes))
        except BrokenSection as error:
            raise self._broken(frame, error) from error

    def _rows_or_none(self, index: int) -> NewRows | None:
        """Of a frame on the way to another one: where it is broken, a history has a hole and no more."""
        try:
            return self._rows(index)
        except FleetError:
            return None

    def _read(self, offset: int, length: int) -> bytes:
        try:
            self._file.seek(offset)
            return self._file.read(length)
        except (OSError, ValueError) as error:
            raise FleetError(CANNOT_READ, f"cannot read {self.path}: {error}") from error

    def _broken(self, frame: FrameAt, error: BrokenSection) -> FleetError:
        moment = datetime.fromtimestamp(frame.at_s, UTC).strftime("%H:%M:%S UTC")
        return FleetError(
            BROKEN_FRAME,
            f"{self.path}: the moment at {moment} (byte {frame.offset}) cannot be read: {error}",
            hint=f"go to another moment; the file was written by odctl {self.header.odctl or 'of unknown version'}",
        )


def open_recording(path: Path) -> Recording:
    """Read a recording's header and find its frames; their contents are read when they are asked for.

    Raises FleetError E101 for a file that cannot be read, E121 for one that is no recording or has no whole frame.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        hint = "`odctl record FILE` writes one" if isinstance(error, FileNotFoundError) else ""
        raise FleetError(CANNOT_READ, f"cannot read {path}: {error.strerror or error}", hint=hint) from error
    try:
        num_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        header, first = read_header(file.read(MAX_HEADER_BYTES), path=str(path))
        frames = tuple(_frames(file, first, num_bytes))
        if not frames:
            raise not_a_recording(str(path), "it has no whole frame: nothing was recorded")
    except OSError as error:
        file.close()
        raise FleetError(CANNOT_READ, f"cannot read {path}: {error.strerror or error}") from error
    except FleetError:
        file.close()
        raise
    return Recording(path, file, header=header, frames=frames, num_bytes=num_bytes)


def _frames(file: BinaryIO, first: int, num_bytes: int) -> Iterator[FrameAt]:
    """Whole frames in order. What follows the last of them, cut off or not a frame at all, is left alone."""
    offset, last_s = first, float("-inf")
    while offset + FRAME.size <= num_bytes:
        file.seek(offset)
        rows_bytes, change_bytes, is_key, at_s = FRAME.unpack(file.read(FRAME.size))
        frame = FrameAt(offset + FRAME.size, rows_bytes, change_bytes, bool(is_key), at_s)
        is_sound = is_key in (0, 1) and at_s >= last_s and (frame.is_key or last_s > float("-inf"))
        if not is_sound or frame.end > num_bytes:
            return
        yield frame
        offset, last_s = frame.end, at_s
