"""What a key does to a plan under edit, and what the page says of it."""

from __future__ import annotations

import pytest

from agent.planner.edit import AddStage, Basis, MoveBoundary, PlaceStage, SetServing
from agent.planner.file import plan_to_toml
from agent.planner.plan import Objective
from odctl.tui.model.plan_editor import (
    Action,
    Cursor,
    CycleTensor,
    EditorState,
    Redo,
    ShiftShare,
    ToggleExcluded,
    TogglePinned,
    Undo,
    boundary_move,
    editor_page,
    move_choice,
    move_row,
    open_editor,
    perform,
    place_cursor,
    row_host,
    row_place,
    row_spare,
)
from odctl.tui.model.text import line_text, line_width
from tests.agent.planner.clusters import LLAMA_1B, cluster, cpu, host, plan_for

FACTS = cluster(*(host(name, cpu(size)) for name, size in (("a", 8), ("b", 8), ("c", 8), ("d", 8), ("e", 2.0))))
BASIS = Basis(LLAMA_1B, FACTS)
PLAN = plan_for(LLAMA_1B, cluster(*FACTS.hosts[:4]), stages=3, max_hosts=3, objective=Objective(kind="throughput"))
"""On three of five hosts; nobody asked for the others to be left out."""


@pytest.fixture
def state() -> EditorState:
    return open_editor("plan.toml", PLAN, BASIS)


def after(state: EditorState, *actions: Action) -> EditorState:
    for action in actions:
        state = perform(state, action, BASIS)
    return state


def text(state: EditorState, *, width: int = 80, is_busy: bool = False) -> str:
    lines, at = editor_page(state, Cursor(), BASIS, None, width=width, is_busy=is_busy)
    assert all(line_width(spans) <= width for spans in lines)
    assert line_text(lines[at]).startswith("▶"), "the cursor's line is told for scrolling"
    return "\n".join(line_text(spans) for spans in lines)


def used(state: EditorState) -> list[str]:
    return [stage.shards[0].host for stage in state.plan.replicas[0].stages]


def test_undo_and_redo_go_through_every_plan_to_the_byte(state: EditorState) -> None:
    states = [state]
    for action in (
        MoveBoundary(replica=0, stage=0, layers=1),
        CycleTensor(replica=0, stage=1),
        SetServing(field="context", value="1024"),
        ToggleExcluded(host=used(state)[0]),
    ):
        states.append(after(states[-1], action))
    current, texts = states[-1], [plan_to_toml(each.plan) for each in states]
    assert len(set(texts)) == len(texts)
    for expected in reversed(texts[:-1]):
        current = after(current, Undo())
        assert plan_to_toml(current.plan) == expected
    assert after(current, Undo()).said == "nothing to undo"
    for expected in texts[1:]:
        current = after(current, Redo())
        assert plan_to_toml(current.plan) == expected
    assert after(current, Redo()).is_refused
    assert current.edited.excluded == (used(state)[0],), "what was kept out comes back with its plan"


def test_a_new_edit_ends_what_could_be_redone(state: EditorState) -> None:
    moved = after(state, MoveBoundary(replica=0, stage=0, layers=1), Undo(), SetServing(field="batch", value=4))
    assert moved.future == ()
    assert moved.plan.serving.batch == 4


def test_a_refusal_changes_nothing_and_says_why(state: EditorState) -> None:
    refused = after(state, SetServing(field="batch", value="many"))
    assert refused.is_refused
    assert refused.plan == state.plan
    assert refused.past == ()
    assert "▲ not done: batch = many" in text(refused)


def test_tensor_sizes_go_round(state: EditorState) -> None:
    sizes = []
    current = state
    for _ in range(3):
        current = after(current, CycleTensor(replica=0, stage=0))
        sizes.append(len(current.plan.replicas[0].stages[0].shards))
    assert sizes == [2, 3, 1]
    assert plan_to_toml(current.plan) == plan_to_toml(state.plan)


def test_shares_shift_between_neighbours(state: EditorState) -> None:
    split = after(state, CycleTensor(replica=0, stage=0))
    shifted = after(split, ShiftShare(replica=0, stage=0, tensor_index=0, kv_heads=1))
    units = [shard.kv_heads[1] - shard.kv_heads[0] for shard in shifted.plan.replicas[0].stages[0].shards]
    assert units == [5, 3]
    last = after(shifted, ShiftShare(replica=0, stage=0, tensor_index=1, kv_heads=1))
    assert plan_to_toml(last.plan) == plan_to_toml(split.plan)
    assert "shares no KV heads" in after(state, ShiftShare(replica=0, stage=0, tensor_index=0, kv_heads=1)).said


