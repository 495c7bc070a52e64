"""Heartbeats -> events. Pure: the clock's readings come with the observation.

A member is silent after `SILENT_S` without an answer. If the observer itself was stalled, silences count from
anew: a machine that pauses must not accuse all others of having died.
"""

from __future__ import annotations

import msgspec

from agent.facts.fault import FaultKind
from agent.healing.state import (
    AgentLost,
    Evidence,
    GatewayLost,
    HealEvent,
    HealState,
    HostBack,
    HostLost,
    LinkLost,
    RankLost,
    RankReady,
    RestartFailed,
)

SILENT_S = 1.2


class RankSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A rank's status, as far as healing cares."""

    pid: int
    state: str
    generation: int
    error: str


class DeathSeen(msgspec.Struct, frozen=True, kw_only=True):
    rank_id: str
    pid: int
    kind: FaultKind
    evidence: Evidence


class HostSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One member's heartbeat, reduced to one deployment."""

    ranks: dict[str, RankSeen]
    deaths: tuple[DeathSeen, ...]
    has_gateway: bool
    unheard: tuple[str, ...] = ()
    """Ranks whose processes run and have not answered their agent yet."""
    gateway_evidence: Evidence = {}
    started_at_s: float = 0.0
    """When its agent started, by its own clock."""
    was_killed: bool = False
    """The agent before that one ended without a word."""
    broken_replicas: dict[int, str] = {}
    """Replicas that the gateway calls broken under this generation, and why."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One round of heartbeats. A host that did not answer is missing from `hosts` and named in `silent`,
    with whether its ranks still accept connections and what was tried.
    """

    at_s: float
    was_stalled: bool
    hosts: dict[str, HostSeen]
    silent: dict[str, SilentHost]


class SilentHost(msgspec.Struct, frozen=True, kw_only=True):
    ranks_answer: bool
    evidence: Evidence


class DetectState(msgspec.Struct, frozen=True, kw_only=True):
    heard_at: dict[str, float]
    handled_deaths: tuple[tuple[str, int], ...] = ()
    """(rank id, pid) of deaths that were already told."""
    started_at_s: dict[str, float] = {}
    """Each host's agent, by when it started."""
    suspects: tuple[str, ...] = ()
    """Ranks that looked unlinked in the last round: a status may be older than the links it speaks of."""


def detect(state: DetectState, health: HealState, observation: Observation) -> tuple[DetectState, list[HealEvent]]:
    """What has happened since the last observation, given what is already known."""
    events: list[HealEvent] = []
    heard_at = dict(state.heard_at)
    handled = set(state.handled_deaths)
    suspects: set[str] = set()
    now = observation.at_s
    if observation.was_stalled:
        heard_at = dict.fromkeys(heard_at, now)
    for host, seen in sorted(observation.hosts.items()):
        silence = now - heard_at.get(host, now)
        heard_at[host] = now
        if health.hosts.get(host) == "up" and _was_replaced(state, host, seen):
            # Killed and started again so soon that its silence was none: it is a fault all the same.
            evidence: Evidence = {"silence_s": round(silence, 3), "agent": "killed, and started again"}
            events.append(AgentLost(host=host, silence_s=silence, evidence=evidence, at_s=now))
            events.append(HostBack(host=host, live_ranks=_live(seen), at_s=now))
            continue
        if health.hosts.get(host) != "up":
            events.append(HostBack(host=host, live_ranks=_live(seen), at_s=now))
            handled |= {(death.rank_id, death.pid) for death in seen.deaths}
            continue
        events += _of_ranks(health, host, seen, handled, now)
        unlinked = _unlinked(health, host, seen)
        suspects |= unlinked.keys()
        events += [
            LinkLost(rank_id=rank_id, message=why, at_s=now)
            for rank_id, why in sorted(unlinked.items())
            if rank_id in state.suspects
        ]
    gateway = observation.hosts.get(health.gateway_host)
    if gateway is not None and health.phase != "rebuilding":
        events += _of_gateway(health, gateway, now, has_cause=bool(events))
    for host, silent in sorted(observation.silent.items()):
        silence = now - heard_at.setdefault(host, now)
        known = health.hosts.get(host, "up")
        if silence < SILENT_S or known == "lost":
            continue
        evidence = {"silence_s": round(silence, 3), **silent.evidence}
        if not silent.ranks_answer:
            events.append(HostLost(host=host, silence_s=silence, evidence=evidence, at_s=now))
        elif known == "up":
            events.append(AgentLost(host=host, silence_s=silence, evidence=evidence, at_s=now))
    # Causes before symptoms: a death explains the links that it broke.
    events.sort(key=lambda event: isinstance(event, LinkLost | GatewayLost))
    after = DetectState(
        heard_at=heard_at,
        handled_deaths=tuple(sorted(handled)),
        started_at_s=state.started_at_s | {host: seen.started_at_s for host, seen in observation.hosts.items()},
        suspects=tuple(sorted(suspects)),
    )
    return after, events


