"""A main screen whose body is one table with a filter and a sort."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from odctl.fleet import FleetSnapshot
from odctl.tui.model.completion import filter_candidates
from odctl.tui.model.index import FilterError, Sort, Term, label_keys, next_sort, parse_filter, row_order
from odctl.tui.model.marks import MARKED
from odctl.tui.model.table import Column, Rows
from odctl.tui.model.text import Line, Span, line
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.lines import LinesBar
from odctl.tui.widgets.prompt import Prompt


class TableScreen(FrameScreen):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", id="table.filter", priority=True),
        Binding("shift+right,full_stop", "sort(1)", "Sort by the next column", id="table.sort_next", show=False),
        Binding("shift+left,comma", "sort(-1)", "Sort by the column before", id="table.sort_before", show=False),
        Binding("O", "turn_sort", "Turn the sort round", id="table.sort_turn", show=False),
    ]
    default_sort: ClassVar[Sort | None] = None
    empty: ClassVar[str] = "nothing to show"

    def __init__(self) -> None:
        super().__init__()
        self.filter_text = ""
        self.sort: Sort | None = self.default_sort
        self._filter_error = ""

    def compose_body(self) -> ComposeResult:
        yield LinesBar(id="summary")
        yield FleetTable(id="table")
        yield LinesBar(id="detail")

    @property
    def table(self) -> FleetTable:
        return self.query_one("#table", FleetTable)

    def rows(self, snapshot: FleetSnapshot) -> Rows:
        raise NotImplementedError

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:
        raise NotImplementedError

    def detail(self, snapshot: FleetSnapshot, key: str, width: int) -> tuple[Line, ...]:  # noqa: ARG002
        """Lines on the row under the cursor."""
        return ()

    def empty_text(self, snapshot: FleetSnapshot) -> str:  # noqa: ARG002 - for screens whose reason differs
        return self.empty

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        summary = self.query_one("#summary", LinesBar)
        if snapshot is None:
            summary.show([line(Span(" connecting …", "dim"))])
            return
        rows = self.rows(snapshot)
        order = row_order(rows, terms=self._terms(rows), sort=self.sort)
        above = [*self.summary(snapshot, self.size.width), *self._filter_lines(len(order), len(rows.keys))]
        is_filtered = bool(rows.keys) and not order
        empty = "no row passes the filter; esc clears it" if is_filtered else self.empty_text(snapshot)
        self.show_rows(rows, order, empty=empty)
        summary.show([*above, *self.mark_lines()])
        self.draw_detail()

    def show_rows(self, rows: Rows, order: Sequence[int], *, empty: str) -> None:
        """Show what passed the filter, in its order."""
        self.table.show(rows, order, sort=self.sort, empty=empty)

    def _terms(self, rows: Rows) -> tuple[Term, ...]:
        try:
            # Looking through every row's labels is worth it only where one may be meant.
            labels = label_keys(rows) if "=" in self.filter_text else ()
            terms = parse_filter(self.filter_text, [column.id for column in rows.columns], labels)
        except FilterError as error:
            self._filter_error = str(error)
            return ()
        self._filter_error = ""
        return terms

    def _filter_lines(self, shown: int, total: int) -> list[Line]:
        if self._filter_error:
            return [line(Span(f" ▲ filter: {self._filter_error}", "warn"))]
        if self.filter_text:
            return [line(Span(f" / {self.filter_text}", "key"), Span(f"  {shown:,} of {total:,}", "dim"))]
        return []

    @property
    def num_hidden_marks(self) -> int:
        """Marks of what is not on the screen, not even further down."""
        return self.table.num_hidden_marks

    def mark_lines(self) -> list[Line]:
        """What is marked, and whether all of it is seen."""
        table = self.table
        if not table.marks:
            return []
        hidden = self.num_hidden_marks
        said = f" {MARKED} {len(table.marks):,} marked" + (f", {hidden:,} of them not shown" if hidden else "")
        return [line(Span(said, "key"), Span("   ^\\ clears", "dim"))]

    def on_fleet_table_marks_changed(self) -> None:
        self.redraw()

    def address(self) -> str:
        base = super().address()
        return f"{base} {self.filter_text}".rstrip() if base else ""

    def table_columns(self) -> tuple[Column, ...]:
        return self.rows(self.odctl.snapshot).columns if self.odctl.snapshot is not None else ()

    def draw_detail(self) -> None:
        snapshot, key = self.odctl.snapshot, self.table.cursor_key
        lines = self.detail(snapshot, key, self.size.width) if snapshot is not None and key is not None else ()
        self.query_one("#detail", LinesBar).show(lines)

    def on_fleet_table_cursor_moved(self) -> None:
        self.draw_detail()

    def on_prompt_filter_changed(self, event: Prompt.FilterChanged) -> None:
        self.set_filter(event.text)

    def set_filter(self, text: str) -> None:
        self.filter_text = text.strip()
        self.redraw()

    def set_sort(self, column: str) -> None:
        """Sort by a column; by the same again turns it round."""
        if self.odctl.snapshot is None:
            return
        columns = {found.id: found for found in self.rows(self.odctl.snapshot).columns}
        if column not in columns:
            self.notify(f"no column `{column}`: {', '.join(columns)}", severity="warning")
            return
        if self.sort is not None and self.sort.column == column:
            self.action_turn_sort()
            return
        self.sort = Sort(column=column, is_descending=columns[column].sorts_down)
        self.redraw()

    def action_filter(self) -> None:
        words = self.vocabulary()
        complete = functools.partial(filter_candidates, words=words)
        self.query_one(Prompt).open("/", text=self.filter_text, complete=complete)

    def action_sort(self, step: int) -> None:
        columns = self.table.visible_columns
        if columns:
            self.set_sort(next_sort(columns, self.sort, step).column)

    def action_turn_sort(self) -> None:
        if self.sort is not None:
            self.sort = Sort(column=self.sort.column, is_descending=not self.sort.is_descending)
            self.redraw()

    def action_back(self) -> None:
        prompt = self.query_one(Prompt)
        if self.filter_text and (not prompt.is_open or prompt.kind == "/"):
            prompt.close()
            self.set_filter("")
            self.focus_body()
            return
        super().action_back()
