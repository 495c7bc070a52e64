"""Which rank talks to which: links and tensor groups of a plan. Pure.

A stage's hidden state is complete on each of its ranks after the last reduction. So rank j of the next stage
receives it from rank (j mod size) of the previous one: every directed link has two ends and no broadcast is
needed.
"""

from __future__ import annotations

from collections.abc import Collection

from agent.planner.carriers import carrier_among
from agent.planner.plan import Plan, RankPlace, draft_places, rank_places
from agent.planner.shards import ShardExtent
from agent.wire.agent import RankStart
from agent.wire.rank import LinkRank, PipelineLink, TensorGroup


def links_by_host(
    plan: Plan, *, replicas: Collection[int], generation: int, controller: str, timeout_s: float
) -> dict[str, dict[str, LinkRank]]:
    """For every host, what each of its ranks of these replicas is to link under `generation`."""
    links: dict[str, dict[str, LinkRank]] = {}
    for place in rank_places(plan):
        if place.replica not in replicas:
            continue
        links.setdefault(place.shard.host, {})[place.rank_id] = LinkRank(
            generation=generation,
            receives_from=_incoming(plan, place),
            sends_to=_outgoing(plan, place),
            group=_group(plan, place),
            timeout_s=timeout_s,
            controller=controller,
        )
    return links


def starts_by_host(plan: Plan) -> dict[str, tuple[RankStart, ...]]:
    """For every host, the ranks that it is to start."""
    drafting = {place.rank_id for place in draft_places(plan)}
    starts: dict[str, tuple[RankStart, ...]] = {}
    for place in rank_places(plan):
        start = RankStart(
            rank_id=place.rank_id,
            device=place.shard.device,
            extent=extent_of(plan, place),
            tensor_index=place.tensor_index,
            has_draft=place.rank_id in drafting,
        )
        starts[place.shard.host] = (*starts.get(place.shard.host, ()), start)
    return starts


def extent_of(plan: Plan, place: RankPlace) -> ShardExtent:
    """What of the model a rank of the plan owns."""
    shard = place.shard
    return ShardExtent(
        layers=place.layers,
        heads=shard.heads,
        kv_heads=shard.kv_heads,
        columns=shard.columns,
        vocab=shard.vocab,
        is_first_stage=place.stage == 0,
        is_last_stage=place.stage == len(plan.replicas[place.replica].stages) - 1,
    )


def _incoming(plan: Plan, place: RankPlace) -> PipelineLink | None:
    if place.stage == 0:
        return None
    previous = plan.replicas[place.replica].stages[place.stage - 1]
    sender = place.tensor_index % previous.tensor_parallel_size
    carrier = carrier_among(plan, previous.shards[sender], place.shard)
    sender_id = f"r{place.replica}s{place.stage - 1}t{sender}"
    return PipelineLink(name=f"{sender_id}>{place.rank_id}", other_rank=sender_id, carrier=carrier)


def _outgoing(plan: Plan, place: RankPlace) -> tuple[PipelineLink, ...]:
    stages = plan.replicas[place.replica].stages
    if place.stage == len(stages) - 1:
        return ()
    size = stages[place.stage].tensor_parallel_size
    links = []
    for index, shard in enumerate(stages[place.stage + 1].shards):
        if index % size == place.tensor_index:
            receiver_id = f"r{place.replica}s{place.stage + 1}t{index}"
            links.append(
                PipelineLink(
                    name=f"{place.rank_id}>{receiver_id}",
                    other_rank=receiver_id,
                    carrier=carrier_among(plan, place.shard, shard),
                )
            )
    return tuple(links)


def _group(plan: Plan, place: RankPlace) -> TensorGroup | None:
    shards = plan.replicas[place.replica].stages[place.stage].shards
    if len(shards) == 1:
        return None
    members = tuple(f"r{place.replica}s{place.stage}t{index}" for index in range(len(shards)))
    return TensorGroup(
        name=f"r{place.replica}s{place.stage}", members=members, carrier=carrier_among(plan, *shards)
    )
