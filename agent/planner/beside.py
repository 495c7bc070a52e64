"""A plan beside deployments that serve already: whom it would share hosts with, and where memory is short. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agent.facts.cluster import ClusterFacts
from agent.planner.check import PlanProblem
from agent.planner.plan import Plan, rank_places
from agent.planner.words import bytes_words, list_words


def shared_hosts(plan: Plan, serving: Sequence[Plan]) -> dict[str, tuple[str, ...]]:
    """Hosts on which the plan would compute and something does already, with the names of what does. Sorted."""
    found: dict[str, list[str]] = {}
    for other in serving:
        for host in busy_hosts(plan) & busy_hosts(other):
            found.setdefault(host, []).append(other.name)
    return {host: tuple(sorted(found[host])) for host in sorted(found)}


def busy_hosts(plan: Plan) -> set[str]:
    """Those of its ranks and of its gateway: controllers only watch."""
    return {place.shard.host for place in rank_places(plan)} | {plan.gateway_host}


def memory_beside(plan: Plan, serving: Sequence[Plan], facts: ClusterFacts) -> list[PlanProblem]:
    """E601 for every device that has no room for the plan's shard beside the shards that it holds for others."""
    devices = {(host.name, device.id): device for host in facts.hosts for device in host.devices}
    held: dict[tuple[str, str], dict[str, int]] = {}
    for other in serving:
        for place in rank_places(other):
            key = (place.shard.host, place.shard.device)
            held.setdefault(key, {})[other.name] = place.shard.bytes.total
    problems = []
    for place in rank_places(plan):
        key = (place.shard.host, place.shard.device)
        device, beside = devices.get(key), held.get(key, {})
        if device is None or not beside:
            continue
        missing = place.shard.bytes.total + sum(beside.values()) - device.usable_bytes
        if missing > 0:
            problems.append(
                PlanProblem(
                    code="E601",
                    path=f"replica[{place.replica}].stage[{place.stage}].shard[{place.tensor_index}]",
                    message=f"{'/'.join(key)} is {bytes_words(missing)} short: the shard takes "
                    f"{bytes_words(place.shard.bytes.total)} beside {bytes_words(sum(beside.values()))} of "
                    f"{list_words(sorted(beside))}, {bytes_words(device.usable_bytes)} are usable",
                    way_out="plan it on other hosts, shorten its context, or destroy what serves there first",
                    host=place.shard.host,
                )
            )
    return problems
