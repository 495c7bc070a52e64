from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.planner.check import check_plan
from agent.planner.plan import Objective, Plan
from tests.agent.planner.clusters import (
    GB,
    LLAMA_1B,
    LLAMA_70B,
    MIXED_GPUS,
    THREE_CPUS,
    cluster,
    cpu,
    host,
    plan_for,
)


def hosts_of(plan: Plan) -> list[set[str]]:
    return [{shard.host for stage in replica.stages for shard in stage.shards} for replica in plan.replicas]


def racked() -> ClusterFacts:
    return cluster(
        *(
            msgspec.structs.replace(host(f"h{index}", cpu(2.4)), labels={"rack": "ab"[index // 2]})
            for index in range(4)
        )
    )


def test_pinned_hosts_have_ranks_though_one_device_would_be_faster() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, pinned=("b", "c"))
    assert hosts_of(plan) == [{"b", "c"}]
    assert check_plan(plan, LLAMA_1B, THREE_CPUS) == []
    assert hosts_of(plan_for(LLAMA_1B, THREE_CPUS, pinned=("c",))) == [{"c"}]


def test_other_hosts_join_the_pinned_ones_until_the_model_fits() -> None:
    plan = plan_for(LLAMA_70B, MIXED_GPUS, pinned=("old1",))
    assert "old1" in hosts_of(plan)[0]
    assert check_plan(plan, LLAMA_70B, MIXED_GPUS) == []


def test_an_excluded_device_has_no_rank() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, excluded=("a/cpu", "b/cpu"))
    assert hosts_of(plan) == [{"c"}]


def test_reserved_memory_is_left_alone() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, reserved_bytes={"a/cpu": 7 * GB, "b/cpu": 8 * GB})
    assert hosts_of(plan) == [{"c"}]
    split = plan_for(LLAMA_1B, THREE_CPUS, reserved_bytes={"a/cpu": 6 * GB}, stages=3)
    held = {s.host: s.bytes.total for stage in split.replicas[0].stages for s in stage.shards}
    assert held["a"] <= 2 * GB


def test_replicas_are_spread_over_fault_domains() -> None:
    """Each rack holds the model with both of its hosts only."""
    plan = plan_for(LLAMA_1B, racked(), replicas=2, spread="rack")
    assert sorted(map(sorted, hosts_of(plan))) == [["h0", "h1"], ["h2", "h3"]]


def test_a_plan_keeps_its_slo_or_is_refused() -> None:
    """Throughput alone would take the longer time per token."""
    free = plan_for(LLAMA_70B, MIXED_GPUS, objective=Objective(kind="throughput"))
    least = plan_for(LLAMA_70B, MIXED_GPUS)
    bound = least.predicted.time_per_token_s * 1.001
    held = plan_for(LLAMA_70B, MIXED_GPUS, objective=Objective(kind="throughput"), max_time_per_token_s=bound)
    assert held.predicted.time_per_token_s <= bound
    assert held.predicted.tokens_per_s <= free.predicted.tokens_per_s * (1 + 1e-6)


@pytest.mark.parametrize(
    ("asked", "code", "part"),
    [
        ({"max_ttft_s": 1e-6}, "E602", "keeps 1 us to the first token (without it: "),
        ({"max_time_per_token_s": 1e-6}, "E602", "keeps 1 us per token (without it: "),
        ({"max_time_per_token_s": 1e-6, "max_ttft_s": 1e-6}, "E602", "together 1 us to the first token, 1 us per"),
        ({"pinned": ("nowhere",)}, "E106", "no host `nowhere`"),
        ({"pinned": ("a",), "excluded": ("a/cpu",)}, "E107", "host `a` is pinned, but none of its devices"),
        ({"pinned": ("a", "b"), "max_hosts": 1}, "E107", "2 hosts are pinned, at most 1"),
        ({"pinned": ("a",), "replicas": 2}, "E107", "one replica"),
        ({"excluded": ("a/gpu",)}, "E106", "no device `a/gpu`"),
        ({"reserved_bytes": {"a/cpu": 9 * GB}}, "E106", "9000000000 bytes of a/cpu are reserved, of 8000000000"),
        (
            {"replicas": 2, "spread": "rack"},
            "E602",
            "2 replicas cannot be spread over 0 values of the label `rack`",
        ),
    ],
)
def test_constraints_that_cannot_be_kept_are_refused_by_name(asked: dict[str, Any], code: str, part: str) -> None:
    with pytest.raises(FleetError) as refused:
        plan_for(LLAMA_1B, THREE_CPUS, **asked)
    assert refused.value.code == code
    assert part in refused.value.message


def test_the_number_of_hosts_is_named_when_it_binds() -> None:
    with pytest.raises(FleetError) as refused:
        plan_for(LLAMA_1B, racked(), max_hosts=1)
    assert refused.value.code == "E602"
    assert "at most 1 hosts (without it: " in refused.value.message


def devices_of(plan: Plan) -> set[str]:
    return {f"{s.host}/{s.device}" for replica in plan.replicas for stage in replica.stages for s in stage.shards}


def test_a_pinned_device_has_a_rank_though_another_of_its_host_would_do() -> None:
    plan = plan_for(LLAMA_1B, MIXED_GPUS, pinned=("big1/cuda:1",), max_hosts=1, tensor=1)
    assert devices_of(plan) == {"big1/cuda:1"}
    several = plan_for(LLAMA_1B, MIXED_GPUS, pinned=("big1/cuda:1", "big1/cuda:0", "old2"))
    assert {"big1/cuda:0", "big1/cuda:1", "old2/cuda:0"} == devices_of(several)
    assert check_plan(several, LLAMA_1B, MIXED_GPUS) == []


def test_a_host_is_excluded_with_all_of_its_devices() -> None:
    plan = plan_for(LLAMA_1B, MIXED_GPUS, excluded=("big0", "big1/cuda:0"), min_hosts=7)
    assert not devices_of(plan) & {"big0/cuda:0", "big0/cuda:1", "big1/cuda:0"}


@pytest.mark.parametrize(
    ("asked", "code", "message", "hint"),
    [
        ({"pinned": ("bog1",)}, "E106", "no host `bog1` in the cluster to pin", "did you mean `big1`?"),
        ({"pinned": ("big1/cuda:2",)}, "E106", "no device `big1/cuda:2`", "`big1/cuda:1` or `big1/cuda:0`"),
        ({"excluded": ("old",)}, "E106", "no host `old` in the cluster to exclude", "`old3` or `old2` or `old1`"),
        ({"excluded": ("old0/cpu",)}, "E106", "no device `old0/cpu` in the cluster to exclude", "`old0/cuda:0`"),
        (
            {"pinned": ("big1/cuda:0",), "excluded": ("big1/cuda:0",)},
            "E107",
            "device `big1/cuda:0` is pinned, but may not be used",
            "drop --pin",
        ),
    ],
)
def test_unknown_names_list_the_nearest(asked: dict[str, Any], code: str, message: str, hint: str) -> None:
    with pytest.raises(FleetError) as refused:
        plan_for(LLAMA_1B, MIXED_GPUS, **asked)
    assert refused.value.code == code
    assert message in refused.value.message
    assert hint in refused.value.detail.hint
