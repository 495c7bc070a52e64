"""Lessons as they are to be learnt from now: what was measured, against what is predicted today. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.planner.calibration import Calibration
from agent.planner.evidence import MAX_RUNS, changes
from agent.planner.file import plan_from_toml
from agent.planner.learning.records import Figures, Lesson, PlanMeasured
from agent.planner.predict import predict_plan


def current_lessons(lessons: Sequence[Lesson], facts: ClusterFacts, calibration: Calibration) -> tuple[Lesson, ...]:
    """Runs have corrected the cost model since a plan was made, which `calibration` is: against the old promise the
    same error would count twice, and for plans that have nothing to do with it.

    Left out is what was measured before a change that runs of the plan's own links or devices show.
    """
    if not facts.runs or not lessons:
        return tuple(lessons)
    since, promised = changes(facts), _promised(facts, calibration)
    out = []
    for lesson in lessons:
        measured = lesson.what
        if isinstance(measured, PlanMeasured):
            if lesson.at_s < since.get(lesson.plan_hash, -math.inf):
                continue
            measured = msgspec.structs.replace(
                measured, predicted=promised.get(lesson.plan_hash, measured.predicted)
            )
        out.append(msgspec.structs.replace(lesson, what=measured))
    return tuple(out)


def _promised(facts: ClusterFacts, calibration: Calibration) -> dict[str, Figures]:
    """What today's facts and constants predict for the plans that runs are known of, by hash."""
    found: dict[str, Figures] = {}
    for run in reversed(facts.runs[-MAX_RUNS:]):
        if run.plan_hash in found:
            continue
        plan = plan_from_toml(run.plan_toml, file=f"plan {run.plan_hash[:12]}")
        try:
            predicted = predict_plan(plan, run.spec, facts, calibration=calibration)
        except FleetError:
            continue  # its devices are gone: what it promised then is all there is
        found[run.plan_hash] = Figures(
            time_per_token_s=predicted.time_per_token_s,
            ttft_s=predicted.ttft_s,
            tokens_per_s=predicted.tokens_per_s,
        )
    return found
