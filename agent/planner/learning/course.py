"""How learning went: every measurement with what was predicted of it, and the regret as it stood then. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from agent.planner.learning.records import Figures, Lesson, PlanMeasured
from agent.planner.learning.state import LearningState, learn
from agent.planner.learning.summary import regret_so_far, summarise
from agent.planner.learning.workload import bucket_of

TOLD_MEASUREMENTS = 1000
"""The newest; those before them are in the regret all the same."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of requests that a plan served."""

    at_s: float
    deployment: str
    generation: int
    plan_hash: str
    model: str
    arm: str
    bucket: str
    predicted: Figures
    measured: Figures
    requests: int
    """Failed ones included."""
    failed: int
    regret: float | None = None
    """`regret_so_far` after it; None before any time per token was measured."""

    @property
    def ratio(self) -> float | None:
        """Measured by predicted time per token; None where one of them is unknown."""
        promised, found = self.predicted.time_per_token_s, self.measured.time_per_token_s
        return found / promised if promised and found else None


def course_of(lessons: Sequence[Lesson]) -> tuple[Measurement, ...]:
    """The newest measurements, oldest first. Lessons are in order."""
    num_measured = sum(isinstance(lesson.what, PlanMeasured) for lesson in lessons)
    first_told = max(0, num_measured - TOLD_MEASUREMENTS)
    state, found, seen = LearningState(), [], 0
    for lesson in lessons:
        state = learn(state, lesson)
        if not isinstance(lesson.what, PlanMeasured):
            continue
        seen += 1
        if seen > first_told:
            found.append(_measurement(lesson, lesson.what, regret_so_far(summarise(state))))
    return tuple(found)


def median_error(measurements: Iterable[Measurement]) -> float | None:
    """How far predictions of the time per token were off: the median of |measured / predicted - 1|."""
    errors = [abs(each.ratio - 1) for each in measurements if each.ratio is not None]
    return median(errors) if errors else None


def _measurement(lesson: Lesson, measured: PlanMeasured, regret: float | None) -> Measurement:
    return Measurement(
        at_s=lesson.at_s,
        deployment=lesson.deployment,
        generation=lesson.generation,
        plan_hash=lesson.plan_hash,
        model=measured.model,
        arm=measured.arm,
        bucket=bucket_of(measured.context),
        predicted=measured.predicted,
        measured=measured.measured,
        requests=measured.finished + measured.failed,
        failed=measured.failed,
        regret=regret,
    )
