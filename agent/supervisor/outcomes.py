"""What applied plans turned out to do: measured from their gateway's counts, and journalled to be learnt from."""

from __future__ import annotations

import msgspec

from agent.journal import Journal
from agent.planner.learning.records import KINDS, Figures, Lesson, Lessons, PlanChosen, PlanMeasured, arm_of
from agent.planner.learning.workload import Context, link_class
from agent.planner.plan import Plan, Predicted
from agent.planner.shards import weight_bytes
from agent.supervisor.deployment import Controlled
from agent.wire.gateway import BackendStatus

MAX_LESSONS = 5000
"""The newest that are told: their moving averages have forgotten what was before."""
IDLE_S = 1.0
"""Requests that follow each other closer than this are measured together."""
MAX_WINDOW_S = 60.0
"""Under a load that never ends, a measurement is due this often."""


class OutcomeBook:
    """All lessons of one agent's journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def open(self, plan: Plan, controlled: Controlled) -> Outcome:
        """Watch one layout; that it was chosen is written once, however often its controller is restarted."""
        outcome = Outcome(plan, controlled, self._journal)
        if outcome.is_recorded and not any(
            (lesson.deployment, lesson.generation, lesson.plan_hash)
            == (plan.name, controlled.spawn_generation, controlled.plan_hash)
            for lesson in self.lessons().lessons
            if isinstance(lesson.what, PlanChosen)
        ):
            outcome.write_chosen()
        return outcome

    def lessons(self) -> Lessons:
        """The newest, oldest first."""
        events = self._journal.read_kinds(tuple(KINDS), MAX_LESSONS)
        return Lessons(
            lessons=tuple(
                Lesson(
                    at_s=event.at_s,
                    deployment=event.deployment,
                    generation=event.generation,
                    plan_hash=event.plan_hash,
                    what=msgspec.json.decode(event.body, type=KINDS[event.kind]),
                )
                for event in events
            )
        )


class Outcome:
    """One layout in service: turns counts that only grow into measurements of what came between two looks."""

    def __init__(self, plan: Plan, controlled: Controlled, journal: Journal) -> None:
        self._plan = plan
        self._controlled = controlled
        self._journal = journal
        self._before: BackendStatus | None = None
        self._began_s = 0.0
        self._idle_since_s: float | None = None

    @property
    def is_recorded(self) -> bool:
        return self._plan.learning is None or self._plan.learning.records

    def look(self, status: BackendStatus | None, *, now_s: float) -> None:
        """Write a measurement when requests have ended and none is there any more, or when one is overdue."""
        if status is None or not self.is_recorded:
            return
        if self._before is None or status.generation != self._before.generation or _restarted(status, self._before):
            self._before, self._began_s, self._idle_since_s = status, now_s, None
            return
        is_idle = status.running == 0 and status.queued == 0
        if not is_idle:
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = now_s
        has_rested = self._idle_since_s is not None and now_s - self._idle_since_s >= IDLE_S
        if not has_rested and now_s - self._began_s < MAX_WINDOW_S:
            return
        measured = measure(self._plan, self._controlled, self._before, status, observed_s=now_s - self._began_s)
        if measured is not None:
            self._append("PlanMeasured", measured)
            self._before, self._began_s = status, now_s

    def write_chosen(self) -> None:
        plan = self._plan
        chosen = PlanChosen(
            model=plan.model.name,
            arm=_arm(plan),
            asked=plan.objective.strategy,
            objective=plan.objective.kind,
            propensity=plan.learning.propensity if plan.learning is not None else 1.0,
            predicted=_figures(plan.predicted),
        )
        self._append("PlanChosen", chosen)

    def _append(self, kind: str, body: PlanChosen | PlanMeasured) -> None:
        self._journal.append(
            kind,
            deployment=self._plan.name,
            generation=self._controlled.spawn_generation,
            plan_hash=self._controlled.plan_hash,
            body=body,
        )


def measure(
    plan: Plan, controlled: Controlled, before: BackendStatus, after: BackendStatus, *, observed_s: float
) -> PlanMeasured | None:
    """What happened between two looks at a backend's counts; None when no request ended."""
    finished, failed = after.finished - before.finished, after.failed - before.failed
    answered = after.num_first_tokens - before.num_first_tokens
    if finished + failed == 0:
        return None
    busy_s = after.busy_s - before.busy_s
    ttft_s, decode_s = after.ttft_s_sum - before.ttft_s_sum, after.decode_s_sum - before.decode_s_sum
    decoded = after.decoded_tokens - before.decoded_tokens
    generated = after.generated_tokens - before.generated_tokens
    return PlanMeasured(
        model=plan.model.name,
        arm=_arm(plan),
        context=Context(
            prompt_tokens=(after.prompt_tokens - before.prompt_tokens) / max(1, answered),
            output_tokens=generated / max(1, answered),
            # By Little's law: seconds that requests were there, all added up, per second that any was.
            batch=max(1.0, (ttft_s + decode_s) / busy_s) if busy_s > 0 else 1.0,
            num_layers=controlled.spec.num_layers,
            weight_bytes=controlled.spec.num_active_parameters
            * weight_bytes(plan.serving.dtype, plan.serving.quantisation),
            has_experts=controlled.spec.num_experts > 0,
            link=link_class([shard.host for stage in plan.replicas[0].stages for shard in stage.shards]),
        ),
        predicted=_figures(plan.predicted),
        measured=Figures(
            time_per_token_s=decode_s / decoded if decoded else None,
            ttft_s=ttft_s / answered if answered else None,
            tokens_per_s=generated / busy_s if busy_s > 0 else None,
        ),
        slots=after.slots,
        finished=finished,
        failed=failed,
        busy_s=busy_s,
        observed_s=observed_s,
    )


def _restarted(after: BackendStatus, before: BackendStatus) -> bool:
    """Counts of a gateway that began anew."""
    return after.generated_tokens < before.generated_tokens or after.finished < before.finished


def _arm(plan: Plan) -> str:
    return arm_of([stage.tensor_parallel_size for stage in plan.replicas[0].stages])


def _figures(predicted: Predicted) -> Figures:
    return Figures(
        time_per_token_s=predicted.time_per_token_s, ttft_s=predicted.ttft_s, tokens_per_s=predicted.tokens_per_s
    )
