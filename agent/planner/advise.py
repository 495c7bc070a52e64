"""What measured runs say to a choice between layouts: the estimates, corrected by what was learnt. Pure, seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from agent.errors import FleetError
from agent.planner.cost import Estimate
from agent.planner.evidence import MAX_RUNS, changes
from agent.planner.file import plan_from_toml
from agent.planner.layout import Layout
from agent.planner.learning.bandit import ResidualBandit
from agent.planner.learning.choose import Candidate, Choice, choose
from agent.planner.learning.records import Figures, Lesson, PlanChosen, PlanMeasured, arm_of
from agent.planner.learning.workload import NUM_FEATURES, Context, features_of, link_class
from agent.planner.plan import ObjectiveKind
from agent.planner.predict import predict_plan
from agent.planner.problem import Problem, choose_estimated, objective_value
from agent.planner.shards import weight_bytes

FigureName = Literal["time_per_token_s", "ttft_s", "tokens_per_s"]
FIGURES: dict[ObjectiveKind, FigureName] = {
    "latency": "time_per_token_s",
    "context": "time_per_token_s",
    "ttft": "ttft_s",
    "throughput": "tokens_per_s",
}
"""What an objective learns from; joules are not measured."""
TRAINED_LESSONS = 600
"""The newest; a twentieth of what the one before them taught would be left."""
LOAD_BYTES_PER_S = 1e9
"""Weights that a switch loads, from disk or a neighbour."""
USUAL_OUTPUT_TOKENS = 128.0


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The best layout of each arm, and which of them to take."""

    layouts: tuple[tuple[Layout, Estimate], ...]
    arms: tuple[str, ...]
    choice: Choice
    runs: dict[str, int]
    """Measurements of each arm that were learnt from."""
    alarms: int

    @property
    def chosen(self) -> tuple[Layout, Estimate]:
        return self.layouts[self.choice.index]

    @property
    def num_runs(self) -> int:
        return sum(self.runs.values())


def advise(problem: Problem, layouts: Sequence[Layout]) -> Advice | None:
    """Choose among these; None where nothing was measured that the objective could learn from."""
    request = problem.request
    figure = FIGURES.get(request.objective.kind)
    if figure is None or request.objective.strategy != "adaptive" or not request.lessons or problem.is_probe:
        return None
    bandit = _train(current_lessons(problem)[-TRAINED_LESSONS:], figure)
    by_arm: dict[str, list[Layout]] = {}
    for layout in layouts:
        by_arm.setdefault(arm_of(layout.tensor_parallel_sizes), []).append(layout)
    best = {arm: choose_estimated(problem, same) for arm, same in sorted(by_arm.items())}
    found = {arm: one for arm, one in best.items() if one is not None}
    if not bandit.runs or not found:
        return None
    running = _running_arm(request.lessons, request.name)
    candidates = [_candidate(problem, arm, *one, running=running) for arm, one in found.items()]
    choice = choose(
        bandit, candidates, model=request.model.name, seed=request.seed, may_explore=request.may_explore
    )
    return Advice(
        layouts=tuple(found.values()), arms=tuple(found), choice=choice, runs=bandit.runs, alarms=bandit.alarms
    )


def current_lessons(problem: Problem) -> tuple[Lesson, ...]:
    """Lessons as they are to be learnt from now: what was measured, against what would be predicted today.

    Runs have corrected the cost model since a plan was made; against its old promise the same error would count
    twice, and for plans that have nothing to do with it. Left out is what was measured before a change that runs of
    the plan's own links or devices show.
    """
    facts = problem.request.facts
    if not facts.runs:
        return problem.request.lessons
    since, promised = changes(facts), _promised(problem)
    out = []
    for lesson in problem.request.lessons:
        measured = lesson.what
        if isinstance(measured, PlanMeasured):
            if lesson.at_s < since.get(lesson.plan_hash, -math.inf):
                continue
            measured = msgspec.structs.replace(
                measured, predicted=promised.get(lesson.plan_hash, measured.predicted)
            )
        out.append(msgspec.structs.replace(lesson, what=measured))
    return tuple(out)


