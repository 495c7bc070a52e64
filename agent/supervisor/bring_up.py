"""The steps that give a generation its links, its gateway and its proof that it decodes.

Apply uses them for a new layout, healing for an old one under a new generation.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from agent.errors import FleetError
from agent.facts.model import ModelSpec
from agent.planner.plan import Plan, rank_places
from agent.supervisor.reach import Reach
from agent.supervisor.topology import links_by_host
from agent.wire.agent import Attach, EnsureGateway, LinkRanks, TellGateway, UnlinkRanks
from agent.wire.gateway import AttachBackend, BackendRef, CheckReport, RankEndpoint
from agent.wire.rank import RankStatus

LINK_TIMEOUT_S = 10.0
UNLINK_TIMEOUT_S = 5.0
CHECK_TIMEOUT_S = 330.0

GatewayVerb = Literal["check", "activate", "retire", "detach"]
Endpoints = tuple[tuple[tuple[RankEndpoint, ...], ...], ...]


async def link_all(
    reach: Reach,
    plan: Plan,
    *,
    generation: int,
    replica_generations: tuple[int, ...],
    spawn_generation: int,
    controller: str,
) -> Endpoints:
    """Link the ranks of every replica that is to be under `generation`: the barrier that all of them must reach.

    Raises E802 naming the rank or link that failed first; the others are told at once that nobody comes. The
    other replicas are left alone, and have no endpoints in the answer.
    """
    fresh = {replica for replica, its_generation in enumerate(replica_generations) if its_generation == generation}
    links = links_by_host(
        plan, replicas=fresh, generation=generation, controller=controller, timeout_s=LINK_TIMEOUT_S
    )
    statuses: dict[str, RankStatus] = {}
    failures: list[FleetError] = []

    async def link(host: str) -> None:
        order = LinkRanks(deployment=plan.name, links=links[host], from_generation=spawn_generation)
        try:
            reply = await reach.instruct(host, order, timeout_s=LINK_TIMEOUT_S + 10.0)
        except FleetError as error:
            failures.append(error if error.host else FleetError.from_detail(error.detail, host=host))
            if len(failures) == 1:
                await call_off()
            return
        statuses.update({status.rank_id: status for status in reply.ranks})

    async def call_off() -> None:
        """What the others wait for will not come; their own time limit is a long one."""
        await reach.try_all(
            {
                host: UnlinkRanks(
                    deployment=plan.name, rank_ids=tuple(sorted(of_host)), from_generation=spawn_generation
                )
                for host, of_host in links.items()
            },
            timeout_s=UNLINK_TIMEOUT_S,
        )

    async with asyncio.TaskGroup() as group:
        for host in links:
            group.create_task(link(host))
    if failures:
        raise failures[0]
    return _endpoints(reach, plan, fresh, statuses)


def _endpoints(reach: Reach, plan: Plan, fresh: set[int], statuses: dict[str, RankStatus]) -> Endpoints:
    replicas: list[list[list[RankEndpoint]]] = [
        [[] for _ in replica.stages] if index in fresh else [] for index, replica in enumerate(plan.replicas)
    ]
    for place in rank_places(plan):
        if place.replica not in fresh:
            continue
        if place.rank_id not in statuses:
            raise FleetError("E802", f"rank {place.rank_id} gave no answer to its links", host=place.shard.host)
        endpoint = RankEndpoint(
            rank_id=place.rank_id,
            host=place.shard.host,
            address=reach.address(place.shard.host).address,
            port=statuses[place.rank_id].step_port,
        )
        replicas[place.replica][place.stage].append(endpoint)
    return tuple(tuple(tuple(stage) for stage in stages) for stages in replicas)


async def attach(
    reach: Reach,
    plan: Plan,
    spec: ModelSpec,
    endpoints: Endpoints,
    *,
    generation: int,
    replica_generations: tuple[int, ...],
    plan_hash: str,
) -> str:
    """Have a gateway on the plan's address, connected to all ranks. Returns the path of its unix socket."""
    host = plan.gateway_host
    reply = await reach.instruct(host, EnsureGateway(listen=plan.serving.listen), timeout_s=45.0)
    backend = AttachBackend(
        deployment=plan.name,
        generation=generation,
        plan_hash=plan_hash,
        model=msgspec.structs.replace(spec, tensors=()),
        model_dir="",
        replicas=endpoints,
        serving=plan.serving,
        draft_cost=plan.draft.predicted_cost if plan.draft is not None else None,
        replica_generations=replica_generations,
    )
    await reach.instruct(
        host, Attach(listen=plan.serving.listen, backend=backend, model=plan.model), timeout_s=45.0
    )
    return reply.socket


async def check(reach: Reach, plan: Plan, *, generation: int) -> CheckReport:
    """Decode a canary through every replica. Raises E809 when it disagrees with its own prefill."""
    reply = await tell(reach, plan, "check", generation=generation, timeout_s=CHECK_TIMEOUT_S)
    assert reply is not None, "a gateway answers a check with its report"
    if not reply.is_ok:
        raise FleetError(
            "E809",
            f"the canary failed: {reply.reason}",
            hint="the layout computes something else than the model: please report this plan and its model",
        )
    return reply


async def tell(
    reach: Reach,
    plan: Plan,
    verb: GatewayVerb,
    *,
    generation: int,
    drain_s: float = 30.0,
    timeout_s: float = 60.0,
) -> CheckReport | None:
    """Tell the plan's gateway to check, activate, retire or detach a generation."""
    order = TellGateway(
        listen=plan.serving.listen,
        verb=verb,
        backend=BackendRef(deployment=plan.name, generation=generation, drain_s=drain_s),
    )
    reply = await reach.instruct(plan.gateway_host, order, timeout_s=timeout_s)
    return reply.checked
