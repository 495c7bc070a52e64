"""Lines of text whose parts carry a tone instead of a colour; a widget's palette decides what a tone looks like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size

T = TypeVar("T")
Tone = Literal["plain", "dim", "bold", "title", "key", "ok", "warn", "fault", "heal", "bar", "kv", "activation"]


class Span(NamedTuple):
    text: str
    tone: Tone = "plain"


Line = tuple[Span, ...]
BLANK: Line = ()


def line(*parts: Span | str) -> Line:
    """A line of spans; plain strings are plain spans."""
    return tuple(Span(part) if isinstance(part, str) else part for part in parts)


def dimmed(spans: Line) -> Line:
    """Without its tones: what is no longer of now."""
    return tuple(Span(span.text, "dim") for span in spans)


def line_width(spans: Line) -> int:
    """Width in terminal cells."""
    width = 0
    for text, _ in spans:
        # Most are ASCII, where a sign that can be seen is a cell.
        width += len(text) if text.isascii() and text.isprintable() else cell_len(text)
    return width


def part_at(parts: Iterable[tuple[T, Line]], x: int) -> T | None:
    """Of parts that stand beside each other, the one that has cell `x`; None behind the last."""
    end = 0
    for part, spans in parts:
        end += line_width(spans)
        if x < end:
            return part
    return None


def line_text(spans: Line) -> str:
    return "".join(span.text for span in spans)


def fit(text: str, width: int, *, is_right: bool = False) -> str:
    """Exactly `width` cells: padded, or cut with an ellipsis."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    padding = " " * (width - length)
    return padding + text if is_right else text + padding


def fit_line(spans: Line, width: int) -> Line:
    """Exactly `width` cells, cut with an ellipsis or padded at the end."""
    out: list[Span] = []
    left = width
    for span in spans:
        length = cell_len(span.text)
        if length > left:
            out.append(Span(fit(span.text, left), span.tone))
            return tuple(out)
        out.append(span)
        left -= length
    if left:
        out.append(Span(" " * left))
    return tuple(out)


def merged(spans: Line) -> Line:
    """The same to the eye in as few spans as it takes: each one costs forty bytes on its way to the terminal.

    Blanks join the span before them, whatever its tone: what has no ink has no colour either.
    """
    out: list[Span] = []
    texts: list[str] = []
    joined: Tone | None = None
    for text, tone in spans:
        if joined is not None and tone != joined and text.strip(" "):
            out.append(Span("".join(texts), joined))
            texts, joined = [text], tone
        else:
            texts.append(text)
            joined = joined or tone
    if joined is not None:
        out.append(Span("".join(texts), joined))
    return tuple(out)


def spread(left: Line, right: Line, width: int) -> Line:
    """`left` at the left edge, `right` at the right one; the left gives way."""
    room = max(0, width - line_width(right))
    return fit_line(left, room) + fit_line(right, width - room)


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells, broken at spaces where there are any; line breaks are kept."""
    width = max(1, width)  # before a screen is laid out there may be less than none
    lines: list[str] = []
    for paragraph in text.split("\n"):
        current = ""
        for word in paragraph.split(" "):
            candidate = f"{current} {word}" if current else word
            while cell_len(candidate) > width:
                if current:
                    lines.append(current)
                    current, candidate = "", word
                else:
                    head = set_cell_size(candidate, width).rstrip(" ") or candidate[:1]
                    lines.append(head)
                    candidate = candidate[len(head) :]
            current = candidate
        lines.append(current)
    return lines