def _promised(problem: Problem) -> dict[str, Figures]:
    """What today's facts and constants predict for the plans that runs are known of, by hash."""
    facts = problem.request.facts
    found: dict[str, Figures] = {}
    for run in reversed(facts.runs[-MAX_RUNS:]):
        if run.plan_hash in found:
            continue
        plan = plan_from_toml(run.plan_toml, file=f"plan {run.plan_hash[:12]}")
        try:
            predicted = predict_plan(plan, run.spec, facts, calibration=problem.calibration)
        except FleetError:
            continue  # its devices are gone: what it promised then is all there is
        found[run.plan_hash] = Figures(
            time_per_token_s=predicted.time_per_token_s,
            ttft_s=predicted.ttft_s,
            tokens_per_s=predicted.tokens_per_s,
        )
    return found


def choose_layout(problem: Problem, layouts: Sequence[Layout]) -> tuple[Layout, Estimate] | None:
    """The best layout: by what was learnt where something was, else by its estimate. None of nothing."""
    advice = advise(problem, layouts)
    return choose_estimated(problem, list(layouts)) if advice is None else advice.chosen


def _candidate(problem: Problem, arm: str, layout: Layout, estimate: Estimate, *, running: str) -> Candidate:
    context = Context(
        prompt_tokens=problem.prompt_tokens,
        output_tokens=_output_tokens(problem.request.lessons),
        batch=problem.serving.batch if problem.request.objective.kind == "throughput" else 1,
        num_layers=problem.spec.num_layers,
        weight_bytes=_active_bytes(problem),
        has_experts=problem.spec.num_experts > 0,
        link=link_class([place.host for place in layout.places]),
    )
    is_switch = running not in ("", arm)
    return Candidate(
        arm=arm,
        predicted=objective_value(problem, estimate),
        features=features_of(context, estimate.time_per_token_s),
        reload_s=_active_bytes(problem) / LOAD_BYTES_PER_S if is_switch else 0.0,
    )


def _active_bytes(problem: Problem) -> float:
    serving = problem.serving
    return problem.spec.num_active_parameters * weight_bytes(serving.dtype, serving.quantisation)


@lru_cache(maxsize=4)
def _train(lessons: tuple[Lesson, ...], figure: FigureName) -> ResidualBandit:
    """A bandit that has seen them in order. A choice changes nothing in it but makes room for new arms."""
    bandit = ResidualBandit(NUM_FEATURES)
    for lesson in lessons:
        measured = lesson.what
        if not isinstance(measured, PlanMeasured):
            continue
        residual = _residual(measured, figure)
        predicted = measured.predicted.time_per_token_s
        if residual is not None and predicted:
            features = features_of(measured.context, predicted)
            bandit.observe(measured.arm, features, residual, model=measured.model)
    return bandit


def _residual(measured: PlanMeasured, figure: FigureName) -> float | None:
    """log(actual / predicted) of seconds, or of seconds per token where the figure is a rate."""
    promised, found = getattr(measured.predicted, figure), getattr(measured.measured, figure)
    if not promised or not found:
        return None
    if figure != "tokens_per_s":
        return math.log(found / promised)
    # The prediction is for a full batch, and says nothing of fewer requests.
    return math.log(promised / found) if measured.context.batch >= measured.slots / 2 else None


def _running_arm(lessons: tuple[Lesson, ...], deployment: str) -> str:
    chosen = (each for each in reversed(lessons) if each.deployment == deployment)
    return next((each.what.arm for each in chosen if isinstance(each.what, PlanChosen)), "")


def _output_tokens(lessons: tuple[Lesson, ...]) -> float:
    lengths = [each.what.context.output_tokens for each in lessons if isinstance(each.what, PlanMeasured)]
    return sum(lengths) / len(lengths) if lengths else USUAL_OUTPUT_TOKENS
