"""Who talks to whom, over what: from the plan alone."""

from __future__ import annotations

import msgspec

from agent.planner.plan import Plan
from agent.supervisor.topology import links_by_host, starts_by_host
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, drafting, plan_for


def carriers(plan: Plan) -> dict[str, str]:
    links = links_by_host(plan, replicas=[0], generation=1, controller="a", timeout_s=1.0)
    found: dict[str, str] = {}
    for ranks in links.values():
        for rank in ranks.values():
            named = (*rank.sends_to, rank.receives_from, rank.group)
            for link in named:
                if link is not None:
                    assert found.setdefault(link.name, link.carrier) == link.carrier, "both ends use one carrier"
    return found


def place(plan: Plan, *, host: str | None = None, devices: list[str]) -> Plan:
    """The plan with its ranks on these devices, on one host or where they were."""
    left = iter(devices)
    replicas = tuple(
        msgspec.structs.replace(
            replica,
            stages=tuple(
                msgspec.structs.replace(
                    stage,
                    shards=tuple(
                        msgspec.structs.replace(shard, host=host or shard.host, device=next(left))
                        for shard in stage.shards
                    ),
                )
                for stage in replica.stages
            ),
        )
        for replica in plan.replicas
    )
    return msgspec.structs.replace(plan, replicas=replicas)


def test_hosts_talk_under_tls_and_a_host_with_itself_through_unix_sockets() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=2)
    assert carriers(plan) == {"r0s0t0>r0s1t0": "tls"}
    assert carriers(place(plan, host="one", devices=["cpu", "cpu"])) == {"r0s0t0>r0s1t0": "unix"}


def test_nccl_needs_two_devices_and_a_network_that_is_trusted() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=2)
    trusted = msgspec.structs.replace(plan, serving=msgspec.structs.replace(plan.serving, trusted_network=True))
    two = ["cuda:0", "cuda:0"]
    assert set(carriers(place(plan, devices=two)).values()) == {"tls"}
    assert set(carriers(place(trusted, devices=two)).values()) == {"nccl"}
    assert set(carriers(trusted).values()) == {"tcp"}
    assert set(carriers(place(plan, host="one", devices=["cuda:0", "cuda:1"])).values()) == {"nccl"}
    assert set(carriers(place(plan, host="one", devices=two)).values()) == {"unix"}


def test_the_leader_of_each_replicas_last_stage_is_started_with_the_draft_model() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, tensor_parallel_sizes=(1, 2), **drafting())
    starts = [start for of_host in starts_by_host(plan).values() for start in of_host]
    assert [start.rank_id for start in starts if start.has_draft] == ["r0s1t0"]
    plain = plan_for(LLAMA_1B, THREE_CPUS, replicas=2)
    assert not any(start.has_draft for of_host in starts_by_host(plain).values() for start in of_host)
    copies = plan_for(LLAMA_1B, THREE_CPUS, replicas=2, **drafting())
    starts = [start for of_host in starts_by_host(copies).values() for start in of_host]
    assert {start.rank_id for start in starts if start.has_draft} == {"r0s0t0", "r1s0t0"}
