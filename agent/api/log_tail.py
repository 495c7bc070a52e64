"""The last lines of a log file, read from its end."""

from __future__ import annotations

import os
from pathlib import Path

BLOCK_BYTES = 64 * 1024
MAX_BYTES = 8 * 1024 * 1024


def read_tail(path: Path, lines: int) -> str:
    """At most `lines` lines and 8 MiB; empty when there is no file. Bytes that are no UTF-8 are replaced."""
    if lines == 0:
        return ""
    try:
        with path.open("rb") as file:
            end = position = file.seek(0, os.SEEK_END)
            text = b""
            # One newline more than lines: the last line usually ends in one.
            while position > 0 and text.count(b"\n") <= lines and end - position < MAX_BYTES:
                step = min(BLOCK_BYTES, position)
                position -= step
                file.seek(position)
                text = file.read(step) + text
    except FileNotFoundError:
        return ""
    return b"".join(text.splitlines(keepends=True)[-lines:]).decode(errors="replace")
