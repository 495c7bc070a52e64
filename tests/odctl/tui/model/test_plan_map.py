"""Layers against hosts: every rank on a line, or those that are alike on one, and nothing is lost by it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from agent.planner.plan import Plan, rank_places
from odctl.tui.model.plan_map import folds, layer_map, map_rows
from odctl.tui.model.plan_page import plan_page
from odctl.tui.model.plans import PlanChoice
from odctl.tui.model.text import Line, line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.many_plans import chain

WIDTHS = (78, 138)


def text_of(lines: Sequence[Line]) -> str:
    return "\n".join(line_text(spans) for spans in lines)


def mapped(plan: Plan, width: int, *, is_folded: bool) -> list[Line]:
    lines = layer_map(plan, None, width=width, is_folded=is_folded)
    assert all(line_width(spans) <= width for spans in lines), "nothing is cut off at the right"
    return list(lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_eighty_stages_that_are_alike_fold_into_three_lines(width: int) -> None:
    """The first has the embedding, the last the head; between them none differs."""
    plan = chain(80)
    assert folds(plan)
    text = text_of(mapped(plan, width, is_folded=True))
    titles = [row.split()[0] for row in text.splitlines()[1:-1]]
    assert titles == ["r0s0t0", "s1-78", "r0s79t0"]
    assert "×78 h001" in text
    row = text.splitlines()[2]
    assert "◀" in row, "the bottleneck is among the folded ones"
    assert " 4" in row.partition(" / ?")[2], "and its time is the longest of them"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("num_replicas", "tensor"), [(1, 1), (3, 1), (2, 4)])
def test_unfolded_every_rank_has_its_line(width: int, num_replicas: int, tensor: int) -> None:
    plan = chain(20, num_replicas=num_replicas, tensor=tensor)
    lines = mapped(plan, width, is_folded=False)
    ranks = [line_text(spans).split()[0] for spans in lines if line_text(spans).startswith(" r")]
    assert [each for each in ranks if each != "replica"] == [place.rank_id for place in rank_places(plan)]


@pytest.mark.parametrize("num_replicas", [1, 2, 5])
@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_folding_loses_and_repeats_no_rank(num_replicas: int, tensor: int) -> None:
    plan = chain(12, num_replicas=num_replicas, tensor=tensor)
    groups = map_rows(plan, is_folded=True)
    shown = [place.rank_id for group in groups for row in group.rows for place in row.places]
    assert sorted(shown) == sorted(place.rank_id for place in rank_places(plan) if place.replica == 0)
    assert groups[0].alike == tuple(range(1, num_replicas))


def test_replicas_that_are_alike_are_one_with_the_hosts_of_the_others() -> None:
    plan = chain(4, num_replicas=3)
    text = text_of(mapped(plan, 138, is_folded=True))
    assert text.count("RANK") == 1
    assert "replica 0  ×3 alike" in text
    assert "1 on h004, h005, h006 and h007; 2 on h008, h009, h010 and h011" in text


def test_a_replica_that_differs_keeps_its_own_lines() -> None:
    plan = chain(4, num_replicas=2)
    stages = plan.replicas[1].stages
    merged = msgspec.structs.replace(stages[1], layers=(1, 3))
    other = msgspec.structs.replace(plan.replicas[1], stages=(stages[0], merged, stages[3]))
    text = text_of(mapped(msgspec.structs.replace(plan, replicas=(plan.replicas[0], other)), 138, is_folded=True))
    assert text.count("RANK") == 2
    assert "replica 1" in text


def test_a_group_on_one_host_names_its_devices() -> None:
    text = text_of(mapped(chain(3, tensor=8), 138, is_folded=True))
    assert "×8 h000/cuda:0-7" in text
    assert "s0 " in text


def test_a_small_plan_is_not_folded_by_itself() -> None:
    choice = PlanChoice(origin="plan.toml", plan=frozen.plan(), plan_hash="f" * 64)
    assert not folds(choice.plan)
    assert " r0s1t0 " in text_of(plan_page(choice, None, width=78))


def test_a_host_that_comes_new_to_what_runs_is_marked() -> None:
    plan = frozen.plan()
    lines = layer_map(plan, None, width=100, is_folded=False, added=frozenset({"cpu01"}))
    rows = [line_text(spans) for spans in lines if "r0s" in line_text(spans)]
    assert ["+" in row for row in rows] == [False, True]