def test_a_key_that_waited_for_a_stage_that_is_gone_is_refused(state: EditorState) -> None:
    for late in (
        CycleTensor(replica=0, stage=9),
        ShiftShare(replica=0, stage=9, tensor_index=0, kv_heads=1),
        boundary_move(state, Cursor(stage=9), 1),
    ):
        refused = after(state, late)
        assert refused.is_refused
        assert refused.plan == state.plan


def test_excluding_a_host_plans_around_it_and_its_devices_join_no_group(state: EditorState) -> None:
    gone, spare = used(state)[1], next(name for name in "abcd" if name not in used(state))
    without = after(state, ToggleExcluded(host=gone))
    assert gone not in without.plan.hosts
    assert spare in used(without)
    assert f"✗ kept out: {gone}" in text(without)
    grown = after(without, CycleTensor(replica=0, stage=0))
    assert gone not in grown.plan.hosts
    spare_first = after(state, ToggleExcluded(host=spare))
    assert spare_first.plan == state.plan, "it has no part: it is only remembered"
    assert after(spare_first, ToggleExcluded(host=spare)).edited.excluded == ()


def test_pinning_brings_a_host_in(state: EditorState) -> None:
    spare = next(name for name in "abcd" if name not in used(state))
    pinned = after(state, TogglePinned(host=spare))
    assert spare in used(pinned)
    assert f"⊙ pinned: {spare}" in text(pinned)
    held = after(state, TogglePinned(host=used(state)[0]))
    assert held.plan == state.plan
    assert after(held, ToggleExcluded(host=used(state)[0])).edited.pinned == (), "the last word counts"


def test_the_cursor_knows_ranks_spares_and_boundaries(state: EditorState) -> None:
    cursor = place_cursor(state, Cursor(), follows_row=True)
    assert (cursor.replica, cursor.stage) == (0, 0)
    cursor = move_choice(state, cursor, 1)
    assert (cursor.stage, cursor.row) == (1, 1)
    assert move_choice(state, cursor, 5).stage == 1
    last = move_row(state, cursor, 1)
    assert (last.row, last.stage) == (2, 1), "the last stage has no boundary behind it: the one before it is chosen"
    spare = move_row(state, last, 1)
    assert row_place(state, spare) is None
    found = row_spare(state, spare)
    assert found is not None
    assert row_host(state, spare) == found.host
    assert move_row(state, spare, 9).row == 4
    assert place_cursor(after(state, CycleTensor(replica=0, stage=0)), Cursor(row=9)).row == 4


def test_a_boundary_held_down_stops_at_its_last_layer(state: EditorState) -> None:
    second = state.plan.replicas[0].stages[1].layers
    move = boundary_move(state, Cursor(), 99)
    assert move.layers == second[1] - second[0] - 1
    at_end = after(state, move)
    assert boundary_move(at_end, Cursor(), 1).layers == 1
    assert "keeps one" in after(at_end, boundary_move(at_end, Cursor(), 1)).said


@pytest.mark.parametrize("width", [80, 140])
def test_the_page_shows_deltas_bottleneck_and_what_is_wrong(state: EditorState, width: int) -> None:
    assert "● sound" in text(state, width=width)
    assert text(state, width=width).count("= as it was") == 5
    moved = after(state, MoveBoundary(replica=0, stage=0, layers=3))
    page = text(moved, width=width)
    assert "1 edit, not written" in page
    assert "% worse" in page
    assert "bottleneck: replica 0 stage 0" in page
    cut = moved.plan.replicas[0].stages[0].layers[1]
    assert f"◀┃▶ {cut - 1} │ {cut}" in page
    heavy = after(state, SetServing(field="batch", value=4000))
    page = text(heavy, width=width)
    assert "✗ 3 problems: not to be written" in page
    assert "✗ stage 0.0: " in page
    assert " short: its shard takes " in page
    assert "give it fewer layers" in page
    assert "↻ computing" in text(heavy, width=width, is_busy=True)


def test_a_stage_goes_to_a_spare_device_and_a_new_one_is_made_there(state: EditorState) -> None:
    spare = next(place.name for place in state.spares)
    placed = after(state, PlaceStage(replica=0, stage=0, devices=(spare,)))
    assert placed.spares != state.spares
    added = after(state, AddStage(replica=0, stage=0, devices=(spare,)))
    assert len(added.plan.replicas[0].stages) == 4


def test_a_file_with_figures_of_other_measurements_is_predicted_anew() -> None:
    measured = cluster(*(host(each.name, cpu(8, read_gb_per_s=3)) for each in FACTS.hosts[:4]), FACTS.hosts[4])
    found = open_editor("plan.toml", PLAN, Basis(LLAMA_1B, measured))
    assert found.plan.predicted != PLAN.predicted
    assert "predicted anew" in text(found)
    assert not found.is_unsaved
