"""What a controller knows of one deployment's health, what may happen to it, and what may be done."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.facts.fault import FaultKind, Severity

RankHealth = Literal["up", "unlinked", "dead", "restarting", "ready"]
"""up: linked and serving. unlinked: runs, but a link of it broke. dead: its process is gone. restarting: told to
start anew. ready: loaded again, waits for links."""

HostHealth = Literal["up", "agent_silent", "lost"]
HealPhase = Literal["serving", "healing", "rebuilding", "degraded"]


class RankState(msgspec.Struct, frozen=True, kw_only=True):
    """`generation` is the one that its replica is linked under: a rebuild leaves whole replicas alone."""

    host: str
    replica: int
    generation: int
    health: RankHealth = "up"


class HealState(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment. Times are seconds on the controller's monotonic clock."""

    deployment: str
    generation: int
    ranks: dict[str, RankState]
    hosts: dict[str, HostHealth]
    gateway_host: str
    may_restart: bool
    max_restarts_per_minute: int
    phase: HealPhase = "serving"
    is_gateway_up: bool = True
    reason: str = ""
    way_out: str = ""
    restarts: tuple[float, ...] = ()
    """When ranks were restarted within the last minute."""
    rebuilding: tuple[int, ...] = ()
    """Replicas that the rebuild under way links anew."""
    failed_rebuilds: int = 0
    retry_at_s: float = 0.0
    """No rebuild before this time."""
    open_faults: tuple[FaultKey, ...] = ()


class FaultKey(msgspec.Struct, frozen=True):
    """What makes two observations the same trouble."""

    kind: FaultKind
    host: str
    rank_id: str = ""


# --- events -------------------------------------------------------------------------------------------

Evidence = dict[str, str | int | float]


class RankLost(msgspec.Struct, frozen=True, kw_only=True):
    """A rank's process ended or was killed because it hung."""

    rank_id: str
    kind: FaultKind
    evidence: Evidence
    at_s: float


class LinkLost(msgspec.Struct, frozen=True, kw_only=True):
    """A rank lives and says that a link of it broke, or the gateway says so of its own."""

    rank_id: str
    message: str
    at_s: float


class RankReady(msgspec.Struct, frozen=True, kw_only=True):
    """A restarted rank has loaded its shard."""

    rank_id: str
    at_s: float


class RestartFailed(msgspec.Struct, frozen=True, kw_only=True):
    rank_id: str
    message: str
    at_s: float


class AgentLost(msgspec.Struct, frozen=True, kw_only=True):
    """A member's agent is silent while its ranks answer."""

    host: str
    silence_s: float
    evidence: Evidence
    at_s: float


class HostLost(msgspec.Struct, frozen=True, kw_only=True):
    """A member's agent is silent and so are its ranks."""

    host: str
    silence_s: float
    evidence: Evidence
    at_s: float


class HostBack(msgspec.Struct, frozen=True, kw_only=True):
    """A silent member answers again; `live_ranks` are those of the deployment that still run there."""

    host: str
    live_ranks: tuple[str, ...]
    at_s: float


class GatewayLost(msgspec.Struct, frozen=True, kw_only=True):
    evidence: Evidence
    at_s: float


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """Links, gateway and warm-up of `generation` are done, and it serves."""

    generation: int
    at_s: float


class RebuildFailed(msgspec.Struct, frozen=True, kw_only=True):
    generation: int
    message: str
    at_s: float


class TimePassed(msgspec.Struct, frozen=True, kw_only=True):
    at_s: float


HealEvent = (
    RankLost
    | LinkLost
    | RankReady
    | RestartFailed
    | AgentLost
    | HostLost
    | HostBack
    | GatewayLost
    | Rebuilt
    | RebuildFailed
    | TimePassed
)


# --- instructions -------------------------------------------------------------------------------------


class RecordFault(msgspec.Struct, frozen=True, kw_only=True):
    key: FaultKey
    severity: Severity
    message: str
    evidence: Evidence
    way_out: str


class CloseFaults(msgspec.Struct, frozen=True, kw_only=True):
    """The trouble behind these is over."""

    keys: tuple[FaultKey, ...]


class RestartDeadRank(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    rank_id: str


class Rebuild(msgspec.Struct, frozen=True, kw_only=True):
    """Give the deployment this generation: gateway up, the ranks of these replicas linked anew, checked, active.

    Replicas in neither tuple are out of service; those kept go on under the generation that they have.
    """

    generation: int
    replicas: tuple[int, ...]
    kept: tuple[int, ...]


class ReportState(msgspec.Struct, frozen=True, kw_only=True):
    """The deployment's state changed: journal it."""

    phase: HealPhase
    reason: str
    way_out: str


HealInstruction = RecordFault | CloseFaults | RestartDeadRank | Rebuild | ReportState
