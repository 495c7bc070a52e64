"""The learning state: what lessons add up to, per strategy and kind of workload. Pure: lessons in, state out."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent.planner.learning.averages import MovingAverage
from agent.planner.learning.records import Figures, Lesson, PlanChosen, PlanMeasured
from agent.planner.learning.weights import ObjectiveWeights, Slack, adapt_weights
from agent.planner.learning.workload import Context, bucket_of

KEPT_SELECTIONS = 1000


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy on one kind of workload: moving averages over measurements, counts over requests."""

    arm: str
    bucket: str
    executions: int = 0
    """Requests, failed ones included."""
    measurements: int = 0
    success: MovingAverage = MovingAverage()
    time_per_token_s: MovingAverage = MovingAverage()
    ttft_s: MovingAverage = MovingAverage()
    tokens_per_s: MovingAverage = MovingAverage()
    utilisation: MovingAverage = MovingAverage()
    """Share of the time in which a request was there."""
    predicted_s: MovingAverage = MovingAverage()
    """Seconds per token, of the plans that were measured."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a plan: what was expected, and what came of it. None: nothing was measured yet."""

    at_s: float
    deployment: str
    generation: int
    plan_hash: str
    chosen: PlanChosen
    context: Context | None = None
    outcome: Figures | None = None
    """The last measurement's."""
    requests: int = 0
    failed: int = 0


class LearningState(msgspec.Struct, frozen=True, kw_only=True):
    performances: tuple[Performance, ...] = ()
    """Sorted by bucket, then by strategy."""
    selections: tuple[Selection, ...] = ()
    """The newest `KEPT_SELECTIONS`, oldest first."""
    weights: ObjectiveWeights = ObjectiveWeights()


def replay(lessons: Iterable[Lesson]) -> LearningState:
    """The state after all of them, which are in order."""
    state = LearningState()
    for lesson in lessons:
        state = learn(state, lesson)
    return state


def learn(state: LearningState, lesson: Lesson) -> LearningState:
    """The state one lesson later."""
    match lesson.what:
        case PlanChosen() as chosen:
            selection = Selection(
                at_s=lesson.at_s,
                deployment=lesson.deployment,
                generation=lesson.generation,
                plan_hash=lesson.plan_hash,
                chosen=chosen,
            )
            kept = (*state.selections, selection)[-KEPT_SELECTIONS:]
            return msgspec.structs.replace(state, selections=kept)
        case PlanMeasured() as measured:
            return LearningState(
                performances=_performances(state.performances, measured),
                selections=_with_outcome(state.selections, lesson, measured),
                weights=adapt_weights(state.weights, _slack(measured)),
            )


def _performances(known: tuple[Performance, ...], measured: PlanMeasured) -> tuple[Performance, ...]:
    by_key = {(each.bucket, each.arm): each for each in known}
    key = (bucket_of(measured.context), measured.arm)
    before = by_key.get(key, Performance(arm=measured.arm, bucket=key[0]))
    requests = measured.finished + measured.failed
    figures = measured.measured
    by_key[key] = Performance(
        arm=before.arm,
        bucket=before.bucket,
        executions=before.executions + requests,
        measurements=before.measurements + 1,
        success=_with(before.success, measured.finished / requests if requests else None),
        time_per_token_s=_with(before.time_per_token_s, figures.time_per_token_s),
        ttft_s=_with(before.ttft_s, figures.ttft_s),
        tokens_per_s=_with(before.tokens_per_s, figures.tokens_per_s),
        utilisation=_with(
            before.utilisation, min(1.0, measured.busy_s / measured.observed_s) if measured.observed_s else None
        ),
        predicted_s=_with(
            before.predicted_s, measured.predicted.time_per_token_s if figures.time_per_token_s else None
        ),
    )
    return tuple(by_key[each] for each in sorted(by_key))


def _with(average: MovingAverage, value: float | None) -> MovingAverage:
    return average if value is None else average.with_value(value)


def _with_outcome(
    selections: tuple[Selection, ...], lesson: Lesson, measured: PlanMeasured
) -> tuple[Selection, ...]:
    """The newest selection of that plan gets the outcome; one that was pruned gets none."""
    for index in range(len(selections) - 1, -1, -1):
        selection = selections[index]
        if (selection.deployment, selection.plan_hash) == (lesson.deployment, lesson.plan_hash):
            changed = msgspec.structs.replace(
                selection,
                context=measured.context,
                outcome=measured.measured,
                requests=selection.requests + measured.finished + measured.failed,
                failed=selection.failed + measured.failed,
            )
            return (*selections[:index], changed, *selections[index + 1 :])
    return selections


def _slack(measured: PlanMeasured) -> Slack:
    """Against what was predicted, which is what a plan promises. Energy and money are not measured."""
    promised, found = measured.predicted, measured.measured
    latency = throughput = 0.0
    if promised.time_per_token_s and found.time_per_token_s:
        latency = 1 - found.time_per_token_s / promised.time_per_token_s
    if promised.tokens_per_s and found.tokens_per_s:
        # A deployment that is asked for little is not behind what its full batch would reach.
        is_loaded = measured.context.batch >= measured.slots / 2
        throughput = found.tokens_per_s / promised.tokens_per_s - 1 if is_loaded else 0.0
    return Slack(latency=latency, throughput=throughput)
