"""Rows of hosts under a header for each value of a label. A header is a row as any other, with a key of its own."""

from __future__ import annotations

from collections.abc import Sequence

from odctl.tui.model.fleet_columns import (
    CONDITION_MARKS,
    FAULT,
    HEALING,
    NO_DATA,
    WARNING,
    Figures,
    FleetColumns,
)
from odctl.tui.model.table import Banner, Column, Rows, Value
from odctl.tui.model.text import Line, Span, line
from odctl.tui.model.units import percent_text, plural

_KEY = "group:"


def group_key(label: str, name: str) -> str:
    """The key of a header: no host's, as host names hold no colon."""
    return f"{_KEY}{label}={name}"


def is_group_key(key: str) -> bool:
    return key.startswith(_KEY)


class GroupedRows:
    """The base's rows, and behind them a row for every group; `order` says how they stand.

    Row numbers of the base stay as they are. Headers are worded when they are asked for, so groups that are not
    seen cost nothing but their place in the order.
    """

    def __init__(
        self,
        base: Rows,
        order: Sequence[int],
        fleet: FleetColumns,
        *,
        label: str,
        collapsed: frozenset[str] = frozenset(),
    ) -> None:
        self._base = base
        self._fleet = fleet
        self._label = label
        self._collapsed = collapsed
        self._groups = fleet.still.groups(label)
        self._num_base = len(base.keys)
        self.columns: tuple[Column, ...] = base.columns
        self.keys: Sequence[str] = (*base.keys, *(group_key(label, group.name) for group in self._groups))
        self._shown = self._parted(order)
        self.order = self._ordered()

    def values(self, column: str) -> Sequence[Value]:
        """The base's: headers have none."""
        return [*self._base.values(column), *[None] * len(self._groups)]

    def text(self, row: int) -> str:
        return self._base.text(row) if row < self._num_base else self._groups[row - self._num_base].name

    def labels(self, row: int) -> dict[str, str]:
        if row < self._num_base:
            return self._base.labels(row)
        return {self._label: self._groups[row - self._num_base].name}

    def cell(self, row: int, column: str, width: int) -> Line:
        assert row < self._num_base, "a header is a banner from its first column on"
        return self._base.cell(row, column, width)

    def banner(self, row: int) -> Banner | None:
        if row < self._num_base:
            return self._base.banner(row)
        return self.columns[0].id, self._header(row - self._num_base)

    def _parted(self, order: Sequence[int]) -> list[list[int]]:
        """The rows of each group, in the order that they have without groups."""
        group_of = {row: index for index, group in enumerate(self._groups) for row in group.rows}
        out: list[list[int]] = [[] for _ in self._groups]
        for row in order:
            out[group_of[row]].append(row)
        return out

    def _ordered(self) -> list[int]:
        out: list[int] = []
        for index, rows in enumerate(self._shown):
            if not rows:
                continue
            out.append(self._num_base + index)
            if group_key(self._label, self._groups[index].name) not in self._collapsed:
                out += rows
        return out

    def _header(self, index: int) -> Line:
        """`▾ rack=r03  64 hosts  ✗1 ▲2  GPU 71%  CPU 40%`: counts, the worst first, and means of those shown."""
        group, rows = self._groups[index], self._shown[index]
        sign = "▸" if group_key(self._label, group.name) in self._collapsed else "▾"
        spans = [Span(f"{sign} {self._label}={group.name}", "title"), Span(f"  {plural(len(rows), 'host')}")]
        found = [self._fleet.conditions[row] for row in rows]
        for condition in (FAULT, WARNING, HEALING, NO_DATA):
            if count := found.count(condition):
                mark = CONDITION_MARKS[condition]
                spans.append(Span(f"  {mark.glyph}{count} {mark.word}", mark.tone))
        for title, figure in (("CPU", "cpu"), ("GPU", "gpu")):
            if (mean := _mean(self._fleet.figures(figure), rows)) is not None:
                spans.append(Span(f"  {title} {percent_text(mean / 100).strip()}", "dim"))
        return line(*spans)


def _mean(figures: Figures, rows: Sequence[int]) -> float | None:
    known = [value for row in rows if (value := figures[row]) is not None]
    return sum(known) / len(known) if known else None
