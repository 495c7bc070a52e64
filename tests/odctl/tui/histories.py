"""A history of three generations for the screens: applied, applied again, gone back. Figures are invented."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from agent.errors import FleetError
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import Plan
from agent.wire.agent import DeploymentRecord
from agent.wire.gateway import CheckReport
from agent.wire.history import Cause, GenerationHistory, MeasuredFigures, ServedGeneration
from odctl.fleet import Fleet, FleetSnapshot
from odctl.history import FleetHistory, join_histories, read_history
from tests.odctl.tui import frozen_fleet as frozen

T = TypeVar("T")
FIRST, SECOND = frozen.plan(split=16), frozen.plan()


def served(
    generation: int, plan: Plan, *, ago_s: float, cause: Cause = "apply", reason: str = ""
) -> ServedGeneration:
    return ServedGeneration(
        deployment="chat",
        generation=generation,
        plan_hash=plan_hash(plan),
        cause=cause,
        by="ann@desk:41",
        reason=reason,
        served_at_s=frozen.NOW_S - ago_s,
        controller="gpu01",
        apply_s=7.5,
        checked=CheckReport(
            is_ok=True, reason="", prompt_tokens=32, ttft_s=0.12, time_per_token_s=0.034, tokens=(1, 2)
        ),
        measured=(
            MeasuredFigures(
                at_s=frozen.NOW_S - ago_s + 60,
                source="window",
                streams=1.0,
                prompt_tokens=250.0,
                requests=12,
                ttft_s=0.4,
                time_per_token_s=0.036,
                tokens_per_s=25.0,
            ),
        ),
    )


def history(*, knows_first: bool = True, unreachable: dict[str, FleetError] | None = None) -> FleetHistory:
    """Generation 1 is of another split than 2; 3 is that of generation 2 again, and is current."""
    told = GenerationHistory(
        generations=(
            served(1, FIRST, ago_s=7200),
            served(2, SECOND, ago_s=5400),
            served(3, SECOND, ago_s=3600, cause="rollback", reason="to generation 2"),
        ),
        plans={plan_hash(plan): plan_to_toml(plan) for plan in ((FIRST, SECOND) if knows_first else (SECOND,))},
    )
    record = DeploymentRecord(
        name="chat", generation=3, plan_hash=plan_hash(SECOND), controller="gpu01", members=()
    )
    return FleetHistory(entries=join_histories([told], [record]), unreachable=unreachable or {})


class FeedWithHistory(frozen.FrozenFeed):
    """Answers to who asks for the history."""

    def __init__(self, snapshot: FleetSnapshot | None, found: FleetHistory) -> None:
        super().__init__(snapshot)
        self.found = found

    async def call(self, work: Callable[[Fleet], Awaitable[T]]) -> T:
        if work is read_history:
            return self.found  # type: ignore[return-value] # it is what that work gives
        return await super().call(work)
