"""The fleet as cells: a cell is a host, or the worst of a few, never their mean.

Only the lines that are asked for are worked out: a snapshot of ten thousand hosts costs what the screen shows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from itertools import compress, groupby, repeat
from typing import NamedTuple

from odctl.tui.model.fleet_columns import (
    CONDITION_MARKS,
    FAULT,
    HEALING,
    LIVE,
    NO_DATA,
    WARNING,
    FleetColumns,
)
from odctl.tui.model.heat_layout import GAP, TILE_FIGURE, Arrangement, Block
from odctl.tui.model.heat_metrics import SHADES, Metric, legend_line, shade_tone
from odctl.tui.model.marks import MARKED
from odctl.tui.model.readings import reading_reason
from odctl.tui.model.text import Line, Span, Tone, fit, fit_line, line, line_width
from odctl.tui.model.units import plural

SHADED_CELLS = 600
"""With more cells than these only troubles are coloured, load is told by its glyph alone: a change of colour costs
forty bytes on its way to the terminal, a cell three."""
_UNKNOWN_SCORE = -1.0
_CONDITION_SCORE = 1e15
"""Any condition outweighs any figure: bytes a second stay far below."""


class _Scale(NamedTuple):
    """Of a cell's score, by how many of the bounds it reaches: the glyph and its tone."""

    bounds: tuple[float, ...]
    glyphs: tuple[str, ...]
    tones: tuple[Tone, ...]


class HeatMap:
    """One metric of one snapshot over an arrangement of its hosts."""

    def __init__(
        self, fleet: FleetColumns, arrangement: Arrangement, metric: Metric, *, marked: Iterable[str] = ()
    ) -> None:
        self.fleet = fleet
        self.arrangement = arrangement
        self.metric = metric
        self.marked_cells = frozenset(cell for name in marked if (cell := self.cell_of(name)) is not None)
        self.values = fleet.figures(metric.figure)
        self._lines: dict[int, Line] = {}

    def is_like(self, other: HeatMap) -> bool:
        """Whether both show the same of the very same snapshot."""
        return (
            self.fleet is other.fleet
            and self.arrangement is other.arrangement
            and self.metric is other.metric
            and self.marked_cells == other.marked_cells
        )

    @property
    def num_lines(self) -> int:
        return len(self.arrangement.lines)

    @property
    def num_cells(self) -> int:
        return len(self.arrangement.cells)

    @property
    def is_shaded(self) -> bool:
        """Whether load is coloured, too."""
        return self.num_cells <= SHADED_CELLS

    @cached_property
    def bounds(self) -> tuple[float, ...]:
        return self.metric.bounds(self.values)

    @cached_property
    def _scores(self) -> list[float]:
        """What makes a host the worst of its cell: its condition, then its figure."""
        scores = [value if value is not None else _UNKNOWN_SCORE for value in self.values]
        conditions = self.fleet.conditions
        for row in compress(range(len(conditions)), conditions):  # few: hosts are mostly live
            scores[row] += conditions[row] * _CONDITION_SCORE
        return scores

    @cached_property
    def _cell_scores(self) -> list[float]:
        """Of each cell's worst host, which tell its condition and, of a live one, its figure."""
        of_hosts = self.arrangement.by_place(self._scores)
        return list(map(max, *of_hosts)) if len(of_hosts) > 1 else list(*of_hosts)

    def worst_row(self, cell: int) -> int:
        """Row number of the host that a cell shows."""
        rows = self.arrangement.cells[cell]
        return rows[0] if len(rows) == 1 else max(rows, key=self._scores.__getitem__)

    def host_of(self, cell: int) -> str:
        return self.fleet.names[self.worst_row(cell)]

    def cell_of(self, name: str) -> int | None:
        """The cell that a host is in; None for one that is not shown."""
        row = self.fleet.still.row_of.get(name)
        return None if row is None else self.arrangement.cell_of_row.get(row)

    def hosts_of(self, cell: int) -> tuple[str, ...]:
        return tuple(self.fleet.names[row] for row in self.arrangement.cells[cell])

    def next_trouble(self, cell: int, step: int) -> int | None:
        """The next cell in this direction, round the end, that shows a warning, a fault or healing."""
        conditions, count = self.fleet.conditions, self.num_cells
        for distance in range(1, count + 1):
            at = (cell + step * distance) % count
            if conditions[self.worst_row(at)] >= HEALING:
                return at
        return None

    def line(self, y: int) -> Line:
        """A line of the map, without the cursor; as wide as what stands on it."""
        if y not in self._lines:
            self._lines[y] = self._made(y)
        return self._lines[y]

    def _made(self, y: int) -> Line:
        spans: list[Span] = []
        width = 0
        for block in self.arrangement.lines[y]:
            start = block.x - self.arrangement.head
            if start > width:
                spans.append(Span(" " * (start - width)))
            part = [*self._head(block), *self._cells(block), *self._tail(block)]
            spans += part
            width = start + line_width(tuple(part))
        return tuple(spans)

    def _head(self, block: Block) -> Line:
        head, arrangement = self.arrangement.head, self.arrangement
        if not head:
            return ()
        if not arrangement.has_names:
            name = self.fleet.names[arrangement.cells[block.first][0]]
            return line(Span(fit(name, head - 1) + " ", "dim"))
        if not block.is_begin:
            return line(Span(" " * head))
        group = arrangement.groups[block.group]
        conditions = self.fleet.conditions
        mark = CONDITION_MARKS[max((conditions[row] for row in group.rows), default=LIVE)]
        glyph = Span(f"{mark.glyph} ", mark.tone) if mark is not CONDITION_MARKS[LIVE] else Span("  ")
        return line(glyph, Span(fit(group.name, head - 3) + " ", "title"))

    def _cells(self, block: Block) -> Line:
        if self.arrangement.is_tiled:
            return tuple(span for cell in range(block.first, block.end) for span in self._tile(cell))
        spans: list[Span] = []
        gap = " " * (self.arrangement.cell_width - 1)
        glyphs, tones = self._glyphs(block.first, block.end)
        first = 0
        for tone, run in groupby(tones):
            end = first + len(list(run))
            spans.append(Span(gap.join((*glyphs[first:end], "")), tone))
            first = end
        return tuple(spans)

    def _glyphs(self, first: int, end: int) -> tuple[list[str], Iterable[Tone]]:
        """Of the worst host of each of these cells. Gone through in C: thousands are drawn anew every second.

        A mark takes the glyph's place and leaves its colour, which still tells the state.
        """
        scale = self._scale
        steps = list(map(bisect_right, repeat(scale.bounds), self._cell_scores[first:end]))
        glyphs = list(map(scale.glyphs.__getitem__, steps))
        for cell in self.marked_cells:
            if first <= cell < end:
                glyphs[cell - first] = MARKED
        return glyphs, map(scale.tones.__getitem__, steps)

    @cached_property
    def _scale(self) -> _Scale:
        """No figure, the shades of a live host's, then every condition that is worse than live."""
        worse = range(NO_DATA, len(CONDITION_MARKS))
        marks = [CONDITION_MARKS[condition] for condition in (NO_DATA, *worse)]
        shades = tuple(shade_tone(index, is_shaded=self.is_shaded) for index in range(len(SHADES)))
        return _Scale(
            bounds=(0.0, *self.bounds, *(_CONDITION_SCORE * (condition - 0.5) for condition in worse)),
            glyphs=(marks[0].glyph, *SHADES, *(mark.glyph for mark in marks[1:])),
            tones=(marks[0].tone, *shades, *(mark.tone for mark in marks[1:])),
        )

    def _tile(self, cell: int) -> Line:
        """`▓ gpu01  82%`: glyph, name and figure of one host."""
        row = self.worst_row(cell)
        [glyph], [tone] = self._glyphs(cell, cell + 1)
        name_width = self.arrangement.cell_width - 3 - TILE_FIGURE - GAP
        value = self.values[row]
        figure = self.metric.text(value) if value is not None else "—"
        is_old = self.fleet.states[row] != "live"
        return line(
            Span(f"{glyph} ", tone),
            Span(f"{fit(self.fleet.names[row], name_width)} ", "plain"),
            Span(fit(figure, TILE_FIGURE, is_right=True) + " " * GAP, "dim" if is_old else "plain"),
        )

    def _tail(self, block: Block) -> Line:
        """The group's mean, and how many of its hosts have which trouble."""
        tail, arrangement = self.arrangement.tail, self.arrangement
        if not tail or not block.is_begin:
            return ()
        rows = arrangement.groups[block.group].rows
        known = [value for row in rows if (value := self.values[row]) is not None]
        mean = fit(self.metric.text(sum(known) / len(known)) if known else "—", TILE_FIGURE, is_right=True)
        if arrangement.is_shared:
            return line(f" {mean}")
        return fit_line(line(f" {mean}", *self._troubles(rows)), tail)

    def _troubles(self, rows: tuple[int, ...]) -> list[Span]:
        conditions = self.fleet.conditions
        found = [conditions[row] for row in rows]
        spans = []
        for condition in (FAULT, WARNING, HEALING, NO_DATA):
            if count := found.count(condition):
                mark = CONDITION_MARKS[condition]
                spans.append(Span(f" {mark.glyph}{count}", mark.tone))
        return spans


