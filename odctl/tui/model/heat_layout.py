"""Where the cells of the heat map stand: groups of hosts in lines, and how many hosts share a cell.

Nothing here depends on a reading, so one arrangement serves until hosts, filter, grouping or the size change.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
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
    tiled = _tiles(groups, names, width=width, height=height, has_names=has_names)
    if tiled is not None:
        return tiled
    spaced = _packed(groups, names, 1, width=width, has_names=has_names, cell_width=2)
    if len(spaced.lines) <= height:
        return spaced
    whole = _packed(groups, names, 1, width=width, has_names=has_names)
    most = max((len(group.rows) for group in groups), default=1)
    if (
        is_one_per_cell
        or len(whole.lines) <= height
        or len(_packed(groups, names, most, width=width, has_names=has_names).lines) > height
    ):
        return whole
    too_few, enough = 1, most
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if len(_packed(groups, names, middle, width=width, has_names=has_names).lines) <= height:
            enough = middle
        else:
            too_few = middle
    return _packed(groups, names, enough, width=width, has_names=has_names)


def _head_width(groups: Sequence[Group], names: Sequence[str], has_names: bool) -> int:
    """Cells before a line's first cell: a glyph and a name, and a space after each."""
    said = (group.name for group in groups) if has_names else (names[row] for group in groups for row in group.rows)
    return min(HEAD_MAX, max((len(name) for name in said), default=0)) + 3


def _tiles(
    groups: Sequence[Group], names: Sequence[str], *, width: int, height: int, has_names: bool
) -> Arrangement | None:
    num_hosts = sum(len(group.rows) for group in groups)
    if num_hosts > width * height // (TILE_FIGURE + 4):
        return None
    longest = max((len(names[row]) for group in groups for row in group.rows), default=1)
    cell_width = 2 + min(TILE_NAME_MAX, longest) + 1 + TILE_FIGURE + GAP
    head = _head_width(groups, names, True) if has_names else 0
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


def _packed(
    groups: Sequence[Group],
    names: Sequence[str],
    hosts_per_cell: int,
    *,
    width: int,
    has_names: bool,
    cell_width: int = 1,
) -> Arrangement:
    """Short groups side by side in columns, long ones over several lines."""
    cells: list[Sequence[int]] = []
    spans: list[tuple[int, int]] = []
    for group in groups:
        first = len(cells)
        rows = group.rows
        cells += [rows[at : at + hosts_per_cell] for at in range(0, len(rows), hosts_per_cell)]
        spans.append((first, len(cells)))
    head = _head_width(groups, names, has_names)
    longest = max((end - first for first, end in spans), default=1)
    shared = head + longest * cell_width + TAIL_SHARED + GAP
    columns = (width - MARGIN + GAP) // shared if has_names else 1
    lines: list[tuple[Block, ...]] = []
    if columns > 1:
        tail = TAIL_SHARED
        for begin in range(0, len(groups), columns):
            lines.append(
                tuple(
                    Block(index, MARGIN + head + at * shared, *spans[index], True)
                    for at, index in enumerate(range(begin, min(len(groups), begin + columns)))
                )
            )
    else:
        tail = (TAIL_WIDE if width >= 100 else TAIL_NARROW) if has_names else 0
        per_line = max(1, (width - MARGIN - head - tail) // cell_width)
        for index, (first, end) in enumerate(spans):
            for begin in range(first, end, per_line):
                stop = min(end, begin + per_line)
                lines.append((Block(index, MARGIN + head, begin, stop, begin == first),))
    return Arrangement(
        groups,
        cells,
        lines,
        hosts_per_cell=hosts_per_cell,
        cell_width=cell_width,
        head=head,
        tail=tail,
        has_names=has_names,
    )
