from __future__ import annotations

import math

import msgspec
import pytest

from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.planner.calibration import COVERAGE_DEVIATIONS, PRIOR, RUN_NOISE, fit_calibration
from agent.planner.energy import WATTS_DEVIATION, mean_energy, predict_energy
from agent.planner.interval import Interval
from agent.planner.layout import layouts_of_plan
from agent.planner.make import make_plan
from agent.planner.plan import Objective, ObjectiveKind, Plan, Serving
from agent.planner.problem import make_problem
from tests.agent.planner.clusters import LLAMA_1B, LLAMA_70B, MIXED_GPUS, THREE_CPUS, plan_for, request
from tests.agent.planner.test_evidence import run_of, with_runs


def energy_of(plan: Plan) -> Interval:
    energy = plan.predicted.energy
    assert energy is not None
    return energy


@pytest.mark.parametrize(("spec", "facts"), [(LLAMA_1B, THREE_CPUS), (LLAMA_70B, MIXED_GPUS)])
def test_joules_of_the_parts_are_those_of_the_estimate(spec: ModelSpec, facts: ClusterFacts) -> None:
    asked = request(spec, facts, objective=Objective(kind="energy"))
    problem = make_problem(asked)
    (layout,) = layouts_of_plan(make_plan(asked), facts)
    estimate = problem.estimate(layout)
    assert predict_energy(estimate, PRIOR).expected == pytest.approx(estimate.joules_per_token)


def test_watts_that_nothing_measured_are_most_of_the_width() -> None:
    plan = plan_for(LLAMA_70B, MIXED_GPUS)
    energy, seconds = energy_of(plan), plan.predicted.throughput
    assert energy.low < energy.expected < energy.high
    assert energy.log_width > seconds.log_width
    assert energy.log_width > 2 * COVERAGE_DEVIATIONS * math.hypot(WATTS_DEVIATION["cuda"], RUN_NOISE)


def test_runs_narrow_the_seconds_of_the_energy_and_not_its_watts() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    run = run_of(plan, factor=1.0)
    later = energy_of(plan_for(LLAMA_1B, with_runs(THREE_CPUS, *[run] * 6)))
    assert later.log_width < energy_of(plan).log_width
    assert later.log_width > 2 * COVERAGE_DEVIATIONS * WATTS_DEVIATION["cpu"]


def test_replicas_count_by_the_tokens_that_they_give() -> None:
    one, other = Interval(low=1, expected=2, high=3), Interval(low=4, expected=5, high=6)
    assert mean_energy([one, other], [3, 1]) == Interval(low=1.75, expected=2.75, high=3.75)
    assert mean_energy([one], [7.0]) == one


def test_calibrated_seconds_scale_the_joules() -> None:
    asked = request(LLAMA_1B, THREE_CPUS)
    (layout,) = layouts_of_plan(make_plan(asked), THREE_CPUS)
    estimate = make_problem(asked).estimate(layout)
    slower = msgspec.structs.replace(
        fit_calibration([]), corrections={"unprobed cpu reads": math.log(2), "unprobed cpu launches": math.log(2)}
    )
    assert predict_energy(estimate, slower).expected > 1.5 * predict_energy(estimate, PRIOR).expected


@pytest.mark.parametrize(
    ("spec", "facts"), [(LLAMA_1B, MIXED_GPUS), (LLAMA_70B, MIXED_GPUS), (LLAMA_1B, THREE_CPUS)]
)
def test_a_plan_for_energy_takes_no_more_than_those_for_something_else(
    spec: ModelSpec, facts: ClusterFacts
) -> None:
    serving = Serving(quantisation="int4")
    least = energy_of(plan_for(spec, facts, serving=serving, objective=Objective(kind="energy"))).expected
    kinds: tuple[ObjectiveKind, ...] = ("latency", "throughput", "ttft")
    for kind in kinds:
        other = plan_for(spec, facts, serving=serving, objective=Objective(kind=kind))
        assert least <= energy_of(other).expected * (1 + 1e-6)
