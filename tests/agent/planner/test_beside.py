from __future__ import annotations

import msgspec
import pytest

from agent.facts.cluster import ClusterFacts
from agent.planner.beside import busy_hosts, memory_beside, shared_hosts
from agent.planner.plan import Plan, rank_places
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, plan_for


@pytest.fixture(scope="module")
def three() -> Plan:
    return plan_for(LLAMA_1B, THREE_CPUS, stages=3)


@pytest.fixture(scope="module")
def one() -> Plan:
    return msgspec.structs.replace(plan_for(LLAMA_1B, THREE_CPUS), name="other")


def test_hosts_that_compute_for_both_are_named(one: Plan, three: Plan) -> None:
    assert shared_hosts(three, [one]) == {"a": ("other",)}
    assert shared_hosts(three, []) == {}


def test_a_host_that_only_watches_is_not_busy(one: Plan) -> None:
    assert set(one.controllers) > {"a"}, "standby controllers are hosts of the plan"
    assert busy_hosts(one) == {"a"}


def test_memory_is_short_beside_what_serves_and_says_where_by_how_much(one: Plan, three: Plan) -> None:
    """Usable: what either takes alone, and ten bytes less than both."""
    held = next(place.shard.bytes.total for place in rank_places(three) if place.shard.host == "a")
    usable = held + one.replicas[0].stages[0].shards[0].bytes.total
    assert memory_beside(three, [one], with_usable(usable)) == []
    (problem,) = memory_beside(three, [one], with_usable(usable - 10))
    assert (problem.code, problem.host) == ("E601", "a")
    assert problem.message.startswith("a/cpu is 10 B short")
    assert "of other" in problem.message
    assert memory_beside(three, [], with_usable(0)) == [], "alone is for check_plan to say"


def with_usable(num_bytes: int) -> ClusterFacts:
    hosts = tuple(
        msgspec.structs.replace(
            host,
            devices=tuple(msgspec.structs.replace(device, usable_bytes=num_bytes) for device in host.devices),
        )
        for host in THREE_CPUS.hosts
    )
    return msgspec.structs.replace(THREE_CPUS, hosts=hosts)
