"""Logs as they grow: the last lines of each, then whatever is added, in any file of a directory.

Looks twice a second at sizes; a file that was rotated is begun anew, one that appears is taken in from its start.
What is written faster than it can be told is skipped, and how much is said: a follower never costs memory.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec

from agent.api.log_tail import read_tail
from agent.wire.host import LogLines

POLL_S = 0.5
MAX_BYTES = 256 * 1024
"""Of one file in one look."""
MAX_LINE_BYTES = 64 * 1024
"""A line that does not end is told in pieces of this size."""


class _Place(msgspec.Struct):
    """How far a file was read: `inode` tells a rotated one, `rest` is the beginning of a line yet to end."""

    inode: int
    position: int
    rest: bytes = b""


class LogFollower:
    """`list_logs` gives name and path of every log there is now."""

    def __init__(self, list_logs: Callable[[], Iterable[tuple[str, Path]]], *, tail: int) -> None:
        self._list_logs = list_logs
        self._tail = tail
        self._places: dict[str, _Place] = {}
        self._has_begun = False

    def look(self) -> list[LogLines]:
        """What is new since the last look; the last `tail` lines of each log at the first one. Blocks on files."""
        found = []
        for name, path in self._list_logs():
            try:
                news = self._news(name, path)
            except FileNotFoundError:
                # Between two names of a rotation, or removed: it is looked for again.
                self._places.pop(name, None)
                continue
            if news is not None:
                found.append(news)
        self._has_begun = True
        return found

    async def follow(self, *, is_once: bool = False, poll_s: float = POLL_S) -> AsyncIterator[LogLines]:
        """For ever, or one look."""
        while True:
            for news in await asyncio.to_thread(self.look):
                yield news
            if is_once:
                return
            await asyncio.sleep(poll_s)

    def _news(self, name: str, path: Path) -> LogLines | None:
        status = path.stat()
        place = self._places.get(name)
        if place is None and not self._has_begun:
            # A last line without its end is told now, and what is added to it then as a line of its own.
            self._places[name] = _Place(status.st_ino, status.st_size)
            lines = _lines(read_tail(path, self._tail))
            return LogLines(name=name, lines=lines, at_s=status.st_mtime, is_past=True) if lines else None
        if place is None or place.inode != status.st_ino or place.position > status.st_size:
            place = self._places[name] = _Place(status.st_ino, 0)
        if status.st_size == place.position:
            return None
        return self._read_on(name, path, place, status.st_size)

    def _read_on(self, name: str, path: Path, place: _Place, size: int) -> LogLines | None:
        skipped = max(0, size - place.position - MAX_BYTES)
        with path.open("rb") as file:
            file.seek(place.position + skipped, os.SEEK_SET)
            data = file.read(size - place.position - skipped)
        place.position = size
        if skipped:
            # The first line is cut somewhere in its middle.
            head, newline, data = data.partition(b"\n")
            skipped += len(head) + len(newline) + len(place.rest)
            place.rest = b""
        whole, newline, rest = (place.rest + data).rpartition(b"\n")
        lines = tuple(whole.decode(errors="replace").split("\n")) if newline else ()
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = (*lines, rest.decode(errors="replace")), b""
        place.rest = rest
        if not lines and not skipped:
            return None
        return LogLines(name=name, lines=lines, at_s=time.time(), skipped_bytes=skipped)


def _lines(text: str) -> tuple[str, ...]:
    """Lines by newline alone: other separators belong to what is said."""
    return tuple(text.removesuffix("\n").split("\n")) if text else ()
