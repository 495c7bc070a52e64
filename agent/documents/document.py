"""A parsed TOML text that still knows where everything stands. No I/O."""

from __future__ import annotations

import re
import tomllib
from functools import cached_property
from typing import Any, Literal

from agent.documents.problem import SYNTAX, DocumentError, Problem, Span
from agent.documents.scan import KeyPath, PositionIndex

_TOMLLIB_PLACE = re.compile(r"\s*\(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Document:
    """`data` is what `tomllib` read; positions are indexed on first use, so a correct file pays nothing."""

    def __init__(self, text: str, data: dict[str, Any], *, file: str) -> None:
        self.text = text
        self.data = data
        self.file = file

    def span(self, key_path: KeyPath, *, of: Literal["key", "value"] = "key") -> Span:
        """Where a key or its value stands; of the nearest table above it where the path is not in the text."""
        wanted = self._index.keys if of == "key" else self._index.values
        if key_path in wanted:
            return wanted[key_path]
        # Array elements have no key, and an absent key is best shown by the table that lacks it.
        for length in range(len(key_path), 0, -1):
            if span := self._index.values.get(key_path[:length]):
                return span
        return Span(line=1, column=1)

    def source_line(self, line: int) -> str:
        return self._lines[line - 1] if line <= len(self._lines) else ""

    def problem(
        self,
        code: str,
        message: str,
        key_path: KeyPath,
        *,
        of: Literal["key", "value"] = "value",
        label: str = "",
        hint: str = "",
    ) -> Problem:
        """A problem of this document at `key_path`; how extra checks make theirs."""
        span = self.span(key_path, of=of)
        return Problem(
            code=code,
            message=message,
            file=self.file,
            span=span,
            source_line=self.source_line(span.line),
            path=format_key_path(key_path),
            label=label,
            hint=hint,
        )

    @cached_property
    def _index(self) -> PositionIndex:
        return PositionIndex(self.text)

    @cached_property
    def _lines(self) -> list[str]:
        return self.text.split("\n")


def parse_document(text: str, *, file: str) -> Document:
    """Read TOML. `file` is the name for messages. Raises DocumentError (E102) at the line and column."""
    text = text.replace("\r\n", "\n")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DocumentError((_syntax_problem(text, str(error), file=file),)) from error
    except RecursionError as error:
        raise DocumentError((_syntax_problem(text, "Nested too deeply", file=file),)) from error
    return Document(text, data, file=file)


def format_key_path(key_path: KeyPath) -> str:
    """`replicas[0].stages[1].layers`; keys that need quotes in TOML have them."""
    parts: list[str] = []
    for part in key_path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        else:
            name = part if _BARE_KEY.fullmatch(part) else f'"{part}"'
            parts.append(f".{name}" if parts else name)
    return "".join(parts)


def _syntax_problem(text: str, message: str, *, file: str) -> Problem:
    lines = text.split("\n")
    place = _TOMLLIB_PLACE.search(message)
    if place and place["line"]:
        line, column = int(place["line"]), int(place["column"])
    else:
        # "at end of document": the last line that has something to show.
        line = max((i for i, content in enumerate(lines, 1) if content.strip()), default=1)
        column = len(lines[line - 1]) + 1
    what = _TOMLLIB_PLACE.sub("", message)
    return Problem(
        code=SYNTAX,
        message=what[:1].lower() + what[1:],
        file=file,
        span=Span(line=line, column=column),
        source_line=lines[line - 1],
        label="not TOML from here",
    )
