"""Blocks of lines beside each other on a wide terminal, beneath each other on a narrow one."""

from __future__ import annotations

from collections.abc import Sequence

from odctl.tui.model.text import BLANK, Line, Span, fit_line

GAP = 2


def beside(left: Sequence[Line], right: Sequence[Line], *, left_width: int, right_width: int) -> tuple[Line, ...]:
    """Two blocks with `GAP` cells between them; the shorter one is filled up with blank lines."""
    height = max(len(left), len(right))
    padded_left = [*left, *([BLANK] * (height - len(left)))]
    padded_right = [*right, *([BLANK] * (height - len(right)))]
    return tuple(
        (*fit_line(a, left_width), Span(" " * GAP), *fit_line(b, right_width))
        for a, b in zip(padded_left, padded_right, strict=True)
    )


def stacked(sections: Sequence[Sequence[Line]]) -> tuple[Line, ...]:
    """Sections beneath each other with a blank line between; empty ones are left out."""
    lines: list[Line] = []
    for section in sections:
        if section and lines:
            lines.append(BLANK)
        lines += section
    return tuple(lines)
