"""Tables as the widget sees them: columns by priority, rows by key, values to sort and filter by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from odctl.tui.model.text import Line

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


def layout(columns: Sequence[Column], width: int) -> tuple[tuple[Column, int], ...]:
    """The columns that fit and their widths, in order.

    Columns leave from the highest priority number down; what is left over goes to the growing ones, the leftmost
    first.
    """
    shown = list(columns)
    while len(shown) > 1 and _needed(shown) > width:
        droppable = [column for column in shown if column.priority > 0]
        if not droppable:
            break
        shown.remove(max(droppable, key=lambda column: column.priority))
    left = max(0, width - _needed(shown))
    out = []
    for column in shown:
        extra = min(left, max(0, column.grow_to - column.width)) if column.grow_to else 0
        left -= extra
        out.append((column, column.width + extra))
    return tuple(out)


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)
