"""What is left to do once an apply has switched, or has not: repeated until done, by whoever finds it undone.

No step stops the others: a host that is out of reach is left for its return.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from agent.errors import FleetError
from agent.planner.plan import Plan
from agent.supervisor.deployment import Controlled, LeftBehind, PendingApply
from agent.supervisor.reach import INSTRUCT_TIMEOUT_S, Reach
from agent.wire.agent import (
    AskGateway,
    Commit,
    DeploymentRecord,
    Forget,
    Instruction,
    Release,
    RetireBackends,
    StopRanks,
    TellGateway,
)
from agent.wire.gateway import BackendRef

log = logging.getLogger(__name__)

DRAIN_S = 30.0
OUT_OF_REACH = "E206"


async def commit_everywhere(reach: Reach, plan: Plan, after: Controlled, *, controller: str) -> None:
    """Have every host of the plan remember the generation; a host out of reach learns it when it is back."""
    record = DeploymentRecord(
        name=plan.name,
        generation=after.generation,
        plan_hash=after.plan_hash,
        controller=controller,
        members=after.members,
        gateway_host=plan.gateway_host,
        spawn_generation=after.spawn_generation,
    )
    outcomes = await reach.try_all({address.host: Commit(record=record) for address in after.members})
    for host, outcome in sorted(outcomes.items()):
        if isinstance(outcome, FleetError):
            log.warning("commit not taken", extra={"on_host": host, "error": outcome.message})


async def retire_old(reach: Reach, plan: Plan, pending: PendingApply) -> tuple[LeftBehind, ...]:
    """Drain the old generation, then stop its ranks; hosts that left the plan forget the deployment.

    Returns what could not be told, for the hosts' return.
    """
    gateways = {plan.gateway_host, pending.old_gateway_host} - {""}
    await _try_and_log(
        reach,
        {
            host: RetireBackends(deployment=plan.name, generation=pending.generation, drain_s=DRAIN_S)
            for host in gateways
        },
        timeout_s=DRAIN_S + 30.0,
    )
    stay = set(plan.hosts)
    orders: dict[str, StopRanks | Forget] = {
        address.host: (
            StopRanks(deployment=plan.name, keep_generations=(pending.generation,))
            if address.host in stay
            else Forget(deployment=plan.name, before_generation=pending.generation)
        )
        for address in pending.members
    }
    failed = await _try_and_log(reach, orders, timeout_s=30.0)
    return tuple(
        LeftBehind(address=address, order=orders[address.host])
        for address in pending.members
        if address.host in failed
    )


async def tell_left_behind(reach: Reach, left: Iterable[LeftBehind]) -> tuple[LeftBehind, ...]:
    """Tell hosts that are back what they missed. Returns those that are still out of reach."""
    by_host = {each.address.host: each for each in left}
    reach.learn(each.address for each in by_host.values())
    orders: dict[str, Instruction] = {host: each.order for host, each in by_host.items()}
    outcomes = await reach.try_all(orders)
    return tuple(
        by_host[host]
        for host, outcome in outcomes.items()
        if isinstance(outcome, FleetError) and outcome.code == OUT_OF_REACH
    )


async def undo(reach: Reach, pending: PendingApply) -> None:
    """Take back everything of an apply that did not switch."""
    hosts = [address.host for address in pending.members]
    release = Release(deployment=pending.deployment, generation=pending.generation, holder=pending.holder)
    if pending.phase == "prepare":
        # Nothing but locks was taken, and perhaps not even those: what runs may be another operator's.
        await _try_and_log(reach, dict.fromkeys(hosts, release))
        return
    backend = BackendRef(deployment=pending.deployment, generation=pending.generation, drain_s=0.0)
    await _try_and_log(
        reach,
        {pending.gateway_host: TellGateway(listen=pending.listen, verb="detach", backend=backend)},
        timeout_s=15.0,
    )
    stop = StopRanks(deployment=pending.deployment, keep_generations=pending.keep_generations)
    await _try_and_log(reach, dict.fromkeys(hosts, stop), timeout_s=30.0)
    await _try_and_log(reach, dict.fromkeys(hosts, release))


async def is_switched(reach: Reach, pending: PendingApply) -> bool:
    """Ask the gateway whether it serves the pending generation: the truth after a crash around the switch."""
    reply = await reach.instruct(pending.gateway_host, AskGateway(listen=pending.listen))
    return any(
        backend.deployment == pending.deployment
        and backend.generation == pending.generation
        and backend.state == "active"
        for backend in reply.backends
    )


async def _try_and_log(
    reach: Reach, orders: Mapping[str, Instruction], *, timeout_s: float = INSTRUCT_TIMEOUT_S
) -> set[str]:
    """The hosts where it failed."""
    outcomes = await reach.try_all(dict(orders), timeout_s=timeout_s)
    for host, outcome in sorted(outcomes.items()):
        if isinstance(outcome, FleetError):
            log.warning("clean-up step failed", extra={"on_host": host, "error": outcome.message})
    return {host for host, outcome in outcomes.items() if isinstance(outcome, FleetError)}
