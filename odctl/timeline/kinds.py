"""Which events tell of trouble, and what their bodies hold. The only place that a new kind has to be added to.

Bodies are read leniently: unknown fields are ignored, and kinds of faults are words, not a closed list, so that the
journal of an agent of another release can be read, too.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agent.wire.agent import Event


class FaultObserved(msgspec.Struct, frozen=True, kw_only=True):
    """An `agent.facts.fault.Fault`. Times are the observer's."""

    fault_id: str
    kind: str
    severity: Literal["warning", "fault"] = "fault"
    observed_at_s: float
    observed_by: str
    host: str
    deployment: str = ""
    generation: int = 0
    rank_id: str = ""
    message: str = ""
    evidence: dict[str, Any] = {}
    healed_at_s: float | None = None
    way_out: str = ""


class FaultHealed(msgspec.Struct, frozen=True, kw_only=True):
    fault_id: str
    after_s: float


class DeploymentStateChanged(msgspec.Struct, frozen=True, kw_only=True):
    """`phase` is serving, healing, rebuilding or degraded."""

    phase: str
    reason: str = ""
    way_out: str = ""


class GenerationServed(msgspec.Struct, frozen=True, kw_only=True):
    cause: str
    by: str = ""
    reason: str = ""


class GenerationCommitted(msgspec.Struct, frozen=True, kw_only=True):
    """A member took over a generation; which one, the event says."""

    controller: str = ""


class ReportedError(msgspec.Struct, frozen=True, kw_only=True):
    message: str = ""


class BackendBroken(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway lost a rank; `failed_streams` ended with an error."""

    rank_id: str = ""
    host: str = ""
    error: ReportedError = ReportedError()
    failed_streams: int = 0


class ApplyRolledBack(msgspec.Struct, frozen=True, kw_only=True):
    reason: str = ""
    phase: str = ""


class Destroyed(msgspec.Struct, frozen=True, kw_only=True):
    holder: str = ""


class AgentStarted(msgspec.Struct, frozen=True, kw_only=True):
    pid: int = 0
    release: str = ""


class AgentStopped(msgspec.Struct, frozen=True, kw_only=True):
    pid: int = 0


Body = (
    FaultObserved
    | FaultHealed
    | DeploymentStateChanged
    | GenerationServed
    | GenerationCommitted
    | BackendBroken
    | ApplyRolledBack
    | Destroyed
    | AgentStarted
    | AgentStopped
)
KINDS: dict[str, type[Body]] = {
    "FaultObserved": FaultObserved,
    "FaultHealed": FaultHealed,
    "DeploymentStateChanged": DeploymentStateChanged,
    "GenerationServed": GenerationServed,
    "GenerationCommitted": GenerationCommitted,
    "BackendBroken": BackendBroken,
    "ApplyRolledBack": ApplyRolledBack,
    "Destroyed": Destroyed,
    "AgentStarted": AgentStarted,
    "AgentStopped": AgentStopped,
}
"""Names of the journal's events that are read."""
_LONG_BODIES = ("GenerationServed", "GenerationCommitted")


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One event that was understood, with its time by our clock."""

    host: str
    """Whose journal."""
    event: Event
    at_s: float
    body: Body


def read_body(event: Event) -> Body | None:
    """What the event says; None for a kind that this release does not know. Raises msgspec.DecodeError."""
    kind = KINDS.get(event.kind)
    return None if kind is None else msgspec.json.decode(event.body, type=kind)


def slim(event: Event) -> Event:
    """The event as it is worth keeping: without the whole plans that some carry."""
    if event.kind not in _LONG_BODIES:
        return event
    try:
        body = msgspec.json.encode(read_body(event)).decode()
    except msgspec.DecodeError:
        return event
    return msgspec.structs.replace(event, body=body)
