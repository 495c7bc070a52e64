"""What to do about a fault. Pure and deterministic: (state, event) -> (state, instructions).

Invariants (held by a property test): a replica is never rebuilt while a rank of it is down or a host of it is lost,
nor while another rebuild runs; a whole replica is left alone; generations only grow; after any order of events
followed by recovery the deployment ends `serving`, or `degraded` with a reason and a way out.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from agent.healing.state import (
    AgentLost,
    CloseFaults,
    Evidence,
    FaultKey,
    GatewayLost,
    HealEvent,
    HealInstruction,
    HealState,
    HostBack,
    HostHealth,
    HostLost,
    LinkLost,
    RankHealth,
    RankLost,
    RankReady,
    Rebuild,
    RebuildFailed,
    Rebuilt,
    RecordFault,
    ReportState,
    RestartDeadRank,
    RestartFailed,
    TimePassed,
)

RESTART_WINDOW_S = 60.0
MAX_FAILED_REBUILDS = 5
SETTLE_S = 1.6
"""A broken link is mostly the first sign of a death: wait until a lost host would be known by its silence."""
REBUILD_BACKOFF_S = 1.0
"""Doubles with each failure in a row."""

Reaction = tuple[HealState, list[HealInstruction]]


def react(state: HealState, event: HealEvent) -> Reaction:
    """Take in one event, then decide the next steps from the whole state."""
    before = state
    instructions: list[HealInstruction] = []
    match event:
        case RankLost():
            state = _set_rank(state, event.rank_id, "dead")
            host = state.ranks[event.rank_id].host
            message = f"rank {event.rank_id} on {host} is gone"
            way_out = "it is restarted in place" if state.may_restart else "apply the plan again"
            state = _record(
                state,
                instructions,
                FaultKey(event.kind, host, event.rank_id),
                message=message,
                evidence=event.evidence,
                way_out=way_out,
            )
        case LinkLost():
            if state.ranks[event.rank_id].health == "up":
                state = _set_rank(state, event.rank_id, "unlinked")
                state = msgspec.structs.replace(state, retry_at_s=max(state.retry_at_s, event.at_s + SETTLE_S))
                if not _has_deeper_cause(state):
                    host = state.ranks[event.rank_id].host
                    state = _record(
                        state,
                        instructions,
                        FaultKey("link_lost", host, event.rank_id),
                        message=f"a link of rank {event.rank_id} on {host} broke: {event.message}",
                        evidence={"error": event.message},
                        way_out="links are built again under a new generation",
                    )
        case RankReady():
            if state.ranks[event.rank_id].health in ("restarting", "dead"):
                state = _set_rank(state, event.rank_id, "ready")
        case RestartFailed():
            state = _set_rank(state, event.rank_id, "dead")
            state = msgspec.structs.replace(
                state, may_restart=False, reason=f"rank {event.rank_id} does not start: {event.message}"
            )
        case AgentLost():
            state = _set_host(state, event.host, "agent_silent")
            message = f"the agent of {event.host} is silent for {event.silence_s:.1f} s; its ranks still serve"
            way_out = f"odctl bootstrap {event.host}"
            state = _record(
                state,
                instructions,
                FaultKey("agent_lost", event.host),
                message=message,
                evidence=event.evidence,
                way_out=way_out,
            )
        case HostLost():
            state = _lose_host(state, event.host)
            message = f"{event.host} and its ranks are silent for {event.silence_s:.1f} s"
            state = _record(
                state,
                instructions,
                FaultKey("host_lost", event.host),
                message=message,
                evidence=event.evidence,
                way_out=_way_out_of_lost(event.host),
            )
        case HostBack():
            state = _take_back(state, event)
        case GatewayLost():
            state = msgspec.structs.replace(state, is_gateway_up=False)
            state = _record(
                state,
                instructions,
                FaultKey("gateway_lost", state.gateway_host),
                message=f"the gateway on {state.gateway_host} is gone",
                evidence=event.evidence,
                way_out="it is restarted in place",
            )
        case Rebuilt():
            state = _after_rebuild(state, event.generation)
        case RebuildFailed():
            failures = state.failed_rebuilds + 1
            state = msgspec.structs.replace(
                state,
                phase="healing",
                generation=max(state.generation, event.generation),
                failed_rebuilds=failures,
                retry_at_s=event.at_s + REBUILD_BACKOFF_S * 2 ** (failures - 1),
                reason=event.message,
                ranks={
                    rank_id: (
                        msgspec.structs.replace(rank, health="unlinked")
                        if rank.health in ("ready", "up") and rank.replica in state.rebuilding
                        else rank
                    )
                    for rank_id, rank in state.ranks.items()
                },
                rebuilding=(),
            )
        case TimePassed():
            pass
        case _:
            assert_never(event)
    state, more = _decide(state, event.at_s)
    instructions += more
    if (before.phase, before.reason) != (state.phase, state.reason):
        instructions.append(ReportState(phase=state.phase, reason=state.reason, way_out=state.way_out))
    return state, instructions


def _decide(state: HealState, at_s: float) -> Reaction:
    """The next steps, from what is broken now. Deepest trouble first: hosts, ranks, then links.

    A replica with a lost host is out of service; the others are healed without it.
    """
    if state.phase == "rebuilding":
        return state, []
    lost = sorted(host for host, health in state.hosts.items() if health == "lost")
    replicas = {rank.replica for rank in state.ranks.values()}
    out = {rank.replica for rank in state.ranks.values() if rank.host in lost}
    if state.gateway_host in lost:
        out = replicas
    in_service = {rank_id: rank for rank_id, rank in state.ranks.items() if rank.replica not in out}
    dead = sorted(rank_id for rank_id, rank in in_service.items() if rank.health == "dead")
    if dead:
        return _restart(state, dead, at_s)
    if any(rank.health == "restarting" for rank in in_service.values()):
        return state, []
    broken = {rank.replica for rank in in_service.values() if rank.health != "up" or not state.is_gateway_up}
    if not broken:
        return _settle(state, lost)
    if state.failed_rebuilds >= MAX_FAILED_REBUILDS:
        reason = f"{state.failed_rebuilds} rebuilds failed, the last one: {state.reason}"
        if state.phase == "degraded":
            return state, []
        return _degrade(state, reason, "odctl faults shows the evidence; odctl apply starts anew"), []
    if at_s < state.retry_at_s:
        return msgspec.structs.replace(state, phase="healing"), []
    rebuild = Rebuild(
        generation=state.generation + 1,
        replicas=tuple(sorted(broken)),
        kept=tuple(sorted(replicas - out - broken)),
    )
    return msgspec.structs.replace(state, phase="rebuilding", rebuilding=rebuild.replicas), [rebuild]


def _settle(state: HealState, lost: list[str]) -> Reaction:
    """Nothing is left to do: close what is over, and say how the deployment stands."""
    faults = tuple(key for key in state.open_faults if _is_over(key, state))
    remaining = tuple(key for key in state.open_faults if key not in faults)
    state = msgspec.structs.replace(state, open_faults=remaining)
    if lost:
        state = _degrade(state, f"lost: {', '.join(lost)}", _way_out_of_lost(lost[0]))
    else:
        state = msgspec.structs.replace(state, phase="serving", reason="", way_out="")
    return state, [CloseFaults(keys=faults)] if faults else []


def _restart(state: HealState, dead: list[str], at_s: float) -> Reaction:
    recent = tuple(moment for moment in state.restarts if at_s - moment < RESTART_WINDOW_S)
    first = state.ranks[dead[0]]
    if not state.may_restart:
        reason = state.reason or f"rank {dead[0]} on {first.host} is dead and [healing] restart is off"
        return _degrade(state, reason, "odctl apply starts it anew"), []
    if len(recent) >= state.max_restarts_per_minute:
        reason = (
            f"rank {dead[0]} on {first.host} died again: {len(recent)} restarts in the last minute, "
            f"{state.max_restarts_per_minute} are allowed"
        )
        return _degrade(state, reason, "odctl faults shows the evidence; odctl apply starts anew"), []
    instructions: list[HealInstruction] = []
    for rank_id in dead:
        instructions.append(RestartDeadRank(host=state.ranks[rank_id].host, rank_id=rank_id))
        state = _set_rank(state, rank_id, "restarting")
    reason = f"restarting {', '.join(dead)}"
    state = msgspec.structs.replace(state, phase="healing", restarts=(*recent, at_s), reason=reason, way_out="")
    return state, instructions


def _after_rebuild(state: HealState, generation: int) -> HealState:
    """What the rebuild found linked is up; what died while it ran stays dead."""
    ranks = dict(state.ranks)
    for rank_id, rank in state.ranks.items():
        if rank.replica in state.rebuilding:
            health = "up" if rank.health in ("unlinked", "ready", "up") else rank.health
            ranks[rank_id] = msgspec.structs.replace(rank, generation=generation, health=health)
    return msgspec.structs.replace(
        state,
        generation=generation,
        ranks=ranks,
        rebuilding=(),
        is_gateway_up=True,
        phase="healing",
        failed_rebuilds=0,
        retry_at_s=0.0,
        reason="",
        way_out="",
    )


def _take_back(state: HealState, event: HostBack) -> HealState:
    """A host that answers again: ranks that died with it are dead, not lost, and may be restarted."""
    was_lost = state.hosts.get(event.host) == "lost"
    state = _set_host(state, event.host, "up")
    for rank_id, rank in state.ranks.items():
        if rank.host != event.host:
            continue
        if rank_id not in event.live_ranks and rank.health != "restarting":
            state = _set_rank(state, rank_id, "dead")
        elif was_lost and rank.health in ("up", "dead"):
            state = _set_rank(state, rank_id, "unlinked")
    if was_lost and state.gateway_host == event.host:
        state = msgspec.structs.replace(state, is_gateway_up=False)
    if was_lost:
        state = msgspec.structs.replace(state, failed_rebuilds=0, reason=f"{event.host} is back")
        if state.phase != "rebuilding":
            # One that is under way has yet to report: two at once would call off each other's links.
            state = msgspec.structs.replace(state, phase="healing")
    return state


def _lose_host(state: HealState, host: str) -> HealState:
    state = _set_host(state, host, "lost")
    for rank_id, rank in state.ranks.items():
        if rank.host == host:
            state = _set_rank(state, rank_id, "dead")
    # A rebuild under way needs that host: it will fail by itself and report; the phase is left to it.
    return state


def _degrade(state: HealState, reason: str, way_out: str) -> HealState:
    return msgspec.structs.replace(state, phase="degraded", reason=reason, way_out=way_out)


def _record(
    state: HealState,
    instructions: list[HealInstruction],
    key: FaultKey,
    *,
    message: str,
    evidence: Evidence,
    way_out: str,
) -> HealState:
    if key in state.open_faults:
        return state
    instructions.append(
        RecordFault(
            key=key,
            severity="warning" if key.kind == "agent_lost" else "fault",
            message=message,
            evidence=evidence,
            way_out=way_out,
        )
    )
    return msgspec.structs.replace(state, open_faults=(*state.open_faults, key))


def _is_over(key: FaultKey, state: HealState) -> bool:
    """A silence is over when the host answers, all else when what it befell is up again."""
    if key.kind in ("agent_lost", "host_lost"):
        return state.hosts.get(key.host, "up") == "up"
    if key.kind == "gateway_lost":
        return state.is_gateway_up
    rank = state.ranks.get(key.rank_id)
    return rank is None or rank.health == "up"


def _has_deeper_cause(state: HealState) -> bool:
    """A dead rank or a lost host explains broken links: they are its symptoms, not faults of their own."""
    return any(rank.health in ("dead", "restarting") for rank in state.ranks.values()) or any(
        health == "lost" for health in state.hosts.values()
    )


def _set_rank(state: HealState, rank_id: str, health: RankHealth) -> HealState:
    rank = msgspec.structs.replace(state.ranks[rank_id], health=health)
    return msgspec.structs.replace(state, ranks={**state.ranks, rank_id: rank})


def _set_host(state: HealState, host: str, health: HostHealth) -> HealState:
    return msgspec.structs.replace(state, hosts={**state.hosts, host: health})


def _way_out_of_lost(host: str) -> str:
    return f"bring {host} back, or plan without it: odctl plan MODEL --exclude {host} and odctl apply"
