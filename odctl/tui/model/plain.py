"""Tables as plain text: the rows that screens show, for verbs that print."""

from __future__ import annotations

from collections.abc import Sequence

from odctl.tui.model.index import FilterError, Sort, parse_filter, row_order
from odctl.tui.model.table import GAP, Column, Rows, layout, row_line
from odctl.tui.model.text import fit, line_text, line_width


def chosen_rows(rows: Rows, *, filter_text: str = "", sort: str = "") -> Sequence[int]:
    """Row numbers that pass a filter of the screens' kind, in the order of a column.

    Raises FilterError, also for a column that there is not.
    """
    columns = {column.id: column for column in rows.columns}
    terms = parse_filter(filter_text, tuple(columns))
    if not sort:
        return row_order(rows, terms=terms)
    name = sort.removeprefix("-")
    if name not in columns:
        raise FilterError(f"no column `{name}`: {', '.join(columns)}")
    is_descending = columns[name].sorts_down != sort.startswith("-")
    return row_order(rows, terms=terms, sort=Sort(column=name, is_descending=is_descending))


def table_lines(rows: Rows, order: Sequence[int], *, width: int | None) -> list[str]:
    """A header and a line a row. Within `width` cells the columns leave by priority, as on a screen; without it all
    stay, and none cuts what it holds.
    """
    columns = _whole_columns(rows, order) if width is None else layout(rows.columns, width)
    room = width if width is not None else max(width_of(columns), _longest(rows, order, columns))
    header = (" " * GAP).join(fit(column.title, size, is_right=column.is_right) for column, size in columns)
    lines = [header.rstrip()]
    return lines + [line_text(row_line(rows, row, columns, room)).rstrip() for row in order]


def left_out(rows: Rows, *, width: int) -> tuple[str, ...]:
    """Titles of the columns that have no room in that width."""
    shown = {column.id for column, _ in layout(rows.columns, width)}
    return tuple(column.title for column in rows.columns if column.id not in shown)


def width_of(columns: Sequence[tuple[Column, int]]) -> int:
    return sum(size for _, size in columns) + GAP * max(0, len(columns) - 1)


def _whole_columns(rows: Rows, order: Sequence[int]) -> tuple[tuple[Column, int], ...]:
    """Each as wide as the widest of its cells. Those that a banner covers do not count."""
    found = []
    covered = {row: banner[0] for row in order if (banner := rows.banner(row)) is not None}
    ids = [column.id for column in rows.columns]
    for index, column in enumerate(rows.columns):
        cells = [
            line_width(rows.cell(row, column.id, column.width))
            for row in order
            if row not in covered or index < ids.index(covered[row])
        ]
        found.append((column, max([len(column.title), *cells])))
    return tuple(found)


def _longest(rows: Rows, order: Sequence[int], columns: Sequence[tuple[Column, int]]) -> int:
    """Cells of the longest banner with what stands before it."""
    longest = 0
    for row in order:
        banner = rows.banner(row)
        if banner is None:
            continue
        at = [column.id for column, _ in columns].index(banner[0])
        longest = max(longest, sum(size for _, size in columns[:at]) + GAP * at + line_width(banner[1]))
    return longest
