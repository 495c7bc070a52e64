from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from agent.errors import FleetError
from agent.facts.model import ModelSpec
from agent.planner.check import check_plan, raise_problems
from agent.planner.plan import Objective, Plan, Shard, Stage
from agent.planner.staleness import facts_digest, what_moved
from tests.agent.planner.clusters import LLAMA_1B, LLAMA_TINY, THREE_CPUS, cluster, cpu, drafting, host, plan_for

replace: Callable[..., Any] = msgspec.structs.replace


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Stage 0 on one device, stage 1 shared by two."""
    # for throughput both stages hold several layers
    return plan_for(LLAMA_1B, THREE_CPUS, tensor_parallel_sizes=(1, 2), objective=Objective(kind="throughput"))


def with_stage(plan: Plan, index: int, change: Callable[[Stage], Stage]) -> Plan:
    (replica,) = plan.replicas
    stages = tuple(change(stage) if s == index else stage for s, stage in enumerate(replica.stages))
    return replace(plan, replicas=(replace(replica, stages=stages),))  # type: ignore[no-any-return]


def with_shard(plan: Plan, stage: int, index: int, change: Callable[[Shard], Shard]) -> Plan:
    return with_stage(
        plan,
        stage,
        lambda old: replace(
            old, shards=tuple(change(shard) if t == index else shard for t, shard in enumerate(old.shards))
        ),
    )


def found(plan: Plan) -> dict[str, str]:
    """Paths of a plan's problems, with their codes."""
    return {problem.path: problem.code for problem in check_plan(plan, LLAMA_1B, THREE_CPUS)}


def test_a_made_plan_has_no_problem(plan: Plan) -> None:
    assert found(plan) == {}
    raise_problems([])


def test_a_draft_model_is_held_against_the_plan() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, tensor_parallel_sizes=(1, 2), **drafting())
    assert plan.draft is not None
    assert check_plan(plan, LLAMA_1B, THREE_CPUS, draft=LLAMA_TINY) == []

    def problems(changed: Plan, draft: ModelSpec = LLAMA_TINY) -> dict[str, str]:
        return {each.path: each.code for each in check_plan(changed, LLAMA_1B, THREE_CPUS, draft=draft)}

    heavier = replace(plan, draft=replace(plan.draft, weight_bytes=plan.draft.weight_bytes + 1))
    assert problems(heavier) == {"draft.weight_bytes": "E107"}
    other = replace(plan, draft=replace(plan.draft, digest="other"))
    assert problems(other, replace(LLAMA_TINY, digest="this")) == {"draft.digest": "E401"}
    assert problems(plan, replace(LLAMA_TINY, max_context=1024)) == {"serving.context": "E106"}
    forgotten = with_shard(
        plan,
        1,
        0,
        lambda shard: replace(shard, bytes=replace(shard.bytes, weights=shard.bytes.weights - 8)),
    )
    (problem,) = check_plan(forgotten, LLAMA_1B, THREE_CPUS, draft=LLAMA_TINY)
    assert (problem.path, problem.code) == ("replica[0].stage[1].shard[0].bytes", "E107")
    assert "its shard with draft model llama-tiny takes" in problem.message


def test_a_gap_and_a_short_end_in_the_layers_are_found(plan: Plan) -> None:
    first, end = plan.replicas[0].stages[1].layers
    problems = found(with_stage(plan, 1, lambda stage: replace(stage, layers=(first + 1, end - 1))))
    assert problems["replica[0].stage[1].layers"] == "E107"
    message = next(
        problem.message
        for problem in check_plan(
            with_stage(plan, 1, lambda s: replace(s, layers=(first, 15))), LLAMA_1B, THREE_CPUS
        )
        if problem.path.endswith("layers")
    )
    assert "ends at layer 15" in message
    assert "has 16" in message


@pytest.mark.parametrize("field", ["columns", "vocab", "kv_heads", "heads"])
def test_shares_that_overlap_are_found(plan: Plan, field: str) -> None:
    def overlap(shard: Shard) -> Shard:
        begin, end = getattr(shard, field)
        return replace(shard, **{field: (begin - 1, end)})  # type: ignore[no-any-return]

    assert found(with_shard(plan, 1, 1, overlap))[f"replica[0].stage[1].shard[1].{field}"] == "E107"


