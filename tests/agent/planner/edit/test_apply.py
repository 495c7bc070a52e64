"""Edits of a plan: refusals by name, exact figures, and what holds after any sequence of them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.planner.check import check_plan, check_shape
from agent.planner.edit import (
    AddStage,
    Basis,
    Edit,
    Edited,
    MoveBoundary,
    PlaceStage,
    RemoveStage,
    Replan,
    SetServing,
    SetTensor,
    ShareHeads,
    apply_edit,
    begin_edit,
    edit_words,
    possible_sizes,
    spare_places,
)
from agent.planner.file import plan_from_toml, plan_hash, plan_to_toml
from agent.planner.layout import layouts_of_plan
from agent.planner.make import lay_out_plan, make_plan
from agent.planner.plan import Learning, Objective, Plan
from agent.planner.staleness import facts_digest
from agent.planner.words import bytes_words
from tests.agent.planner.clusters import (
    LLAMA_1B,
    LLAMA_70B,
    LLAMA_TINY,
    MIXED_GPUS,
    SMALL_SERVING,
    THREE_CPUS,
    cluster,
    cpu,
    drafting,
    host,
    model,
    plan_for,
    request,
)

FOUR_CPUS = cluster(host("a", cpu(8)), host("b", cpu(8)), host("c", cpu(16)), host("d", cpu(4)))
BASIS = Basis(LLAMA_1B, FOUR_CPUS)


@pytest.fixture(scope="module")
def opened() -> Edited:
    """Three stages on three of four hosts."""
    return begin_edit(plan_for(LLAMA_1B, FOUR_CPUS, stages=3, objective=Objective(kind="throughput")), BASIS)


def layers(plan: Plan) -> list[tuple[int, int]]:
    return [stage.layers for stage in plan.replicas[0].stages]


def devices(plan: Plan) -> list[list[str]]:
    return [[f"{shard.host}/{shard.device}" for shard in stage.shards] for stage in plan.replicas[0].stages]


def refused(edited: Edited, edit: Edit, basis: Basis = BASIS) -> FleetError:
    with pytest.raises(FleetError) as caught:
        apply_edit(edited, edit, basis)
    return caught.value


def test_a_fresh_plan_is_opened_as_it_is() -> None:
    plan = plan_for(LLAMA_70B, MIXED_GPUS)
    edited = begin_edit(plan, Basis(LLAMA_70B, MIXED_GPUS))
    assert plan_to_toml(edited.plan) == plan_to_toml(plan)
    assert edited.problems == ()


def test_a_boundary_moves_and_back_is_the_plan_of_before(opened: Edited) -> None:
    first = layers(opened.plan)[0][1]
    moved = apply_edit(opened, MoveBoundary(replica=0, stage=0, layers=2), BASIS)
    assert layers(moved.plan)[0] == (0, first + 2)
    assert layers(moved.plan)[1][0] == first + 2
    assert plan_hash(moved.plan) != plan_hash(opened.plan)
    assert moved.plan.objective.strategy == "manual"
    assert moved.plan.why[0].startswith(f"edited by hand: {devices(opened.plan)[0][0]} layers 0-{first + 1}")
    assert moved.plan.why[1] == f"as planned: {opened.plan.why[0]}"
    back = apply_edit(moved, MoveBoundary(replica=0, stage=0, layers=-2), BASIS)
    assert plan_to_toml(back.plan) == plan_to_toml(opened.plan)


def test_an_edited_plans_figures_are_those_that_the_planner_would_give_its_layout(opened: Edited) -> None:
    moved = apply_edit(opened, MoveBoundary(replica=0, stage=1, layers=-1), BASIS).plan
    anew = lay_out_plan(moved, layouts_of_plan(moved, FOUR_CPUS), LLAMA_1B, FOUR_CPUS)
    assert plan_hash(anew) == plan_hash(moved)
    assert moved.predicted.stage_s != opened.plan.predicted.stage_s
    assert moved.facts_digest == facts_digest(FOUR_CPUS, moved.hosts)
    assert check_plan(moved, LLAMA_1B, FOUR_CPUS) == []
    assert plan_from_toml(plan_to_toml(moved), file="plan.toml") == moved


def test_a_stage_keeps_a_layer_and_the_last_has_no_boundary(opened: Edited) -> None:
    error = refused(opened, MoveBoundary(replica=0, stage=0, layers=99))
    assert error.code == "E106"
    assert f"stage 0.1 has {layers(opened.plan)[1][1] - layers(opened.plan)[1][0]} layers and keeps one" in str(
        error
    )
    assert "name one of 0.0 to 0.1" in refused(opened, MoveBoundary(replica=0, stage=2, layers=1)).hint
    assert "no replica 1" in refused(opened, MoveBoundary(replica=1, stage=0, layers=1)).message


def test_what_does_not_fit_is_a_plan_with_its_problem() -> None:
    facts = cluster(host("a", cpu(2.4)), host("b", cpu(2.4)), host("c", cpu(16)))
    basis = Basis(LLAMA_1B, facts)
    edited = begin_edit(plan_for(LLAMA_1B, facts, stages=2, hosts=("a", "b")), basis)
    first, end = layers(edited.plan)[1]
    over = apply_edit(edited, MoveBoundary(replica=0, stage=0, layers=end - first - 1), basis)
    (problem,) = over.problems
    held = over.plan.replicas[0].stages[0].shards[0].bytes.total
    assert (problem.code, problem.path) == ("E601", "replica[0].stage[0].shard[0]")
    assert f"is {bytes_words(held - 2_400_000_000)} short" in problem.message


def test_a_stage_goes_to_a_spare_device_and_swaps_with_a_taken_one(opened: Edited) -> None:
    spare = [place.name for place in spare_places(opened, BASIS)]
    assert len(spare) == 1
    placed = apply_edit(opened, PlaceStage(replica=0, stage=0, devices=(spare[0],)), BASIS)
    assert devices(placed.plan)[0] == spare
    first, second, _ = devices(opened.plan)
    swapped = apply_edit(opened, PlaceStage(replica=0, stage=0, devices=tuple(second)), BASIS)
    assert devices(swapped.plan)[:2] == [second, first]
    assert layers(swapped.plan) == layers(opened.plan)
    taken = refused(opened, PlaceStage(replica=0, stage=0, devices=(spare[0], second[0])))
    assert (taken.code, taken.message) == ("E107", f"{second[0]} already holds stage 0.1")
    assert "did you mean `a/cpu`" in refused(opened, PlaceStage(replica=0, stage=0, devices=("a/cpuu",))).hint
    assert refused(opened, PlaceStage(replica=0, stage=0, devices=(spare[0], spare[0]))).code == "E107"


def test_a_tensor_group_takes_spare_devices_and_shares_by_speed(opened: Edited) -> None:
    assert possible_sizes(opened, BASIS, replica=0, stage=1) == (1, 2)
    split = apply_edit(opened, SetTensor(replica=0, stage=1, size=2), BASIS)
    stage = split.plan.replicas[0].stages[1]
    assert stage.tensor_parallel_size == 2
    assert sum(shard.kv_heads[1] - shard.kv_heads[0] for shard in stage.shards) == LLAMA_1B.num_kv_heads
    assert check_shape(split.plan, LLAMA_1B) == []
    shared = apply_edit(split, ShareHeads(replica=0, stage=1, kv_heads=(5, 3)), BASIS)
    assert [shard.heads for shard in shared.plan.replicas[0].stages[1].shards] == [(0, 20), (20, 32)]
    assert "2 ranks share 8" in refused(split, ShareHeads(replica=0, stage=1, kv_heads=(5, 4))).message
    joined = apply_edit(shared, SetTensor(replica=0, stage=1, size=1), BASIS)
    assert plan_to_toml(joined.plan) == plan_to_toml(opened.plan)


def test_a_group_has_no_more_devices_than_kv_heads_or_spare_ones(opened: Edited) -> None:
    assert "has 8 KV heads" in refused(opened, SetTensor(replica=0, stage=0, size=9)).message
    error = refused(opened, SetTensor(replica=0, stage=0, size=3))
    assert (error.code, error.message) == ("E602", "stage 0.0 needs 2 more cpu devices, 1 are spare")


def test_groups_grow_within_their_host_first() -> None:
    basis = Basis(LLAMA_70B, MIXED_GPUS)
    edited = begin_edit(plan_for(LLAMA_70B, MIXED_GPUS), basis)
    halved = apply_edit(edited, SetTensor(replica=0, stage=0, size=1), basis)
    again = apply_edit(halved, SetTensor(replica=0, stage=0, size=2), basis)
    assert devices(again.plan)[0] == ["big0/cuda:0", "big0/cuda:1"]
    assert plan_to_toml(again.plan) == plan_to_toml(edited.plan)


def test_a_stage_is_added_and_removed_with_layers_balanced(opened: Edited) -> None:
    added = apply_edit(opened, AddStage(replica=0, stage=0, devices=("d/cpu",)), BASIS)
    assert len(layers(added.plan)) == 4
    assert devices(added.plan)[1] == ["d/cpu"]
    assert layers(added.plan)[0][0] == 0
    assert layers(added.plan)[1][1] == layers(opened.plan)[0][1]
    removed = apply_edit(added, RemoveStage(replica=0, stage=1), BASIS)
    assert devices(removed.plan) == devices(opened.plan)
    assert check_shape(removed.plan, LLAMA_1B) == []
    for stage in (2, 0):
        removed = apply_edit(removed, RemoveStage(replica=0, stage=stage), BASIS)
    assert layers(removed.plan) == [(0, 16)]
    assert refused(removed, RemoveStage(replica=0, stage=0)).code == "E106"
    assert "add another first" in refused(removed, MoveBoundary(replica=0, stage=0, layers=1)).hint


def test_serving_settings_are_converted_and_told_with_what_they_may_be(opened: Edited) -> None:
    longer = apply_edit(opened, SetServing(field="context", value="8192"), BASIS)
    assert longer.plan.serving.context == 8192
    kv_cache = [shard.bytes.kv_cache for stage in longer.plan.replicas[0].stages for shard in stage.shards]
    before = [shard.bytes.kv_cache for stage in opened.plan.replicas[0].stages for shard in stage.shards]
    assert kv_cache == [4 * num_bytes for num_bytes in before]
    assert longer.plan.why[0] == "edited by hand: context 8192, in the place of 2048"
    assert "did you mean `context`" in refused(opened, SetServing(field="contex", value=1)).hint
    assert "one of: none, int8" in refused(opened, SetServing(field="quantisation", value="int7")).hint
    assert "batch = 0" in refused(opened, SetServing(field="batch", value="0")).message
    assert "a whole number" in refused(opened, SetServing(field="batch", value="many")).hint
    assert refused(opened, SetServing(field="trusted_network", value=True)).code == "E106"
    assert "above the 131072" in refused(opened, SetServing(field="context", value=200_000)).message


def test_a_short_context_is_predicted_for_a_shorter_prompt_and_back(opened: Edited) -> None:
    short = apply_edit(opened, SetServing(field="context", value=256), BASIS)
    assert short.plan.predicted.prompt_tokens == 128
    back = apply_edit(short, SetServing(field="context", value=2048), BASIS)
    assert plan_to_toml(back.plan) == plan_to_toml(opened.plan)


def test_a_draft_model_leaves_and_comes_back() -> None:
    basis = Basis(LLAMA_1B, THREE_CPUS, draft=LLAMA_TINY)
    edited = begin_edit(plan_for(LLAMA_1B, THREE_CPUS, stages=2, **drafting()), basis)
    without = apply_edit(edited, SetServing(field="speculation", value="none"), basis)
    assert without.plan.draft is None
    assert without.problems == ()
    back = apply_edit(without, SetServing(field="speculation", value="draft_model"), basis)
    assert plan_to_toml(back.plan) == plan_to_toml(edited.plan)
    plain = begin_edit(plan_for(LLAMA_1B, THREE_CPUS, stages=2), BASIS)
    assert "--draft" in refused(plain, SetServing(field="speculation", value="draft_model")).hint


def test_an_excluded_host_is_planned_around_with_as_many_hosts(opened: Edited) -> None:
    gone = devices(opened.plan)[0][0].partition("/")[0]
    again = apply_edit(opened, Replan(excluded=(gone,)), BASIS)
    assert gone not in again.plan.hosts
    assert len({name[0] for name in devices(again.plan)}) == 3
    assert again.excluded == (gone,)
    assert again.problems == ()
    assert not again.plan.why[0].startswith("edited"), "it is the planner's own plan"
    with_d = apply_edit(opened, Replan(pinned=("d",)), BASIS)
    assert ["d/cpu"] in devices(with_d.plan)
    assert "both pinned and excluded" in refused(opened, Replan(pinned=("d",), excluded=("d",))).message
    assert refused(opened, Replan(excluded=("nobody",))).hint == "known: a, b, c, d"
    assert refused(opened, Replan(excluded=("a", "b", "c", "d"))).code == "E602"


def test_a_plan_of_a_lost_host_can_still_be_planned_around(opened: Edited) -> None:
    lost = devices(opened.plan)[1][0].partition("/")[0]
    basis = Basis(LLAMA_1B, cluster(*(each for each in FOUR_CPUS.hosts if each.name != lost)))
    edited = begin_edit(opened.plan, basis)
    assert edited.plan == opened.plan
    assert any(problem.host == lost for problem in edited.problems)
    assert "exclude its host" in refused(edited, MoveBoundary(replica=0, stage=0, layers=1), basis).hint
    again = apply_edit(edited, Replan(excluded=(lost,)), basis)
    assert again.problems == ()


def test_a_plan_that_was_drawn_is_no_draw_once_it_is_edited() -> None:
    made = make_plan(request(LLAMA_1B, FOUR_CPUS, stages=2))
    drawn = msgspec.structs.replace(made, learning=Learning(propensity=0.1))
    edited = begin_edit(drawn, BASIS)
    assert edited.plan == drawn
    moved = apply_edit(edited, MoveBoundary(replica=0, stage=0, layers=-1), BASIS)
    assert moved.plan.learning is None


def test_a_plan_that_does_not_cover_its_model_is_not_opened(opened: Edited) -> None:
    replica = opened.plan.replicas[0]
    short = msgspec.structs.replace(
        opened.plan, replicas=(msgspec.structs.replace(replica, stages=replica.stages[:-1]),)
    )
    with pytest.raises(FleetError) as caught:
        begin_edit(short, BASIS)
    assert caught.value.code == "E107"
    assert "the last stage ends at layer" in caught.value.message


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (MoveBoundary(replica=0, stage=1, layers=-1), "boundary behind stage 0.1: -1 layer"),
        (SetTensor(replica=0, stage=1, size=2), "stage 0.1 over 2 devices"),
        (PlaceStage(replica=0, stage=1, devices=("a/cpu",)), "stage 0.1 on a/cpu"),
        (AddStage(replica=1, stage=0, devices=("a/cpu",)), "a stage behind 1.0 on a/cpu"),
        (RemoveStage(replica=0, stage=1), "no stage 0.1"),
        (ShareHeads(replica=0, stage=1, kv_heads=(5, 3)), "KV heads of stage 0.1: 5:3"),
        (SetServing(field="batch", value=4), "batch = 4"),
        (Replan(excluded=("a",), pinned=("b",)), "planned anew without a with b"),
    ],
)
def test_every_edit_has_words(edit: Edit, words: str) -> None:
    assert edit_words(edit) == words


# --- what holds after any edits -----------------------------------------------------------------------

TINY = model(num_layers=9, kv_heads=4, heads=8)
TINY_FACTS = cluster(*(host(name, cpu(8 if name < "d" else 0.5)) for name in "abcde"))
TINY_BASIS = Basis(TINY, TINY_FACTS)
NAMES = tuple(f"{each.name}/cpu" for each in TINY_FACTS.hosts)

positions = {"replica": st.integers(0, 1), "stage": st.integers(0, 3)}
some_devices = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).map(tuple)
edits: st.SearchStrategy[Edit] = st.one_of(
    st.builds(MoveBoundary, **positions, layers=st.integers(-4, 4)),
    st.builds(SetTensor, **positions, size=st.integers(1, 4)),
    st.builds(PlaceStage, **positions, devices=some_devices),
    st.builds(AddStage, **positions, devices=some_devices),
    st.builds(RemoveStage, **positions),
    st.builds(ShareHeads, **positions, kv_heads=st.sampled_from(((1, 3), (3, 1), (2, 1, 1)))),
    st.builds(SetServing, field=st.just("context"), value=st.sampled_from((64, 256, 4096))),
    st.builds(SetServing, field=st.just("quantisation"), value=st.sampled_from(("none", "int8"))),
    st.builds(Replan, excluded=st.sampled_from(((), ("a",), ("b", "e")))),
)


def opened_tiny(num_replicas: int) -> Edited:
    asked = {"serving": SMALL_SERVING, "stages": 4 // num_replicas, "replicas": num_replicas}
    return begin_edit(plan_for(TINY, TINY_FACTS, **asked), TINY_BASIS)


@settings(max_examples=40, deadline=None)
@given(asked=st.lists(edits, max_size=8), num_replicas=st.integers(1, 2))
def test_after_any_edits_layers_are_covered_bytes_exact_and_undo_is_to_the_byte(
    asked: list[Edit], num_replicas: int
) -> None:
    past = [opened_tiny(num_replicas)]
    texts = [plan_to_toml(past[0].plan)]
    for edit in asked:
        edited = _tried(past[-1], edit)
        if edited is past[-1]:
            continue
        past.append(edited)
        texts.append(plan_to_toml(edited.plan))
        for replica in edited.plan.replicas:
            held = [layer for stage in replica.stages for layer in range(*stage.layers)]
            assert held == list(range(TINY.num_layers))
        codes = {problem.code for problem in check_plan(edited.plan, TINY, TINY_FACTS)}
        assert codes <= {"E601"}, "shape, shares and bytes are always right; memory may lack"
        assert plan_from_toml(texts[-1], file="plan.toml") == edited.plan
    while past:
        assert plan_to_toml(past.pop().plan) == texts.pop()


@settings(max_examples=40, deadline=None)
@given(asked=st.lists(edits, max_size=4), stage=st.integers(0, 2), by=st.integers(-5, 5))
def test_a_boundary_there_and_back_is_nothing_from_anywhere(asked: list[Edit], stage: int, by: int) -> None:
    edited = opened_tiny(1)
    for edit in asked:
        edited = _tried(edited, edit)
    there = _tried(edited, MoveBoundary(replica=0, stage=stage, layers=by))
    back = (
        apply_edit(there, MoveBoundary(replica=0, stage=stage, layers=-by), TINY_BASIS)
        if there != edited
        else there
    )
    assert plan_to_toml(back.plan) == plan_to_toml(edited.plan)


def _tried(edited: Edited, edit: Edit) -> Edited:
    """The same value where the edit gives no plan: it has to be refused with a code of those documented."""
    try:
        return apply_edit(edited, edit, TINY_BASIS)
    except FleetError as error:
        if error.code not in {"E106", "E107", "E601", "E602"}:
            raise
        return edited
