"""Text that is shown again and again: in place on a terminal, one block after the other elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TextIO

FALLBACK_SIZE = (100, 24)


def terminal_width(stream: TextIO) -> int | None:
    """Cells of the terminal that the stream is; None when it is none."""
    return shutil.get_terminal_size(FALLBACK_SIZE).columns if is_terminal(stream) else None


def is_terminal(stream: TextIO) -> bool:
    """Whether its lines can be written over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class LiveText:
    """`show` writes a block. On a terminal it takes the place of the block before, cut to what fits."""

    def __init__(
        self,
        stream: TextIO,
        *,
        in_place: bool,
        size: Callable[[], os.terminal_size] = lambda: shutil.get_terminal_size(FALLBACK_SIZE),
    ) -> None:
        self._stream = stream
        self._in_place = in_place
        self._size = size
        self._shown = 0
        self._width = 0
        self._is_first = True

    def show(self, text: str) -> None:
        """Raises BrokenPipeError when nobody reads any more."""
        lines = text.rstrip("\n").split("\n")
        if self._in_place:
            self._stream.write(self._over(lines))
        else:
            self._stream.write(("" if self._is_first else "\n") + "\n".join(lines) + "\n")
        self._is_first = False
        self._stream.flush()

    def _over(self, lines: list[str]) -> str:
        width, height = self._size()
        if len(lines) > height - 1:
            more = len(lines) - (height - 2)
            lines = [*lines[: height - 2], f"… {more:,} more lines: a taller terminal, fewer rows, or --json"]
        # Lines that a narrower window broke cannot be counted back over: then all of it is cleared.
        start = f"\x1b[{self._shown}F" if self._shown and width == self._width else "\x1b[H\x1b[2J"
        self._shown, self._width = len(lines), width
        return start + "".join(f"{_cut(line, width)}\x1b[K\n" for line in lines) + "\x1b[J"


def _cut(line: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    return line if cell_len(line) <= width else set_cell_size(line, width - 1) + "…"
