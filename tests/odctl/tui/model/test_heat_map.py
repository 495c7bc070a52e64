"""Cells, groups and the worst of a few: what the map shows of fleets of every size."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odctl.tui.model.attention import attention_lines
from odctl.tui.model.fleet_columns import FleetColumns, Group
from odctl.tui.model.heat_layout import arrange
from odctl.tui.model.heat_map import SHADED_CELLS, HeatMap, cell_words, map_legend, map_title
from odctl.tui.model.heat_metrics import METRICS, next_metric
from odctl.tui.model.text import Tone, line_text, line_width
from tests.odctl.fleet import values
from tests.odctl.tui import frozen_fleet as frozen

SIZES = ((78, 13), (138, 27))


def columns(num_hosts: int) -> FleetColumns:
    base = frozen.host("base")
    hosts = tuple(msgspec.structs.replace(base, name=f"h{number:05d}") for number in range(num_hosts))
    return FleetColumns(frozen.snapshot(hosts=hosts, faults=(), deployments=()))


def whole(
    fleet: FleetColumns, *, width: int = 78, height: int = 13, metric: int = 0, zooms: bool = False
) -> HeatMap:
    groups = (Group("", tuple(range(len(fleet.hosts)))),)
    found = arrange(groups, fleet.names, width=width, height=height, has_names=False, is_one_per_cell=zooms)
    return HeatMap(fleet, found, METRICS[metric])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_hosts", [1, 10, 100, 1000, 10_000])
def test_every_host_is_in_exactly_one_cell_and_nothing_is_off_the_map(
    num_hosts: int, size: tuple[int, int]
) -> None:
    width, height = size
    heat = whole(columns(num_hosts), width=width, height=height)
    assert sorted(row for rows in heat.arrangement.cells for row in rows) == list(range(num_hosts))
    assert heat.num_lines <= height
    assert all(line_width(heat.line(y)) <= width for y in range(heat.num_lines))
    placed = [heat.arrangement.cell_at(x, y) for y, x in heat.arrangement.places]
    assert placed == list(range(heat.num_cells)), "a click on a cell finds that cell"


@given(
    sizes=st.lists(st.integers(0, 90), min_size=1, max_size=40),
    width=st.integers(40, 200),
    height=st.integers(4, 50),
    zooms=st.booleans(),
)
def test_groups_keep_their_hosts_together_in_any_size(
    sizes: list[int], width: int, height: int, zooms: bool
) -> None:
    groups, first = [], 0
    for number, size in enumerate(sizes):
        groups.append(Group(f"r{number}", tuple(range(first, first + size))))
        first += size
    names = [f"host-{row}" for row in range(first)]
    found = arrange(groups, names, width=width, height=height, has_names=True, is_one_per_cell=zooms)
    shown = [row for rows in found.cells for row in rows]
    assert shown == list(range(first))
    for blocks in found.lines:
        for block in blocks:
            rows = found.groups[block.group].rows
            assert all(set(found.cells[cell]) <= set(rows) for cell in range(block.first, block.end))
            assert block.x + (block.end - block.first) * found.cell_width <= width
    if zooms:
        assert found.hosts_per_cell == 1


def test_few_hosts_are_tiles_with_name_and_figure() -> None:
    heat = whole(FleetColumns(frozen.snapshot()))
    assert heat.arrangement.is_tiled
    text = "\n".join(line_text(heat.line(y)) for y in range(heat.num_lines))
    for name in heat.fleet.names:
        assert name in text
    assert "25%" in text
    assert "—" in text, "a host that never answered has no figure"


def test_a_cell_shows_the_worst_of_its_hosts_never_the_mean() -> None:
    fleet = columns(10_000)
    lost = msgspec.structs.replace(fleet.hosts[4711], state="lost", reason="reset by peer")
    hot = msgspec.structs.replace(fleet.hosts[1234], sample=values.sample("h01234", cpu=0.99))
    hosts = [*fleet.hosts]
    hosts[4711], hosts[1234] = lost, hot
    heat = whole(FleetColumns(msgspec.structs.replace(fleet.snapshot, hosts=tuple(hosts))))
    assert heat.arrangement.hosts_per_cell > 1
    for name, glyph in (("h04711", "✗"), ("h01234", "█")):
        cell = heat.cell_of(name)
        assert cell is not None
        assert heat.host_of(cell) == name
        y, x = heat.arrangement.places[cell]
        assert line_text(heat.line(y))[x] == glyph
    assert heat.next_trouble(0, 1) == heat.cell_of("h04711")
    assert "worst of" in line_text(map_title(heat, label="", width=78))
    assert "in a cell with" in line_text(cell_words(heat, "h04711", width=60))


def test_zoomed_in_every_host_has_a_cell_and_lines_run_on() -> None:
    heat = whole(columns(10_000), zooms=True)
    assert heat.arrangement.hosts_per_cell == 1
    assert heat.num_cells == 10_000
    assert heat.num_lines > 13


def test_only_the_lines_that_are_asked_for_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    heat = whole(columns(10_000), zooms=True)
    asked: list[int] = []
    glyphs = HeatMap._glyphs

    def counted(self: HeatMap, first: int, end: int) -> tuple[list[str], Iterable[Tone]]:
        asked.extend(range(first, end))
        return glyphs(self, first, end)

    monkeypatch.setattr(HeatMap, "_glyphs", counted)
    heat.line(3)
    heat.line(3)
    (block,) = heat.arrangement.lines[3]
    assert asked == list(range(block.first, block.end)), "each cell of the line once, and no other"


def test_many_cells_are_coloured_by_trouble_alone_so_that_a_tick_stays_small() -> None:
    few, many = whole(columns(300)), whole(columns(10_000))
    assert (few.arrangement.cell_width, many.arrangement.cell_width) == (2, 1)
    assert few.num_cells <= SHADED_CELLS < many.num_cells
    assert all(len(many.line(y)) <= 3 for y in range(many.num_lines)), "a head and one run of cells"


def test_a_group_that_is_filtered_away_takes_no_line() -> None:
    groups = (Group("a", (0, 1)), Group("b", ()), Group("c", (2,)))
    found = arrange(groups, ["x", "y", "z"], width=60, height=10, has_names=True)
    assert [found.groups[block.group].name for blocks in found.lines for block in blocks] == ["a", "c"]


def test_up_and_down_keep_the_column_and_stop_at_the_ends() -> None:
    found = whole(columns(1000), width=50, height=40).arrangement
    cell = 5
    y, x = found.places[cell]
    below = found.above_or_below(cell, 1)
    assert found.places[below] == (y + 1, x)
    assert found.above_or_below(below, -1) == cell
    assert found.above_or_below(cell, -1) == cell
    assert found.places[found.above_or_below(cell, 10_000)][0] == len(found.lines) - 1


def test_every_metric_has_steps_a_legend_and_its_own_words() -> None:
    fleet = FleetColumns(frozen.snapshot())
    metric = METRICS[0]
    for number in range(len(METRICS)):
        assert METRICS[number] is metric
        heat = whole(fleet, metric=number)
        bounds = heat.bounds
        assert list(bounds) == sorted(bounds)
        assert bisect_right(bounds, bounds[-1]) == 4
        legend = line_text(map_legend(heat))
        assert "▲ warn ✗ fault ○ no data ↻ healing" in legend
        assert line_width(map_legend(heat)) <= 80
        metric = next_metric(metric)
    assert metric is METRICS[0]


def test_tokens_are_those_of_the_deployments_a_host_holds_ranks_of_and_unknown_elsewhere() -> None:
    fleet = FleetColumns(frozen.snapshot())
    assert dict(zip(fleet.names, fleet.tokens_per_s, strict=True)) == {
        "cpu01": 57.5,
        "cpu02": None,
        "cpu03": None,
        "cpu04": None,
        "cpu05": None,
        "gpu01": 57.5,
    }
    silent = frozen.snapshot(deployments=(frozen.deployment(error=frozen.no_answer()),))
    assert set(FleetColumns(silent).tokens_per_s) == {None}


def test_a_fleet_of_any_state_is_drawn_at_any_width() -> None:
    for width in (20, 33, 80):
        heat = whole(FleetColumns(frozen.snapshot()), width=width, height=20)
        assert all(line_width(heat.line(y)) <= width for y in range(heat.num_lines))


def test_a_host_without_a_figure_says_why() -> None:
    fleet = FleetColumns(frozen.snapshot())
    by_id = {metric.id: number for number, metric in enumerate(METRICS)}
    heat = whole(fleet, metric=by_id["temp"])
    assert line_text(cell_words(heat, "cpu01", width=40)) == "— temperature: no driver"
    assert line_text(cell_words(heat, "gpu01", width=40)) == "86°"
    heat = whole(fleet, metric=by_id["tokens"])
    assert "no rank of a deployment" in line_text(cell_words(heat, "cpu02", width=40))
    assert line_text(cell_words(heat, "nobody", width=40)) == ""


def test_hosts_that_need_attention_are_listed_worst_first_with_their_reason() -> None:
    heat = whole(FleetColumns(frozen.snapshot()))
    found = [line_text(found) for found in attention_lines(heat, room=12, width=78)]
    assert found[0].startswith(" needs attention: 4 hosts")
    assert [text.split()[:2] for text in found[1:]] == [
        ["✗", "cpu03"],
        ["✗", "cpu04"],
        ["✗", "gpu01"],
        ["▲", "cpu02"],
    ]
    assert "lost 1m" in found[1]
    assert "connection lost: reset by peer" in found[1]
    assert "cuda:2 fell off the bus" in found[3]
    short = [line_text(found) for found in attention_lines(heat, room=4, width=60)]
    assert len(short) == 4
    assert short[-1] == "   and 2 more"
    assert attention_lines(heat, room=2, width=60) == ()
    assert attention_lines(whole(columns(5)), room=9, width=60) == (), "nothing is wrong, nothing is said"
