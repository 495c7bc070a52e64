"""The steps that give a generation its links, its gateway and its proof that it decodes.

Apply uses them for a new layout, healing for an old one under a new generation.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.errors import FleetError
from agent.facts.model import ModelSpec
from agent.planner.plan import Plan, rank_places
from agent.supervisor.reach import Reach
from agent.supervisor.topology import links_by_host
from agent.wire.agent import Attach, EnsureGateway, LinkRanks, TellGateway
from agent.wire.gateway import AttachBackend, BackendRef, CheckReport, RankEndpoint
from agent.wire.rank import RankStatus

LINK_TIMEOUT_S = 10.0
CHECK_TIMEOUT_S = 330.0

GatewayVerb = Literal["check", "activate", "retire", "detach"]
Endpoints = tuple[tuple[tuple[RankEndpoint, ...], ...], ...]


async def link_all(
    reach: Reach, plan: Plan, *, generation: int, spawn_generation: int, controller: str
) -> Endpoints:
    """Link every rank of the plan under `generation`: the barrier that all of them must reach.

    Raises E802 naming the rank or link that failed, after every host has answered.
    """
    links = links_by_host(plan, generation=generation, controller=controller, timeout_s=LINK_TIMEOUT_S)
    replies = await reach.instruct_all(
        {
            host: LinkRanks(deployment=plan.name, links=of_host, from_generation=spawn_generation)
            for host, of_host in links.items()
        },
        timeout_s=LINK_TIMEOUT_S + 10.0,
    )
    statuses: dict[str, RankStatus] = {
        status.rank_id: status for reply in replies.values() for status in reply.ranks
    }
    replicas: list[list[list[RankEndpoint]]] = []
    for place in rank_places(plan):
        if place.rank_id not in statuses:
            raise FleetError("E802", f"rank {place.rank_id} gave no answer to its links", host=place.shard.host)
        if place.replica == len(replicas):
            replicas.append([])
        if place.stage == len(replicas[place.replica]):
            replicas[place.replica].append([])
        replicas[place.replica][place.stage].append(
            RankEndpoint(
                rank_id=place.rank_id,
                host=place.shard.host,
                address=reach.address(place.shard.host).address,
                port=statuses[place.rank_id].step_port,
            )
        )
    return tuple(tuple(tuple(stage) for stage in stages) for stages in replicas)


async def attach(
    reach: Reach, plan: Plan, spec: ModelSpec, endpoints: Endpoints, *, generation: int, plan_hash: str
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
