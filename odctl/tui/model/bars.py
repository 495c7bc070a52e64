"""Bars and strips out of block characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_STEPS = "▁▂▃▄▅▆▇█"
FREE = "·"
NO_DATA = " "


def bar(fraction: float, width: int) -> str:
    """`width` cells, filled to an eighth of a cell; the rest is dots."""
    eighths = round(min(1.0, max(0.0, fraction)) * width * 8)
    full, rest = divmod(eighths, 8)
    partial = _EIGHTHS[rest] if rest else ""
    return ("█" * full + partial).ljust(width, FREE)


def strip(values: Sequence[float | None], width: int, *, top: float | None = None) -> str:
    """One cell per bucket of values, the newest at the right. A bucket shows its highest value, never the mean,
    and a bucket without a value is blank. `top` is the full height; the highest value when None.
    """
    buckets = _buckets(values, width)
    known = [value for value in buckets if value is not None]
    height = top if top is not None else max(known, default=0.0)
    if height <= 0:
        height = math.inf
    last = len(_STEPS) - 1
    # In line: some hundred cells are drawn anew at every tick.
    return "".join(
        [
            NO_DATA if value is None else _STEPS[min(last, max(0, int(value / height * len(_STEPS))))]
            for value in buckets
        ]
    )


def error_bar(value: float, *, deviation: float, mark: float | None, top: float, width: int) -> str:
    """`··├──●───┤··▾··`: a value with its deviation on an axis from 0 to `top`, and a mark to hold it against.

    Where the mark falls on the value, `◉` stands for both.
    """

    def cell(at: float) -> int:
        return min(width - 1, max(0, round(at / top * (width - 1))))

    cells = [FREE] * width
    low, high = cell(value - deviation), cell(value + deviation)
    for index in range(low, high + 1):
        cells[index] = "─"
    if high > low:
        cells[low], cells[high] = "├", "┤"
    cells[cell(value)] = "●"
    if mark is not None:
        cells[cell(mark)] = "◉" if cell(mark) == cell(value) else "▾"
    return "".join(cells)


def time_strip(
    points: Sequence[tuple[float, float | None]],
    width: int,
    *,
    end_s: float,
    span_s: float,
    top: float | None = None,
) -> str:
    """As `strip`, with each (time, value) in the cell of its time: a gap in time is a gap on the screen."""
    cells: list[float | None] = [None] * width
    for at_s, value in points:
        index = int((at_s - (end_s - span_s)) / span_s * width)
        if value is None or index < 0:
            continue
        index = min(index, width - 1)
        held = cells[index]
        cells[index] = value if held is None else max(held, value)
    return strip(cells, width, top=top)


def parts_bar(parts: Sequence[float], glyphs: str, width: int) -> list[tuple[str, int]]:
    """Cells of each part of a whole (fractions, summing to at most 1), largest remainders first; the rest is free.

    A part that is not zero gets a cell where there is one, so that nothing that takes memory is invisible.
    """
    assert len(parts) == len(glyphs)
    exact = [max(0.0, part) * width for part in parts]
    cells = [max(1, int(value)) if value > 0 else 0 for value in exact]
    wanted = min(width, round(sum(exact)))
    while sum(cells) < wanted:
        gaps = [value - held for value, held in zip(exact, cells, strict=True)]
        cells[gaps.index(max(gaps))] += 1
    while sum(cells) > width:
        cells[cells.index(max(cells))] -= 1
    out = [(glyph * count, index) for index, (glyph, count) in enumerate(zip(glyphs, cells, strict=True))]
    out.append((FREE * (width - sum(cells)), -1))
    return out


def _buckets(values: Sequence[float | None], width: int) -> list[float | None]:
    if len(values) <= width:
        return [None] * (width - len(values)) + list(values)
    out: list[float | None] = []
    for cell in range(width):
        first, end = cell * len(values) // width, (cell + 1) * len(values) // width
        known = [value for value in values[first:end] if value is not None]
        out.append(max(known) if known else None)
    return out
