"""The last thing before the terminal under `--ascii`: whatever painted a glyph, it leaves as ASCII."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from odctl.tui.model.plain_ascii import ascii_text


class AsciiFilter(LineFilter):
    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's
        """The same segments with the same styles, in as many cells."""
        return [
            Segment(ascii_text(text), style, control) if control is None else Segment(text, style, control)
            for text, style, control in segments
        ]
