"""What controllers journalled of applied plans, brought together: for plans, `strategies` and the UI."""

from __future__ import annotations

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.planner.advise import DriftAlarm, drift_alarms
from agent.planner.evidence import changes
from agent.planner.learning.course import Measurement, course_of
from agent.planner.learning.records import Lesson, Lessons, in_order
from agent.planner.learning.state import Selection, replay
from agent.planner.learning.summary import StrategyRow, regret_so_far, summarise
from agent.planner.learning.weights import ObjectiveWeights
from odctl.apply import add_runs, read_facts
from odctl.fleet import Fleet
from odctl.inventory import Learning


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of a plan left what it did before for good: a link or a device of it is not what it was."""

    plan_hash: str
    since_s: float


class LearningReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that `odctl strategies --json` says."""

    settings: Learning = Learning()
    weights: ObjectiveWeights = ObjectiveWeights()
    strategies: tuple[StrategyRow, ...] = ()
    history: tuple[Selection, ...] = ()
    """Oldest first."""
    measurements: tuple[Measurement, ...] = ()
    """Each stretch of requests with what was predicted of it, oldest first."""
    regret: float | None = None
    """Mean over requests of what they took longer per token than with the best strategy measured for them."""
    alarms: tuple[DriftAlarm, ...] = ()
    changes: tuple[Change, ...] = ()
    num_runs: int = 0
    """Measured runs that the cost model is fitted to."""
    missing: dict[str, ErrorDetail] = {}
    """Hosts that do not answer, and why."""


async def read_lessons(fleet: Fleet) -> tuple[tuple[Lesson, ...], dict[str, FleetError]]:
    """Lessons of all hosts that answer, oldest first, and why the others do not."""
    answers = await fleet.get_all("/v1/learning", Lessons)
    missing = {host: answer for host, answer in answers.items() if isinstance(answer, FleetError)}
    known = [answer for answer in answers.values() if not isinstance(answer, FleetError)]
    return in_order([lesson for each in known for lesson in each.lessons]), missing


async def read_learning(fleet: Fleet, settings: Learning) -> LearningReport:
    """Everything that applied plans taught. Raises FleetError of a host when none answers."""
    lessons, missing = await read_lessons(fleet)
    if len(missing) == len(fleet.hosts):
        raise next(iter(missing.values()), FleetError("E105", "the inventory has no host"))
    state = replay(lessons)
    rows = summarise(state)
    facts, _ = await read_facts(fleet, fleet.cluster)
    facts = await add_runs(fleet, facts)
    return LearningReport(
        settings=settings,
        weights=state.weights,
        strategies=rows,
        history=state.selections,
        measurements=course_of(lessons),
        regret=regret_so_far(rows),
        alarms=drift_alarms(lessons),
        changes=tuple(
            Change(plan_hash=plan_hash, since_s=since_s) for plan_hash, since_s in sorted(changes(facts).items())
        ),
        num_runs=len(facts.runs),
        missing={host: error.detail for host, error in missing.items()},
    )
