"""The progress of one apply: events in, state out. Pure; `apply_page` shows it."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.errors import ErrorDetail
from agent.planner.plan import Plan
from agent.wire.agent import ApplyEvent, ApplyPhase
from agent.wire.gateway import CheckReport

PHASES: tuple[tuple[ApplyPhase, str], ...] = (
    ("prepare", "lock every host"),
    ("fetch", "bring shards to their hosts"),
    ("start", "start ranks, load weights"),
    ("link", "connect the ranks"),
    ("warm", "attach the gateway"),
    ("check", "decode a canary on each replica"),
    ("switch", "new requests go to the new one"),
    ("commit", "every host remembers it"),
    ("retire", "drain and stop the old one"),
)
LOG_LINES = 200
OUT_OF_REACH = "E2"
"""How the codes of connections begin."""

PhaseState = Literal["waiting", "started", "finished", "failed"]


class HostProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The last that was heard of a host, and how far its phase is."""

    phase: ApplyPhase
    message: str
    done: int
    total: int
    at_s: float


class ApplyProgress(msgspec.Struct, frozen=True, kw_only=True):
    plan: Plan
    phases: dict[str, PhaseState] = {}
    began_s: dict[str, float] = {}
    ended_s: dict[str, float] = {}
    hosts: dict[str, HostProgress] = {}
    log: tuple[str, ...] = ()
    generation: int = 0
    checked: CheckReport | None = None
    error: ErrorDetail | None = None
    is_over: bool = False
    is_rolled_back: bool = False
    is_out_of_sight: bool = False
    """Its stream broke before it was over: how it ended is the controller's to say."""
    is_aborting: bool = False
    """An abort was asked for, and the controller took it."""
    last_at_s: float = 0.0

    @property
    def is_done(self) -> bool:
        """Over, and serving."""
        return self.is_over and self.error is None

    @property
    def last_phase(self) -> ApplyPhase | None:
        """The last that has begun; None before the controller's first word."""
        return next((phase for phase, _ in reversed(PHASES) if phase in self.phases), None)


def take_event(progress: ApplyProgress, event: ApplyEvent) -> ApplyProgress:
    """The progress after one more event."""
    phases, began_s, ended_s = dict(progress.phases), dict(progress.began_s), dict(progress.ended_s)
    # The operator's own steps come before the controller's first word and carry no time of its clock.
    times: dict[str, float] = {event.phase: event.at_s} if event.at_s else {}
    began_s = times | began_s
    match event.state:
        case "started" | "progress":
            if phases.get(event.phase) not in {"finished", "failed"}:
                phases[event.phase] = "started"
        case "finished" | "failed":
            phases[event.phase] = event.state
            ended_s |= times
    hosts = dict(progress.hosts)
    if event.host:
        hosts[event.host] = HostProgress(
            phase=event.phase, message=event.message, done=event.done, total=event.total, at_s=event.at_s
        )
    return msgspec.structs.replace(
        progress,
        phases=phases,
        began_s=began_s,
        ended_s=ended_s,
        hosts=hosts,
        log=(*progress.log[-LOG_LINES + 1 :], _log_line(event)),
        generation=event.generation or progress.generation,
        checked=event.checked or progress.checked,
        error=event.error or progress.error,
        is_over=progress.is_over or event.phase == "done" or event.error is not None,
        is_rolled_back=progress.is_rolled_back or (event.phase == "roll_back" and event.state == "finished"),
        last_at_s=max(progress.last_at_s, event.at_s),
    )


def fail(progress: ApplyProgress, error: ErrorDetail) -> ApplyProgress:
    """The progress when the stream itself broke, or nothing could be asked for.

    What the controller said of its end stays. A connection that breaks once it has begun ends nothing there.
    """
    if progress.is_over:
        return progress
    was_heard = progress.last_at_s > 0
    is_out_of_sight = was_heard and error.code.startswith(OUT_OF_REACH)
    return msgspec.structs.replace(progress, error=error, is_over=True, is_out_of_sight=is_out_of_sight)


def _log_line(event: ApplyEvent) -> str:
    where = f"{event.host} " if event.host else ""
    message = f" {event.message}" if event.message else ""
    return f"{where}{event.phase} {event.state}{message}"
