"""The keys that do something now, on one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from odctl.tui.model.text import Line, Span, fit_line, line_width, part_at

MORE = "… "
"""Stands before the first key where others were moved out of sight."""


class ShownKey(NamedTuple):
    key: str
    """As Textual calls it."""
    label: str
    """As it is written on the screen."""
    words: str
    is_enabled: bool = True
    tooltip: str = ""


def key_line(keys: Sequence[ShownKey], *, width: int, first: int = 0) -> Line:
    """From the key number `first` on, as many as there is room for; an ellipsis tells that there are more."""
    spans = tuple(span for _, spans in _places(keys, first) for span in spans)
    if line_width(spans) - len(" ") <= width:
        return fit_line(spans, width)
    for room in range(width, 0, -1):
        shown = fit_line(spans, room)
        if shown[-1].text.endswith("…"):  # not where a key ends just at the edge
            return (*shown, Span(" " * (width - room)))
    return fit_line(spans, width)


def key_at(keys: Sequence[ShownKey], x: int, *, first: int = 0) -> ShownKey | None:
    """The key that stands at cell `x` of that line."""
    return part_at(_places(keys, first), x)


def last_first(keys: Sequence[ShownKey], *, width: int) -> int:
    """The number of the first key when the last one is in sight."""
    for first in range(len(keys)):
        if sum(line_width(spans) for _, spans in _places(keys, first)) - len(" ") <= width:
            return first
    return max(0, len(keys) - 1)


def _places(keys: Sequence[ShownKey], first: int) -> list[tuple[ShownKey | None, Line]]:
    """Spans of the line with the key that they belong to, the blank behind it with them."""
    places: list[tuple[ShownKey | None, Line]] = [(None, (Span(MORE, "dim"),))] if first else []
    for key in keys[first:]:
        words = f" {key.words} " if key.words else " "
        if key.is_enabled:
            places.append((key, (Span(key.label, "key"), Span(words))))
        else:
            places.append((key, (Span(key.label + words, "dim"),)))
    return places
