"""Where each key and value of a TOML text stands.

`tomllib` parses and judges; this scanner only remembers positions, so it may assume a text that `tomllib`
has accepted. No I/O.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right

from agent.documents.problem import Span

KeyPath = tuple[str | int, ...]

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_BLANK = " \t"
_MAX_CLOSING_EXTRA = 2
"""A multi-line string may end in up to two quotes of its own before the closing three."""


class PositionIndex:
    """Spans of every key and value by key path; array elements carry their index in the path."""

    def __init__(self, text: str) -> None:
        self.keys: dict[KeyPath, Span] = {}
        self.values: dict[KeyPath, Span] = {}
        self._text = text
        self._at = 0
        self._line_starts = [0] + [i + 1 for i, character in enumerate(text) if character == "\n"]
        self._array_lengths: dict[KeyPath, int] = {}
        self._scan()

    def _scan(self) -> None:
        table: KeyPath = ()
        self._skip_between()
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._scan_header()
            else:
                self._scan_assignment(table)
            self._skip_between()

    def _scan_header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`; returns the path that the following assignments are in."""
        start = self._at
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        segments = self._scan_key()
        self._at += 2 if is_array else 1
        header = self._span(start, self._at)
        path: KeyPath = ()
        for name, span in segments[:-1]:
            path = (*path, name)
            self.keys.setdefault(path, span)
            self.values.setdefault(path, header)
            if path in self._array_lengths:
                path = (*path, self._array_lengths[path] - 1)
        name, span = segments[-1]
        path = (*path, name)
        if is_array:
            index = self._array_lengths.get(path, 0)
            self._array_lengths[path] = index + 1
            self.keys.setdefault(path, span)
            self.values.setdefault(path, header)
            path = (*path, index)
        # A header of its own says better where a table is than a longer one that implied it.
        self.keys[path] = span
        self.values[path] = header
        return path

    def _scan_assignment(self, table: KeyPath) -> None:
        path = table
        segments = self._scan_key()
        for name, span in segments:
            path = (*path, name)
            self.keys.setdefault(path, span)
            self.values.setdefault(path, span)
        self._at += 1  # the equals sign
        self._skip_blank()
        self._scan_value(path)

    def _scan_key(self) -> list[tuple[str, Span]]:
        """A dotted key with the blanks around its segments, up to what follows it."""
        segments: list[tuple[str, Span]] = []
        while True:
            self._skip_blank()
            start = self._at
            if self._text[self._at] in "\"'":
                self._skip_string()
                raw = self._text[start : self._at]
                name = tomllib.loads(f"key = {raw}")["key"]
            else:
                while self._at < len(self._text) and self._text[self._at] in _BARE:
                    self._at += 1
                name = self._text[start : self._at]
            segments.append((name, self._span(start, self._at)))
            self._skip_blank()
            if self._text[self._at] != ".":
                return segments
            self._at += 1

    def _scan_value(self, path: KeyPath) -> None:
        start = self._at
        match self._text[self._at]:
            case '"' | "'":
                self._skip_string()
            case "[":
                self._scan_array(path)
            case "{":
                self._scan_inline_table(path)
            case _:
                while self._at < len(self._text) and self._text[self._at] not in ",]}#\n":
                    self._at += 1
                while self._text[self._at - 1] in _BLANK:
                    self._at -= 1
        self.values[path] = self._span(start, self._at)

    def _scan_array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        self._skip_between()
        while self._text[self._at] != "]":
            self._scan_value((*path, index))
            index += 1
            self._skip_between()
            if self._text[self._at] == ",":
                self._at += 1
                self._skip_between()
        self._at += 1

    def _scan_inline_table(self, path: KeyPath) -> None:
        self._at += 1
        self._skip_between()
        while self._text[self._at] != "}":
            self._scan_assignment(path)
            self._skip_between()
            if self._text[self._at] == ",":
                self._at += 1
                self._skip_between()
        self._at += 1

    def _skip_string(self) -> None:
        quote = self._text[self._at]
        is_long = self._text.startswith(quote * 3, self._at)
        closing = quote * 3 if is_long else quote
        self._at += len(closing)
        while not self._text.startswith(closing, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += len(closing)
        if is_long:
            for _ in range(_MAX_CLOSING_EXTRA):
                if self._text.startswith(quote, self._at):
                    self._at += 1

    def _skip_blank(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in _BLANK:
            self._at += 1

    def _skip_between(self) -> None:
        """Blanks, newlines and comments."""
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif character in " \t\n":
                self._at += 1
            else:
                return

    def _span(self, start: int, end: int) -> Span:
        line = bisect_right(self._line_starts, start)
        line_start = self._line_starts[line - 1]
        line_end = self._line_starts[line] - 1 if line < len(self._line_starts) else len(self._text)
        return Span(line=line, column=start - line_start + 1, length=max(1, min(end, line_end) - start))
