"""What a plan was asked for beyond its objective and settings: kept in its file, told, and asked again. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from agent.facts.cluster import ClusterFacts
from agent.planner.plan import Asked, Plan
from agent.planner.words import bytes_words, list_words, seconds_words

if TYPE_CHECKING:
    # Showing a plan must not import what makes one, with its numpy.
    from agent.planner.problem import PlanRequest

SHOWN_NAMES = 8


def asked_of(request: PlanRequest) -> Asked | None:
    """A request's constraints; None where all was left to the planner."""
    facts_hosts = {host.name for host in request.facts.hosts}
    unselected = facts_hosts - set(request.hosts) if request.hosts else set()
    asked = Asked(
        hosts=request.selected,
        excluded=tuple(sorted({*request.excluded, *request.left_out, *unselected})),
        pinned=tuple(sorted(request.pinned)),
        reserved_bytes=dict(sorted(request.reserved_bytes.items())),
        stages=request.stages,
        tensor=request.tensor,
        tensor_parallel_sizes=request.tensor_parallel_sizes,
        min_hosts=request.min_hosts if request.min_hosts > 1 else None,
        max_hosts=request.max_hosts,
        is_most_replicas=request.replicas == "max",
        spread=request.spread,
        domain=request.domain,
        max_ttft_s=request.max_ttft_s,
        max_time_per_token_s=request.max_time_per_token_s,
        min_context=request.serving.context if request.objective.kind == "context" else None,
    )
    return None if asked == Asked() else asked


def ask_again(request: PlanRequest, asked: Asked | None) -> PlanRequest:
    """The request with these constraints, but for what the cluster has lost since: `lost_words` tells it."""
    if asked is None:
        return request
    known, labels = _names(request.facts), _labels(request.facts)
    usable = {
        f"{host.name}/{device.id}": device.usable_bytes for host in request.facts.hosts for device in host.devices
    }
    num_hosts = len(request.facts.hosts)
    serving = request.serving
    if asked.min_context is not None:
        serving = msgspec.structs.replace(serving, context=asked.min_context)
    return msgspec.structs.replace(
        request,
        serving=serving,
        selected=asked.hosts,
        left_out=tuple(name for name in asked.excluded if name not in known and "/" not in name),
        excluded=tuple(name for name in asked.excluded if name in known),
        pinned=tuple(name for name in asked.pinned if name in known),
        reserved_bytes={
            name: min(num_bytes, usable[name]) for name, num_bytes in asked.reserved_bytes.items() if name in usable
        },
        stages=asked.stages,
        tensor=asked.tensor,
        tensor_parallel_sizes=asked.tensor_parallel_sizes,
        min_hosts=min(asked.min_hosts or 1, num_hosts),
        max_hosts=asked.max_hosts,
        replicas="max" if asked.is_most_replicas else request.replicas,
        spread=asked.spread if asked.spread in labels else "",
        domain=asked.domain if asked.domain in labels else "",
        max_ttft_s=asked.max_ttft_s,
        max_time_per_token_s=asked.max_time_per_token_s,
    )


def asked_words(asked: Asked | None) -> list[str]:
    """Each constraint in a few words: `at most 3 hosts`, `gpu01 pinned` …; none where there are none."""
    if asked is None:
        return []
    words = [
        f"hosts {asked.hosts}" if asked.hosts else "",
        f"without {_listed(asked.excluded)}" if asked.excluded else "",
        f"{_listed(asked.pinned)} pinned" if asked.pinned else "",
        *(f"{bytes_words(size)} of {name} left alone" for name, size in asked.reserved_bytes.items()),
        f"{asked.stages} stages" if asked.stages is not None else "",
        f"tensor-parallel size {asked.tensor}" if asked.tensor is not None else "",
        f"tensor-parallel sizes {', '.join(map(str, asked.tensor_parallel_sizes))}"
        if asked.tensor_parallel_sizes
        else "",
        f"at least {asked.min_hosts} hosts" if asked.min_hosts is not None else "",
        f"at most {asked.max_hosts} hosts" if asked.max_hosts is not None else "",
        "as many replicas as there can be" if asked.is_most_replicas else "",
        f"replicas spread over `{asked.spread}`" if asked.spread else "",
        f"replicas within values of `{asked.domain}`" if asked.domain else "",
        f"{seconds_words(asked.max_ttft_s)} to the first token" if asked.max_ttft_s is not None else "",
        f"{seconds_words(asked.max_time_per_token_s)} per token" if asked.max_time_per_token_s is not None else "",
        f"a context of {asked.min_context} or more" if asked.min_context is not None else "",
    ]
    return [each for each in words if each]


def lost_words(asked: Asked | None, facts: ClusterFacts) -> list[str]:
    """What of it cannot be asked of this cluster any more."""
    if asked is None:
        return []
    known, labels = _names(facts), _labels(facts)
    gone = [name for name in (*asked.pinned, *asked.reserved_bytes) if name not in known]
    lines = [f"{_listed(gone)}: not in the cluster any more"] if gone else []
    for label in (asked.spread, asked.domain):
        if label and label not in labels:
            lines.append(f"no host has the label `{label}` any more")
    if (asked.min_hosts or 1) > len(facts.hosts):
        lines.append(f"only {len(facts.hosts)} hosts are left")
    return lines


def broken_words(plan: Plan) -> list[str]:
    """What of it the plan does not keep, as one that was edited by hand may not."""
    asked = plan.asked
    if asked is None:
        return []
    places = {
        (shard.host, shard.device)
        for replica in plan.replicas
        for stage in replica.stages
        for shard in stage.shards
    }
    names = {name for host, device in places for name in (host, f"{host}/{device}")}
    lines = []
    if used := [name for name in asked.excluded if name in names]:
        lines.append(f"{_listed(used)} was to be left out")
    if unused := [name for name in asked.pinned if name not in names]:
        lines.append(f"{_listed(unused)} was pinned")
    for replica in plan.replicas:
        num_hosts = len({shard.host for stage in replica.stages for shard in stage.shards})
        if not (asked.min_hosts or 1) <= num_hosts <= (asked.max_hosts or num_hosts):
            lines.append(f"a replica stands on {num_hosts} hosts")
            break
    predicted = plan.predicted
    for most, value, what in (
        (asked.max_ttft_s, predicted.ttft_s, "to the first token"),
        (asked.max_time_per_token_s, predicted.time_per_token_s, "per token"),
    ):
        # Plans are chosen by their estimates; a gateway's way and what a model has in common come on top.
        if most is not None and value > most:
            lines.append(f"{seconds_words(value)} {what} are predicted")
    return lines


def _listed(names: Iterable[str]) -> str:
    return list_words(tuple(names), most=SHOWN_NAMES)


def _names(facts: ClusterFacts) -> set[str]:
    devices = {f"{host.name}/{device.id}" for host in facts.hosts for device in host.devices}
    return devices | {host.name for host in facts.hosts}


def _labels(facts: ClusterFacts) -> set[str]:
    return {label for host in facts.hosts for label, value in host.labels.items() if value}
