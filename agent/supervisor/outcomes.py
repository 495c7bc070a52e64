"""What applied plans turned out to do, journalled to be learnt from: one lesson for each stretch of requests."""

from __future__ import annotations

import msgspec

from agent.journal import Journal
from agent.planner.learning.records import KINDS, Figures, Lesson, Lessons, PlanChosen, PlanMeasured, arm_of
from agent.planner.learning.workload import Context, link_class
from agent.planner.plan import Plan, Predicted
from agent.planner.shards import weight_bytes
from agent.supervisor.deployment import Controlled
from agent.supervisor.stretch import Stretch

MAX_LESSONS = 5000
"""The newest that are told: their moving averages have forgotten what was before."""


class OutcomeBook:
    """All lessons of one agent's journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def open(self, plan: Plan, controlled: Controlled) -> Outcome:
        """Lessons of one layout; that it was chosen is written once, however often its controller is restarted."""
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
    """One layout in service: writes what there is to learn of it."""

    def __init__(self, plan: Plan, controlled: Controlled, journal: Journal) -> None:
        self._plan = plan
        self._controlled = controlled
        self._journal = journal

    @property
    def is_recorded(self) -> bool:
        return self._plan.learning is None or self._plan.learning.records

    def write_measured(self, stretch: Stretch) -> None:
        if self.is_recorded:
            self._append("PlanMeasured", measure(self._plan, self._controlled, stretch))

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


def measure(plan: Plan, controlled: Controlled, stretch: Stretch) -> PlanMeasured:
    """A stretch of requests as a lesson on the plan that served them."""
    return PlanMeasured(
        model=plan.model.name,
        arm=_arm(plan),
        context=Context(
            prompt_tokens=stretch.prompt_tokens,
            output_tokens=stretch.answer_tokens,
            batch=stretch.streams,
            num_layers=controlled.spec.num_layers,
            weight_bytes=controlled.spec.num_active_parameters
            * weight_bytes(plan.serving.dtype, plan.serving.quantisation),
            has_experts=controlled.spec.num_experts > 0,
            link=link_class([shard.host for stage in plan.replicas[0].stages for shard in stage.shards]),
        ),
        predicted=_figures(plan.predicted),
        measured=Figures(
            time_per_token_s=stretch.time_per_token_s, ttft_s=stretch.ttft_s, tokens_per_s=stretch.tokens_per_s
        ),
        slots=stretch.after.slots,
        finished=stretch.finished,
        failed=stretch.failed,
        busy_s=stretch.busy_s,
        observed_s=stretch.observed_s,
    )


def _arm(plan: Plan) -> str:
    return arm_of([stage.tensor_parallel_size for stage in plan.replicas[0].stages])


def _figures(predicted: Predicted) -> Figures:
    return Figures(
        time_per_token_s=predicted.time_per_token_s, ttft_s=predicted.ttft_s, tokens_per_s=predicted.tokens_per_s
    )