def _live(seen: HostSeen) -> tuple[str, ...]:
    return tuple(sorted({*seen.ranks, *seen.unheard}))


def _was_replaced(state: DetectState, host: str, seen: HostSeen) -> bool:
    return seen.was_killed and state.started_at_s.get(host, seen.started_at_s) != seen.started_at_s


def _of_ranks(
    health: HealState, host: str, seen: HostSeen, handled: set[tuple[str, int]], now: float
) -> list[HealEvent]:
    events: list[HealEvent] = []
    for death in seen.deaths:
        if death.rank_id in health.ranks and (death.rank_id, death.pid) not in handled:
            handled.add((death.rank_id, death.pid))
            events.append(RankLost(rank_id=death.rank_id, kind=death.kind, evidence=death.evidence, at_s=now))
    lost = {event.rank_id for event in events if isinstance(event, RankLost)}
    for rank_id, rank in sorted(seen.ranks.items()):
        known = health.ranks.get(rank_id)
        if known is None or known.host != host or rank_id in lost or (rank_id, rank.pid) in handled:
            continue
        if rank.state == "failed" and known.health in ("restarting", "dead"):
            events.append(RestartFailed(rank_id=rank_id, message=rank.error, at_s=now))
        elif rank.state in ("loaded", "linked") and known.health == "restarting":
            events.append(RankReady(rank_id=rank_id, at_s=now))
    return events


def _unlinked(health: HealState, host: str, seen: HostSeen) -> dict[str, str]:
    """Ranks that should be linked and say that they are not, and why."""
    if health.phase == "rebuilding":
        return {}
    unlinked = {}
    for rank_id, rank in seen.ranks.items():
        known = health.ranks.get(rank_id)
        if known is None or known.host != host or known.health != "up":
            continue
        if rank.state in ("failed", "loaded"):
            unlinked[rank_id] = rank.error or "it is not linked"
        elif rank.state == "linked" and rank.generation != known.generation:
            unlinked[rank_id] = f"it is linked under generation {rank.generation}, not {known.generation}"
    return unlinked


def _of_gateway(health: HealState, seen: HostSeen, now: float, *, has_cause: bool) -> list[HealEvent]:
    if not seen.has_gateway:
        if health.is_gateway_up:
            return [GatewayLost(evidence=seen.gateway_evidence, at_s=now)]
        return []
    events: list[HealEvent] = []
    for replica, why in sorted(seen.broken_replicas.items()) if health.is_gateway_up and not has_cause else ():
        ranks = {rank_id: rank for rank_id, rank in health.ranks.items() if rank.replica == replica}
        if ranks and all(rank.health == "up" for rank in ranks.values()):
            # Every rank says that it is well, yet the gateway's connections broke: build them anew.
            events.append(LinkLost(rank_id=min(ranks), message=f"gateway: {why}", at_s=now))
    return events
