"""Tables as the widget sees them: columns by priority, rows by key, values to sort and filter by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from odctl.tui.model.text import Line, Span, fit_line, line_width

Value = float | str | None
"""What a row is sorted and filtered by; None sorts last, whatever the direction."""
GAP = 1


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """`priority` 0 is shown always; the highest goes first when the terminal is narrow."""

    id: str
    title: str
    width: int
    priority: int = 0
    grow_to: int = 0
    """Up to which width it takes a share of what is left; 0: it does not."""
    is_right: bool = False
    sorts_down: bool = False
    """Whether the first press sorts the largest first."""


Banner = tuple[str, Line]
"""A column's id, and the line that takes its place and that of all after it."""


class Rows(Protocol):
    """The rows of one moment. A row number is valid within this value only; keys are for longer."""

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def keys(self) -> Sequence[str]: ...

    def values(self, column: str) -> Sequence[Value]:
        """One value a row, for sorting and comparing."""
        ...

    def text(self, row: int) -> str:
        """What a pattern is searched in."""
        ...

    def labels(self, row: int) -> dict[str, str]: ...

    def cell(self, row: int, column: str, width: int) -> Line: ...

    def banner(self, row: int) -> Banner | None:
        """What stands instead of the cells from a column on; None: the cells do."""
        ...


def layout(columns: Sequence[Column], width: int) -> tuple[tuple[Column, int], ...]:
    """The columns that fit and their widths, in order.

    Columns leave from the highest priority number down; what is left over goes to the growing ones, the rightmost
    first: there stand the sentences.
    """
    shown = list(columns)
    while len(shown) > 1 and _needed(shown) > width:
        droppable = [column for column in shown if column.priority > 0]
        if not droppable:
            break
        shown.remove(max(droppable, key=lambda column: column.priority))
    left = max(0, width - _needed(shown))
    out = []
    for column in reversed(shown):
        extra = min(left, max(0, column.grow_to - column.width))
        left -= extra
        out.append((column, column.width + extra))
    return tuple(reversed(out))


def row_line(rows: Rows, row: int, columns: Sequence[tuple[Column, int]], width: int) -> Line:
    """The row's cells at their columns' widths; or up to a banner, which takes the rest of the line."""
    banner = rows.banner(row)
    spans: list[Span] = []
    for column, size in columns:
        if spans:
            spans.append(Span(" " * GAP))
        if banner is not None and column.id == banner[0]:
            return (*spans, *fit_line(banner[1], width - line_width(tuple(spans))))
        cell = rows.cell(row, column.id, size)
        padding = size - line_width(cell)
        if padding < 0:
            spans += fit_line(cell, size)
            continue
        if padding and column.is_right:
            spans.append(Span(" " * padding))
        spans += cell
        if padding and not column.is_right:
            spans.append(Span(" " * padding))
    return tuple(spans)


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)
