"""Dots of braille on a grid of cells: eight dots a cell, each cell with the tone that weighs most in it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from odctl.tui.model.text import Line, Span, Tone, fit_line

_BASE = 0x2800
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""By column and row within a cell."""
_WEIGHTS: dict[Tone, int] = {"dim": 0, "plain": 1, "bar": 2, "ok": 3, "heal": 4, "warn": 5, "fault": 6}


class Canvas:
    """`width` by `height` cells: two dots a cell across, four down. Dot (0, 0) is at the top left."""

    def __init__(self, width: int, height: int) -> None:
        self.dots_across = width * 2
        self.dots_down = height * 4
        self._bits = [[0] * width for _ in range(height)]
        self._tones: list[list[Tone]] = [["dim"] * width for _ in range(height)]

    def dot(self, x: int, y: int, tone: Tone) -> None:
        """A dot; one that is off the canvas is not drawn."""
        if not (0 <= x < self.dots_across and 0 <= y < self.dots_down):
            return
        row, column = y // 4, x // 2
        self._bits[row][column] |= _BITS[x % 2][y % 4]
        if _WEIGHTS.get(tone, 1) >= _WEIGHTS.get(self._tones[row][column], 1):
            self._tones[row][column] = tone

    def blob(self, x: int, y: int, tone: Tone) -> None:
        """Four dots, which a reader sees among single ones."""
        for dx in (0, 1):
            for dy in (0, 1):
                self.dot(min(x, self.dots_across - 2) + dx, min(y, self.dots_down - 2) + dy, tone)

    def stroke(self, start: tuple[int, int], end: tuple[int, int], tone: Tone) -> None:
        """A straight line of dots, both ends included."""
        (x0, y0), (x1, y1) = start, end
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(steps + 1):
            self.dot(round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps), tone)

    def lines(self) -> list[Line]:
        """One line a row of cells; cells without a dot are spaces."""
        out = []
        for bits, tones in zip(self._bits, self._tones, strict=True):
            spans: list[Span] = []
            for bit, tone in zip(bits, tones, strict=True):
                glyph = chr(_BASE + bit) if bit else " "
                if spans and spans[-1].tone == tone:
                    spans[-1] = Span(spans[-1].text + glyph, tone)
                else:
                    spans.append(Span(glyph, tone))
            out.append(tuple(spans))
        return out


def beside(blocks: Sequence[Sequence[Line]], widths: Sequence[int], *, gap: int) -> list[Line]:
    """Blocks of lines next to each other, each padded to its width."""
    height = max((len(block) for block in blocks), default=0)
    out = []
    for row in range(height):
        spans: list[Span] = []
        for block, width in zip(blocks, widths, strict=True):
            if spans:
                spans.append(Span(" " * gap))
            spans += fit_line(block[row] if row < len(block) else (), width)
        out.append(tuple(spans))
    return out
