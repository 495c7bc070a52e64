"""What a controller remembers of generations: who had them served, why, by which plan, and how they did."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.wire.gateway import CheckReport

Cause = Literal["apply", "rollback", "measure", "healing"]
"""An operator's `apply`, `rollback` or `compare --measure`; or the controller itself, after a fault."""


class MeasuredFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation did in one stretch of requests. None was not measured."""

    at_s: float
    """Seconds since the epoch, at its end."""
    source: Literal["check", "medians", "window"]
    """`check`: the canary of an apply. `window`: means over a busy stretch of requests. `medians`: means over the
    stretches of a run, named as an earlier release measured them."""
    streams: float
    """Sequences that were there together."""
    prompt_tokens: float
    requests: int | None = None
    ttft_s: float | None = None
    time_per_token_s: float | None = None
    tokens_per_s: float | None = None
    """Generated tokens a second while a request was there."""


class ServedGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """One generation that came to serve."""

    deployment: str
    generation: int
    plan_hash: str
    cause: Cause
    by: str
    """Who asked: `user@machine:pid`; the controller's host for what it did itself. Empty: not recorded."""
    reason: str
    served_at_s: float
    """Seconds since the epoch, by the controller's clock."""
    controller: str
    apply_s: float | None = None
    """Seconds from the apply's begin to its switch; None for what healing did, and where it was not recorded."""
    checked: CheckReport | None = None
    measured: tuple[MeasuredFigures, ...] = ()
    """Oldest first."""


class DeploymentEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment was destroyed. The next one of its name begins at generation 1 again."""

    deployment: str
    generation: int
    at_s: float
    by: str


class GenerationHistory(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/history: what this agent decided for, oldest first."""

    generations: tuple[ServedGeneration, ...]
    ends: tuple[DeploymentEnd, ...] = ()
    plans: dict[str, str] = {}
    """Whole plan files by hash: those of the generations, but for what the journal has lost."""
