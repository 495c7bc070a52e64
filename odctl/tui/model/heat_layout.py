"""Where the cells of the heat map stand: groups of hosts in lines, and how many hosts share a cell.

Nothing here depends on a reading, so one arrangement serves until hosts, filter, grouping or the size change.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from odctl.tui.model.fleet_columns import Group

MARGIN = 1
GAP = 2
"""Cells between two groups on a line."""
HEAD_MAX = 14
"""A group's name takes at most so many cells, its glyph besides."""
TAIL_WIDE, TAIL_NARROW, TAIL_SHARED = 24, 16, 8
"""Cells behind a group for its mean and its troubles; groups that share a line have the mean only."""
TILE_NAME_MAX = 16
TILE_FIGURE = 7
"""Cells of a figure within a tile: `12.5G/s`."""


class Block(NamedTuple):
    """The part of a line that belongs to one group: cells from `first` to `end` (exclusive), at `x` on."""

    group: int
    x: int
    first: int
    end: int
    is_begin: bool


class Arrangement:
    """`cells` holds the row numbers of each cell's hosts; `lines` the blocks of each line.

    `cell_width` is 1, 2 where there is room for a gap, or a tile's: then every host has a cell of its own, with its
    name and figure in it.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        cells: Sequence[Sequence[int]],
        lines: Sequence[tuple[Block, ...]],
        *,
        hosts_per_cell: int,
        cell_width: int,
        head: int,
        tail: int,
        has_names: bool,
        is_tiled: bool = False,
    ) -> None:
        self.groups = groups
        self.cells = cells
        self.lines = lines
        self.hosts_per_cell = hosts_per_cell
        self.cell_width = cell_width
        self.head = head
        self.tail = tail
        self.has_names = has_names
        """Whether groups have names; without, a line begins with its first host's."""
        self.is_tiled = is_tiled

    @property
    def is_shared(self) -> bool:
        """Whether a line holds several groups: there is room for their means then, not for their troubles."""
        return self.tail == TAIL_SHARED

    @cached_property
    def cell_of_row(self) -> dict[int, int]:
        return {row: cell for cell, rows in enumerate(self.cells) for row in rows}

    @cached_property
    def _readers(self) -> list[Callable[[Sequence[float]], tuple[float, ...]]]:
        most = max(map(len, self.cells), default=0)
        return [itemgetter(*(rows[min(at, len(rows) - 1)] for rows in self.cells)) for at in range(most)]

    def by_place(self, figures: Sequence[float]) -> list[Sequence[float]]:
        """Of figures by row number, those of every cell's first host, of every second one and so on.

        A cell of fewer hosts has its last one again. Gone through in C: a map of ten thousand hosts is drawn every
        second.
        """
        if len(self.cells) == 1:  # an itemgetter of one gives no tuple
            return [[figures[row]] for row in self.cells[0]]
        return [read(figures) for read in self._readers]

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """(line, x) of every cell."""
        out = [(0, 0)] * len(self.cells)
        for y, blocks in enumerate(self.lines):
            for block in blocks:
                for cell in range(block.first, block.end):
                    out[cell] = (y, block.x + (cell - block.first) * self.cell_width)
        return out

    def cell_at(self, x: int, y: int) -> int | None:
        """The cell under a point of the whole map; None beside the cells."""
        if not 0 <= y < len(self.lines):
            return None
        for block in self.lines[y]:
            cell = block.first + (x - block.x) // self.cell_width
            if x >= block.x and cell < block.end:
                return cell
        return None

    def above_or_below(self, cell: int, step: int) -> int:
        """The nearest cell `step` lines further down, or in the last line on the way that has any."""
        y, x = self.places[cell]
        target = max(0, min(len(self.lines) - 1, y + step))
        while target != y and not self.lines[target]:
            target -= 1 if step > 0 else -1
        if target == y:
            return cell
        near = [
            max(block.first, min(block.end - 1, block.first + (x - block.x) // self.cell_width))
            for block in self.lines[target]
        ]
        return min(near, key=lambda found: abs(self.places[found][1] - x))


def arrange(
    groups: Sequence[Group],
    names: Sequence[str],
    *,
    width: int,
    height: int,
    has_names: bool,
    is_one_per_cell: bool = False,
) -> Arrangement:
    """Tiles where all fit; cells with gaps where those do; else the fewest hosts a cell with which all fit.

    Where groups are too many for that, a cell is a host, and the map is to be scrolled.
    """
    groups = [group for group in groups if group.rows]
    head = _head_width(groups, names, has_names)
    tiled = _tiles(groups, names, width=width, height=height, head=head if has_names else 0, has_names=has_names)
    if tiled is not None:
        return tiled

    def packing(hosts_per_cell: int, *, cell_width: int = 1) -> _Packing:
        return _Packing(groups, hosts_per_cell, width=width, head=head, has_names=has_names, cell_width=cell_width)

    spaced, whole = packing(1, cell_width=2), packing(1)
    if spaced.num_lines <= height:
        return spaced.arrangement()
    most = max((len(group.rows) for group in groups), default=1)
    if is_one_per_cell or whole.num_lines <= height or packing(most).num_lines > height:
        return whole.arrangement()
    too_few, enough = 1, most
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if packing(middle).num_lines <= height:
            enough = middle
        else:
            too_few = middle
    return packing(enough).arrangement()


def _head_width(groups: Sequence[Group], names: Sequence[str], has_names: bool) -> int:
    """Cells before a line's first cell: a glyph and a name, and a space after each."""
    said = (group.name for group in groups) if has_names else (names[row] for group in groups for row in group.rows)
    return min(HEAD_MAX, max(map(len, said), default=0)) + 3


def _tiles(
    groups: Sequence[Group], names: Sequence[str], *, width: int, height: int, head: int, has_names: bool
) -> Arrangement | None:
    num_hosts = sum(len(group.rows) for group in groups)
    if num_hosts > width * height // (TILE_FIGURE + 4):
        return None
    longest = max((len(names[row]) for group in groups for row in group.rows), default=1)
    cell_width = 2 + min(TILE_NAME_MAX, longest) + 1 + TILE_FIGURE + GAP
    per_line = (width - MARGIN - head) // cell_width
    if per_line < 1:
        return None
    cells = [(row,) for group in groups for row in group.rows]
    lines: list[tuple[Block, ...]] = []
    first = 0
    for index, group in enumerate(groups):
        end = first + len(group.rows)
        for begin in range(first, end, per_line):
            stop = min(end, begin + per_line)
            lines.append((Block(index, MARGIN + head, begin, stop, begin == first),))
        first = end
    if len(lines) > height:
        return None
    return Arrangement(
        groups,
        cells,
        lines,
        hosts_per_cell=1,
        cell_width=cell_width,
        head=head,
        tail=0,
        has_names=has_names,
        is_tiled=True,
    )


class _Packing:
    """Short groups side by side in columns, long ones over several lines: how many lines, before a cell is made."""

    def __init__(
        self,
        groups: Sequence[Group],
        hosts_per_cell: int,
        *,
        width: int,
        head: int,
        has_names: bool,
        cell_width: int,
    ) -> None:
        self._groups, self._hosts_per_cell = groups, hosts_per_cell
        self._head, self._has_names, self._cell_width = head, has_names, cell_width
        self._num_cells = [-(-len(group.rows) // hosts_per_cell) for group in groups]
        longest = max(self._num_cells, default=1)
        self._shared = head + longest * cell_width + TAIL_SHARED + GAP
        self._columns = (width - MARGIN + GAP) // self._shared if has_names else 1
        wide = (TAIL_WIDE if width >= 100 else TAIL_NARROW) if has_names else 0
        self._tail = TAIL_SHARED if self._columns > 1 else wide
        self._per_line = max(1, (width - MARGIN - head - wide) // cell_width)

    @property
    def num_lines(self) -> int:
        if self._columns > 1:
            return -(-len(self._groups) // self._columns)
        return sum(-(-count // self._per_line) for count in self._num_cells)

    def arrangement(self) -> Arrangement:
        each = self._hosts_per_cell
        cells = [group.rows[at : at + each] for group in self._groups for at in range(0, len(group.rows), each)]
        ends = list(itertools.accumulate(self._num_cells))
        spans = [(end - count, end) for end, count in zip(ends, self._num_cells, strict=True)]
        return Arrangement(
            self._groups,
            cells,
            self._shared_lines(spans) if self._columns > 1 else self._own_lines(spans),
            hosts_per_cell=each,
            cell_width=self._cell_width,
            head=self._head,
            tail=self._tail,
            has_names=self._has_names,
        )

    def _shared_lines(self, spans: Sequence[tuple[int, int]]) -> list[tuple[Block, ...]]:
        x, columns = MARGIN + self._head, self._columns
        return [
            tuple(
                Block(begin + at, x + at * self._shared, *span, True)
                for at, span in enumerate(spans[begin : begin + columns])
            )
            for begin in range(0, len(spans), columns)
        ]

    def _own_lines(self, spans: Sequence[tuple[int, int]]) -> list[tuple[Block, ...]]:
        return [
            (Block(index, MARGIN + self._head, begin, min(end, begin + self._per_line), begin == first),)
            for index, (first, end) in enumerate(spans)
            for begin in range(first, end, self._per_line)
        ]
