"""Replicas over small clusters, searched exactly, and over large ones, packed by domain."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts, HostFacts
from agent.planner.check import check_plan
from agent.planner.plan import Objective, ObjectiveKind, Plan, Serving, rank_places
from agent.planner.replicas import EXACT_DEVICES
from tests.agent.planner.clusters import LLAMA_70B, MIXED_GPUS, cluster, gpu, host, model, plan_for
from tests.agent.planner.fleets import fleet_facts, grouped_facts

SMALL = model(num_layers=6, hidden=1024, intermediate=4096, heads=8, kv_heads=4, head_size=128)
SERVING = Serving(context=512, batch=4, prefill_chunk=64)
THROUGHPUT = Objective(kind="throughput")
TRUSTED = Serving(trusted_network=True)


def labelled(name: str, gigabytes: float, speed: int, **labels: str) -> HostFacts:
    device = gpu(0, "L4", gigabytes, read_gb_per_s=50 + 40 * speed)
    return msgspec.structs.replace(host(name, device), labels=labels)


def check_replicas(plan: Plan, facts: ClusterFacts, spec: Any = SMALL) -> None:
    """Everything fits by the bytes of the plan file, and no device is used twice."""
    assert check_plan(plan, spec, facts) == []
    used = [(place.shard.host, place.shard.device) for place in rank_places(plan)]
    assert len(used) == len(set(used))


def hosts_of(plan: Plan) -> list[set[str]]:
    return [{shard.host for stage in replica.stages for shard in stage.shards} for replica in plan.replicas]


kinds = st.sampled_from([(1.3, 0), (1.5, 1), (2.2, 2)])
LEAST_GIGABYTES = 3.9
"""Three of the smallest cards hold the model."""


@given(sizes=st.lists(kinds, min_size=2, max_size=5), more=kinds, kind=st.sampled_from(["throughput", "latency"]))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_replica_fits_and_a_host_more_never_serves_less(
    sizes: list[tuple[float, int]], more: tuple[float, int], kind: ObjectiveKind
) -> None:
    hosts = [labelled(f"h{index}", *size) for index, size in enumerate(sizes)]
    asked: dict[str, Any] = {"serving": SERVING, "replicas": "max", "objective": Objective(kind=kind)}
    facts, wider = cluster(*hosts), cluster(*hosts, labelled("new", *more))
    if sum(gigabytes for gigabytes, _ in sizes) < LEAST_GIGABYTES:
        return
    before, after = plan_for(SMALL, facts, **asked), plan_for(SMALL, wider, **asked)
    check_replicas(before, facts)
    check_replicas(after, wider)
    if kind == "throughput":
        assert after.predicted.tokens_per_s >= before.predicted.tokens_per_s * (1 - 1e-5)
    else:
        assert len(after.replicas) >= len(before.replicas)


@given(
    seed=st.integers(0, 1000),
    num_hosts=st.integers(EXACT_DEVICES + 1, 160),
    asked=st.sampled_from(
        [
            {"replicas": "max"},
            {"replicas": "max", "domain": "rack"},
            {"replicas": "max", "spread": "rack"},
            {"replicas": 3, "spread": "rack"},
            {"replicas": 3, "domain": "rack"},
            {"replicas": "max", "max_hosts": 4},
            {"replicas": 12, "excluded": ("h00003", "h00007/cuda:0")},
        ]
    ),
    kind=st.sampled_from(["throughput", "latency"]),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_large_fleet_s_replicas_fit_and_keep_every_limit(
    seed: int, num_hosts: int, asked: dict[str, Any], kind: ObjectiveKind
) -> None:
    facts = fleet_facts(num_hosts, seed=seed)
    plan = plan_for(LLAMA_70B, facts, serving=TRUSTED, objective=Objective(kind=kind), **asked)
    check_replicas(plan, facts, LLAMA_70B)
    racks = {each.name: each.labels["rack"] for each in facts.hosts}
    values = [{racks[name] for name in hosts} for hosts in hosts_of(plan)]
    if asked["replicas"] != "max":
        assert len(plan.replicas) == asked["replicas"]
    if "domain" in asked:
        assert all(len(value) == 1 for value in values)
    if "spread" in asked:
        assert sum(map(len, values)) == len(set().union(*values))
    assert all(len(hosts) <= asked.get("max_hosts", num_hosts) for hosts in hosts_of(plan))
    assert not set().union(*hosts_of(plan)) & {name for name in asked.get("excluded", ()) if "/" not in name}


def test_max_serves_more_than_any_number_asked_for() -> None:
    asked: dict[str, Any] = {"objective": THROUGHPUT}
    most = plan_for(model_of_a_card(), MIXED_GPUS, replicas="max", **asked)
    check_replicas(most, MIXED_GPUS, model_of_a_card())
    for count in (1, 4, 12):
        one = plan_for(model_of_a_card(), MIXED_GPUS, replicas=count, **asked)
        assert len(one.replicas) == count
        assert one.predicted.tokens_per_s <= most.predicted.tokens_per_s * (1 + 1e-6)


def model_of_a_card() -> Any:
    """Each of the twelve cards holds all of it."""
    return model(name="small", num_layers=16, hidden=2048, intermediate=8192, heads=32, kv_heads=8, head_size=64)


def test_a_domain_holds_each_replica_and_the_rest_is_told() -> None:
    hosts = [labelled(f"h{index}", 1.3, 1, rack="abb"[index // 2]) for index in range(6)]
    facts = cluster(*hosts, labelled("alone", 2.2, 2))
    plan = plan_for(SMALL, facts, serving=SERVING, replicas="max", domain="rack")
    check_replicas(plan, facts)
    for own in hosts_of(plan):
        assert own <= {"h0", "h1"} or own <= {"h2", "h3", "h4", "h5"}
    assert any(line.startswith("replicas stand within values of `rack`") for line in plan.why)
    assert any("without the label `rack`: alone" in line for line in plan.why)


def test_a_large_fleet_says_how_it_was_planned_and_what_is_left() -> None:
    facts = fleet_facts(200)
    plan = plan_for(LLAMA_70B, facts, serving=TRUSTED, replicas="max", objective=THROUGHPUT)
    assert any(
        "200 devices are too many to search exactly for as many replicas as fit" in line for line in plan.why
    )
    assert any(line.startswith("counting bound: ") for line in plan.why)
    used = len(rank_places(plan))
    if used < 200:
        assert any(line.startswith(f"left over: {200 - used} devices") for line in plan.why)
    low, high = plan.predicted.tokens_per_s_bounds
    assert low < plan.predicted.tokens_per_s < high


def test_few_replicas_of_a_large_fleet_are_as_good_as_those_of_its_fastest_hosts() -> None:
    """The best of 200 hosts is not worse than what the exact search finds on 100 of them."""
    facts = fleet_facts(200)
    some = cluster(*facts.hosts[:100])
    for kind in ("latency", "throughput", "ttft"):
        objective = Objective(kind=kind)
        large = plan_for(LLAMA_70B, facts, serving=TRUSTED, objective=objective).predicted
        small = plan_for(LLAMA_70B, some, serving=TRUSTED, objective=objective).predicted
        assert large.time_per_token_s <= small.time_per_token_s * 1.001 or kind != "latency"
        assert large.tokens_per_s >= small.tokens_per_s * 0.999 or kind != "throughput"
        assert large.ttft_s <= small.ttft_s * 1.001 or kind != "ttft"


@pytest.mark.parametrize(
    ("asked", "part", "hint"),
    [
        (
            {"replicas": "max", "tensor": 2},
            "200 devices are more than the 128 that are searched for",
            "narrow --hosts",
        ),
        ({"replicas": 40, "stages": 3}, "for replicas with --stages", "ask for fewer replicas"),
        ({"replicas": 2, "domain": "row"}, "no host has the label `row`", "known: rack"),
        ({"replicas": "max", "pinned": ("h00001",)}, "pinned hosts are for one replica", "drop --pin"),
    ],
)
def test_what_a_large_fleet_cannot_do_is_refused_by_name(asked: dict[str, Any], part: str, hint: str) -> None:
    with pytest.raises(FleetError) as refused:
        plan_for(LLAMA_70B, fleet_facts(200), serving=TRUSTED, **asked)
    assert part in refused.value.message
    assert hint in refused.value.detail.hint


def test_a_pinned_host_of_a_large_fleet_has_a_rank() -> None:
    plan = plan_for(LLAMA_70B, fleet_facts(200), serving=TRUSTED, pinned=("h00150",))
    assert "h00150" in hosts_of(plan)[0]


def test_what_does_not_fit_a_large_fleet_is_told_with_its_bytes() -> None:
    facts = cluster(*(host(f"h{index:03}", gpu(0, "T4", 1.4)) for index in range(150)))
    with pytest.raises(FleetError) as refused:
        plan_for(LLAMA_70B, facts, serving=TRUSTED, replicas=2)
    assert refused.value.code == "E601"
    assert "2 replicas of llama-70b do not fit on 150 devices: " in refused.value.message
    assert "189.0 GB" in refused.value.message, "what all of them leave to us"


def test_ten_thousand_hosts_are_planned() -> None:
    """docs/benchmarks.md has what it takes."""
    facts = fleet_facts(10_000)
    plan = plan_for(LLAMA_70B, facts, serving=TRUSTED, replicas="max", objective=THROUGHPUT)
    assert len(plan.replicas) > 1000


def sizes_of(plan: Plan) -> list[tuple[int, ...]]:
    return [tuple(stage.tensor_parallel_size for stage in replica.stages) for replica in plan.replicas]


GROUPED = grouped_facts(24)
"""192 devices, too many to search exactly."""


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("throughput", {"replicas": "max"}),
        ("throughput", {"replicas": 20, "spread": ""}),
        ("latency", {"replicas": 20}),
        ("ttft", {"replicas": 20, "max_hosts": 1}),
        ("energy", {"replicas": "max", "domain": "rack"}),
        ("latency", {"replicas": 4, "spread": "rack"}),
    ],
)
def test_packed_copies_of_groups_fit_and_are_no_worse_than_pipelines(
    kind: ObjectiveKind, asked: dict[str, Any]
) -> None:
    plan = plan_for(LLAMA_70B, GROUPED, serving=TRUSTED, objective=Objective(kind=kind), **asked)
    check_replicas(plan, GROUPED, LLAMA_70B)
    for replica in plan.replicas:
        for stage in replica.stages:
            assert len({shard.host for shard in stage.shards}) == 1, "groups stay within a host"
    if asked["replicas"] != "max":
        assert len(plan.replicas) == asked["replicas"]
    assert all(len(hosts) <= asked.get("max_hosts", 24) for hosts in hosts_of(plan))
    chain = Objective(kind=kind, strategy="pipeline")
    chains = plan_for(LLAMA_70B, GROUPED, serving=TRUSTED, objective=chain, **asked)
    assert set(map(max, sizes_of(chains))) == {1}
    match kind:
        case "throughput":
            assert plan.predicted.tokens_per_s > 1.1 * chains.predicted.tokens_per_s
        case "latency":
            assert plan.predicted.time_per_token_s < 0.8 * chains.predicted.time_per_token_s
        case "ttft":
            assert plan.predicted.ttft_s <= chains.predicted.ttft_s
        case _:
            assert len(plan.replicas) >= len(chains.replicas)


def test_domains_of_one_kind_decide_alike_and_of_others_for_themselves() -> None:
    plan = plan_for(LLAMA_70B, GROUPED, serving=TRUSTED, objective=THROUGHPUT, replicas="max")
    kinds = {host.name: host.devices[0].name for host in GROUPED.hosts}
    by_kind: dict[str, set[tuple[int, ...]]] = {}
    for hosts, sizes in zip(hosts_of(plan), sizes_of(plan), strict=True):
        by_kind.setdefault(kinds[min(hosts)], set()).add(sizes)
    assert all(len(sizes) <= 2 for sizes in by_kind.values())
    assert by_kind["L4"] != by_kind["H100"]


@pytest.mark.parametrize(
    ("asked", "is_kept"),
    [
        ({"objective": Objective(strategy="tensor")}, lambda sizes: len(sizes) == 1 and sizes[0] > 1),
        ({"objective": Objective(strategy="hybrid")}, lambda sizes: sum(sizes) > 1),
        ({"tensor": 2}, lambda sizes: set(sizes) == {2}),
        ({"tensor": 8, "objective": THROUGHPUT}, lambda sizes: set(sizes) == {8}),
    ],
)
def test_groups_that_are_asked_for_by_name_are_packed(asked: dict[str, Any], is_kept: Any) -> None:
    plan = plan_for(LLAMA_70B, GROUPED, serving=TRUSTED, replicas="max", **asked)
    check_replicas(plan, GROUPED, LLAMA_70B)
    assert len(plan.replicas) >= 20
    assert all(map(is_kept, sizes_of(plan)))


def test_ten_thousand_devices_in_groups_are_planned() -> None:
    facts = grouped_facts(1250)
    plan = plan_for(LLAMA_70B, facts, serving=TRUSTED, replicas="max", objective=THROUGHPUT)
    assert len(plan.replicas) > 1000