def test_query_heads_must_go_with_their_kv_heads(plan: Plan) -> None:
    def shift(shard: Shard) -> Shard:
        return replace(shard, kv_heads=(0, 3))  # type: ignore[no-any-return]

    assert "replica[0].stage[1].shard[0].heads" in found(with_shard(plan, 1, 0, shift))


def test_a_device_twice_or_unknown_is_found(plan: Plan) -> None:
    used = plan.replicas[0].stages[0].shards[0].host
    twice = with_shard(plan, 1, 0, lambda shard: replace(shard, host=used))
    assert found(twice)["replica[0].stage[1].shard[0].device"] == "E107"
    unknown = with_shard(plan, 1, 0, lambda shard: replace(shard, device="cuda:3"))
    assert found(unknown)["replica[0].stage[1].shard[0].device"] == "E106"


def test_recorded_bytes_must_be_the_computed_ones(plan: Plan) -> None:
    off_by_one = with_shard(
        plan, 0, 0, lambda shard: replace(shard, bytes=replace(shard.bytes, weights=shard.bytes.weights + 1))
    )
    (problem,) = check_plan(off_by_one, LLAMA_1B, THREE_CPUS)
    assert problem.path == "replica[0].stage[0].shard[0].bytes"
    right = plan.replicas[0].stages[0].shards[0].bytes
    assert f"takes {right.total}" in problem.message
    assert f"weights = {right.weights}" in problem.way_out


def test_less_memory_than_needed_is_found_with_the_bytes_short(plan: Plan) -> None:
    name = plan.replicas[0].stages[1].shards[0].host
    smaller = cluster(*(host(h.name, cpu(0.5)) if h.name == name else h for h in THREE_CPUS.hosts))
    problems = {problem.code: problem for problem in check_plan(plan, LLAMA_1B, smaller)}
    assert set(problems) == {"E601", "E401"}
    assert f"{name}/cpu is" in problems["E601"].message
    assert "500 MB are usable" in problems["E601"].message
    assert problems["E601"].host == name


def test_controllers_and_gateway_must_be_known(plan: Plan) -> None:
    strange = replace(plan, controllers=("a", "z"), serving=replace(plan.serving, gateway="y"))
    problems = found(strange)
    assert (problems["controllers[1]"], problems["serving.gateway"]) == ("E106", "E106")


def test_another_digest_or_context_is_found(plan: Plan) -> None:
    other = replace(plan, model=replace(plan.model, digest="e" * 64))
    assert found(other) == {"model.digest": "E401"}
    assert "serving.context" in found(replace(plan, serving=replace(plan.serving, context=200_000)))


def test_all_problems_are_raised_together(plan: Plan) -> None:
    broken = replace(plan, controllers=("z",), model=replace(plan.model, digest="e" * 64))
    with pytest.raises(FleetError) as raised:
        raise_problems(check_plan(broken, LLAMA_1B, THREE_CPUS))
    assert raised.value.code == "E401"
    assert "controllers[0]" in raised.value.message


def test_the_facts_digest_ignores_rates_order_and_other_hosts(plan: Plan) -> None:
    measured = cluster(
        *(host(h.name, replace(h.devices[0], read_bytes_per_s=9e9)) for h in reversed(THREE_CPUS.hosts)),
        host("newcomer", cpu(4)),
    )
    assert facts_digest(measured, plan.hosts) == plan.facts_digest
    assert what_moved(plan, measured) == ()


def test_what_moved_names_hosts_and_devices(plan: Plan) -> None:
    gone = cluster(*(h for h in THREE_CPUS.hosts if h.name != "b"))
    assert what_moved(plan, gone) == ("host b is gone",)
    smaller = cluster(*(host(h.name, cpu(0.1)) if h.name == "b" else h for h in THREE_CPUS.hosts))
    (line,) = what_moved(plan, smaller)
    assert line.startswith("host b has other devices or memory: cpu has 100 MB usable")
    roomier = cluster(*(host(h.name, cpu(99)) if h.name == "b" else h for h in THREE_CPUS.hosts))
    assert "now cpu cpu with 99.0 GB" in what_moved(plan, roomier)[0]
