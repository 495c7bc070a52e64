"""Generations that came to serve under this controller, journalled with their whole plan for a rollback."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from agent.facts.run import MeasuredRun
from agent.journal import Journal
from agent.planner.learning.records import PlanMeasured
from agent.supervisor import runs
from agent.supervisor.deployment import Controlled
from agent.wire.agent import Event
from agent.wire.gateway import CheckReport
from agent.wire.history import Cause, DeploymentEnd, GenerationHistory, MeasuredFigures, ServedGeneration

KIND = "GenerationServed"
ENDED = "Destroyed"
MAX_GENERATIONS = 200
"""The newest that are told."""
MAX_FIGURES = 2000
"""The newest measurements that are told, of all generations."""


class _Served(msgspec.Struct, frozen=True, kw_only=True):
    """Body of the event. `applied_at_s` is when its processes came to serve: with the generation, what names it."""

    applied_at_s: float
    cause: Cause
    by: str
    reason: str
    plan_toml: str = ""
    """Only where the plan is new: what healing moves on has it from before."""
    checked: CheckReport | None = None
    apply_s: float = 0.0


class _Ended(msgspec.Struct, frozen=True, kw_only=True):
    holder: str = ""


class HistoryBook:
    """All of one agent's journal."""

    def __init__(self, journal: Journal, *, host: str, clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._host = host
        self._clock = clock

    def note(self, deployment: str, controlled: Controlled) -> None:
        """This generation serves. It is written once, however often its controller is restarted."""
        newest = self._newest(deployment)
        if newest is not None and (newest[0], newest[1].applied_at_s) == (
            controlled.generation,
            controlled.applied_at_s,
        ):
            return
        is_new_plan = controlled.cause != "healing"
        self._journal.append(
            KIND,
            deployment=deployment,
            generation=controlled.generation,
            plan_hash=controlled.plan_hash,
            body=_Served(
                applied_at_s=controlled.applied_at_s,
                cause=controlled.cause,
                by=controlled.by,
                reason=controlled.reason,
                plan_toml=controlled.plan_toml if is_new_plan or newest is None else "",
                checked=controlled.checked if is_new_plan else None,
                apply_s=controlled.apply_s,
            ),
            is_durable=True,
        )

    def all(self) -> GenerationHistory:
        """Each generation with its plan, and what was measured while it served."""
        marks = [
            *self._journal.read_kinds((KIND, ENDED), MAX_GENERATIONS),
            *self._journal.read_kinds((runs.KIND, "PlanMeasured"), MAX_FIGURES),
        ]
        told: list[ServedGeneration] = []
        ends: list[DeploymentEnd] = []
        plans: dict[str, str] = {}
        figures: dict[int, list[MeasuredFigures]] = {}
        standing: dict[tuple[str, int], int] = {}
        """Place in `told` of a deployment's generation that was not destroyed yet."""
        for event in sorted(marks, key=lambda event: event.event_id):
            match event.kind:
                case "GenerationServed":
                    body = msgspec.json.decode(event.body, type=_Served)
                    if body.plan_toml:
                        plans[event.plan_hash] = body.plan_toml
                    standing[event.deployment, event.generation] = len(told)
                    told.append(self._served(event, body))
                case "Destroyed":
                    ends.append(_end(event))
                    standing = {key: at for key, at in standing.items() if key[0] != event.deployment}
                case _:
                    at = standing.get((event.deployment, event.generation))
                    found = _figures(event)
                    if at is not None and found is not None:
                        figures.setdefault(at, []).append(found)
        return GenerationHistory(
            generations=tuple(
                msgspec.structs.replace(served, measured=tuple(figures.get(at, ())))
                for at, served in enumerate(told)
            ),
            ends=tuple(ends),
            plans=plans,
        )

    def _newest(self, deployment: str) -> tuple[int, _Served] | None:
        """Generation and body of the deployment's last event."""
        events = self._journal.read_kinds((KIND,), 1, deployment=deployment)
        return (events[0].generation, msgspec.json.decode(events[0].body, type=_Served)) if events else None

    def _served(self, event: Event, body: _Served) -> ServedGeneration:
        return ServedGeneration(
            deployment=event.deployment,
            generation=event.generation,
            plan_hash=event.plan_hash,
            cause=body.cause,
            by=body.by or (self._host if body.cause == "healing" else ""),
            reason=body.reason,
            # A layout that an earlier release applied is noted when this one starts, and served since its apply.
            served_at_s=event.at_s if body.cause == "healing" else body.applied_at_s,
            controller=self._host,
            apply_s=body.apply_s or None,
            checked=body.checked,
        )


def _end(event: Event) -> DeploymentEnd:
    body = msgspec.json.decode(event.body, type=_Ended)
    return DeploymentEnd(deployment=event.deployment, generation=event.generation, at_s=event.at_s, by=body.holder)


def _figures(event: Event) -> MeasuredFigures | None:
    """None for an event that an earlier release wrote otherwise."""
    try:
        if event.kind == runs.KIND:
            run = msgspec.json.decode(event.body, type=MeasuredRun)
            return MeasuredFigures(
                at_s=event.at_s,
                source="check" if run.source == "check" else "medians",
                streams=run.streams,
                prompt_tokens=run.prompt_tokens,
                ttft_s=run.ttft_s or None,
                time_per_token_s=run.time_per_token_s or None,
                tokens_per_s=run.tokens_per_s or None,
            )
        window = msgspec.json.decode(event.body, type=PlanMeasured)
    except msgspec.DecodeError:
        return None
    return MeasuredFigures(
        at_s=event.at_s,
        source="window",
        streams=window.context.batch,
        prompt_tokens=window.context.prompt_tokens,
        requests=window.finished,
        ttft_s=window.measured.ttft_s,
        time_per_token_s=window.measured.time_per_token_s,
        tokens_per_s=window.measured.tokens_per_s,
    )
