"""Writes snapshots to a file, one whole frame at a time: a crash loses at most the frame under way."""

from __future__ import annotations

import threading
from pathlib import Path

from agent.errors import FleetError
from odctl.fleet import FleetSnapshot
from odctl.recording.change import change_between
from odctl.recording.format import FORMAT, FRAME, KEY_EVERY, Header, header_bytes, pack_change, pack_rows
from odctl.recording.rows import rows_between

EXISTS = "E119"
CANNOT_WRITE = "E101"


class RecordingWriter:
    """One recording under way. It may be written on one thread and closed on another."""

    def __init__(
        self,
        path: Path,
        *,
        cluster: str,
        started_at_s: float,
        every_s: float,
        max_bytes: int,
        is_forced: bool = False,
    ) -> None:
        """Make the file. Raises FleetError E119 where there is one already and `is_forced` is not set, E101 where
        it cannot be written.
        """
        self.path = path
        self.every_s = every_s
        self.max_bytes = max_bytes
        self.num_frames = 0
        self.first_at_s: float | None = None
        self.last_at_s: float | None = None
        self._before: FleetSnapshot | None = None
        self._dictionary = b""
        self._lock = threading.Lock()
        try:
            self._file = path.open("wb" if is_forced else "xb", buffering=0)
        except FileExistsError as error:
            hint = "name another file, or replace it with --force"
            raise FleetError(EXISTS, f"{path} is there already", hint=hint) from error
        except OSError as error:
            raise self._cannot_write(error) from error
        header = Header(
            format=FORMAT,
            cluster=cluster,
            started_at_s=started_at_s,
            every_s=every_s,
            odctl=_version(),
        )
        self.num_bytes = 0
        self._put(header_bytes(header))

    def wants(self, at_s: float) -> bool:
        """Whether `every_s` has passed since the last frame; a tenth early is in time."""
        return self.last_at_s is None or at_s - self.last_at_s >= self.every_s * 0.9

    def write(self, snapshot: FleetSnapshot) -> bool:
        """Add a frame. False, and nothing is written, when the file would outgrow `max_bytes` or is closed.

        Raises FleetError E101 where the disk refuses; the file then ends with its last whole frame.
        """
        with self._lock:
            if self._file.closed:
                return False
            is_key = self.num_frames % KEY_EVERY == 0
            rows = pack_rows(rows_between(self._before, snapshot))
            change, dictionary = pack_change(
                change_between(None if is_key else self._before, snapshot), b"" if is_key else self._dictionary
            )
            frame = FRAME.pack(len(rows), len(change), int(is_key), snapshot.taken_at_s) + rows + change
            if self.num_bytes + len(frame) > self.max_bytes:
                return False
            self._put(frame)
            self._before, self._dictionary = snapshot, dictionary
            self.num_frames += 1
            self.first_at_s = snapshot.taken_at_s if self.first_at_s is None else self.first_at_s
            self.last_at_s = snapshot.taken_at_s
            return True

    def close(self) -> None:
        """End the file. Twice does no harm."""
        with self._lock:
            self._file.close()

    def _put(self, data: bytes) -> None:
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes were taken: the disk is full")
        except OSError as error:
            self._file.close()
            raise self._cannot_write(error) from error
        self.num_bytes += len(data)

    def _cannot_write(self, error: OSError) -> FleetError:
        return FleetError(
            CANNOT_WRITE,
            f"cannot write {self.path}: {error.strerror or error}",
            hint="name a file in a directory that you may write to, on a disk with room",
        )


def _version() -> str:
    from importlib import metadata  # with a parser of mail: nothing for the start of a UI that records nothing

    try:
        return metadata.version("odctl")
    except metadata.PackageNotFoundError:
        return ""  # run from its sources: the header then names no version