def map_title(heat: HeatMap, *, label: str, width: int) -> Line:
    """What a cell is, what it shows and how it is grouped."""
    each = heat.arrangement.hosts_per_cell
    cell = "a cell is a host" if each == 1 else f"a cell is the worst of {each} hosts"
    grouped = f", by {label}" if label else ""
    return fit_line(
        line(Span(f" {heat.metric.title}", "title"), Span(f"{grouped}; {cell}", "dim")),
        width,
    )


def map_legend(heat: HeatMap) -> Line:
    return legend_line(heat.metric, heat.bounds, is_shaded=heat.is_shaded)


def cell_words(heat: HeatMap, name: str, *, width: int) -> Line:
    """The host's figure, and whom else its cell stands for."""
    cell = heat.cell_of(name)
    if cell is None:
        return ()
    row = heat.fleet.still.row_of[name]
    value = heat.values[row]
    figure = heat.metric.text(value) if value is not None else f"— {_why_none(heat, row)}".rstrip()
    others = [other for other in heat.hosts_of(cell) if other != name]
    if not others:
        return line(figure)
    text = f"  in a cell with {plural(len(others), 'host')}: {', '.join(others)}"
    return line(figure, Span(fit(text, max(12, width)).rstrip(), "dim"))


def _why_none(heat: HeatMap, row: int) -> str:
    """Why a host has no figure of this metric; empty where its state says it already."""
    sample = heat.fleet.hosts[row].sample
    if sample is None:
        return ""
    match heat.metric.figure:
        case "temp":
            reasons = [reason for device in sample.devices if (reason := reading_reason(device.temperature_c))]
            return f"temperature: {reasons[0]}" if reasons else "no device tells a temperature"
        case "tokens":
            return "no rank of a deployment that tells its rate"
        case "net":
            return "no interval of its network yet"
        case _:
            return "not told"
