"""Lessons in, state out; and what a plan makes of them."""

from __future__ import annotations

import msgspec
import pytest

from agent.planner.advise import drift_alarms
from agent.planner.file import plan_from_toml, plan_to_toml
from agent.planner.learning.records import Figures, Lesson, PlanChosen, PlanMeasured, arm_of, in_order
from agent.planner.learning.state import KEPT_SELECTIONS, replay
from agent.planner.learning.summary import regret_so_far, summarise
from agent.planner.learning.workload import NUM_FEATURES, Context, bucket_of, features_of, link_class
from agent.planner.make import make_plan
from agent.planner.plan import Learning, Objective, Plan
from tests.agent.planner.clusters import cluster, gpu, host, model, request

PREDICTED = Figures(time_per_token_s=0.010, ttft_s=0.1, tokens_per_s=400.0)


def context(**changed: object) -> Context:
    usual = Context(prompt_tokens=256, output_tokens=100, batch=1, num_layers=32, weight_bytes=1e9, link="network")
    return msgspec.structs.replace(usual, **changed)


def measured(
    arm: str, seconds: float, *, at_s: float = 0.0, failed: int = 0, model: str = "m", plan_hash: str = "a"
) -> Lesson:
    what = PlanMeasured(
        model=model,
        arm=arm,
        context=context(),
        predicted=PREDICTED,
        measured=Figures(time_per_token_s=seconds, ttft_s=0.2, tokens_per_s=50.0),
        slots=8,
        finished=4 - failed,
        failed=failed,
        busy_s=2.0,
        observed_s=10.0,
    )
    return Lesson(at_s=at_s, deployment="chat", generation=1, plan_hash=plan_hash, what=what)


def chosen(arm: str, *, at_s: float = 0.0, plan_hash: str = "a") -> Lesson:
    what = PlanChosen(
        model="m", arm=arm, asked="adaptive", objective="latency", propensity=1.0, predicted=PREDICTED
    )
    return Lesson(at_s=at_s, deployment="chat", generation=1, plan_hash=plan_hash, what=what)


def test_a_strategy_is_judged_on_each_kind_of_workload_by_itself() -> None:
    state = replay(
        [measured("tensor 2", 0.012), measured("tensor 2", 0.014, failed=1), measured("pipeline 2", 0.020)]
    )
    pipeline, tensor = summarise(state)
    assert (tensor.arm, tensor.executions, tensor.measurements) == ("tensor 2", 8, 2)
    assert tensor.success == pytest.approx((0.9 * 0.1 * 1 + 0.1 * 0.75) / (1 - 0.81))
    assert tensor.time_per_token_s == pytest.approx((0.9 * 0.1 * 0.012 + 0.1 * 0.014) / (1 - 0.81))
    assert tensor.time_per_token_s is not None
    assert tensor.utilisation == pytest.approx(0.2)
    assert tensor.error == pytest.approx(tensor.time_per_token_s / 0.010 - 1)
    assert tensor.regret == 0
    assert pipeline.regret == pytest.approx(0.020 / tensor.time_per_token_s - 1)
    assert tensor.weight > pipeline.weight
    assert tensor.weight + pipeline.weight == pytest.approx(1)


def test_regret_so_far_weighs_each_strategy_by_its_requests() -> None:
    assert regret_so_far(()) is None
    rows = summarise(replay([measured("tensor 2", 0.010), measured("pipeline 2", 0.020)]))
    assert regret_so_far(rows) == pytest.approx(0.5), "half of the requests took twice as long"
    rows = summarise(replay([*[measured("tensor 2", 0.010)] * 3, measured("pipeline 2", 0.020)]))
    assert regret_so_far(rows) == pytest.approx(0.25)


def test_an_alarm_names_the_measurement_that_raised_it() -> None:
    calm = [measured("tensor 2", 0.010, at_s=float(index)) for index in range(8)]
    assert drift_alarms(calm) == ()
    slow = [measured("tensor 2", 0.060, at_s=100.0 + index) for index in range(8)]
    first, *_ = drift_alarms([*calm, *slow])
    assert (first.arm, first.deployment) == ("tensor 2", "chat")
    assert 100 < first.at_s < 106
    assert first.ratio == pytest.approx(6.0)


def test_a_choice_gets_the_outcome_of_its_plan() -> None:
    lessons = [
        chosen("pipeline 2", at_s=1, plan_hash="a"),
        chosen("tensor 2", at_s=3, plan_hash="b"),
        measured("pipeline 2", 0.02, at_s=2, plan_hash="a"),
    ]
    first, second = replay(in_order(lessons)).selections
    assert first.outcome is not None
    assert (first.outcome.time_per_token_s, first.requests) == (0.02, 4)
    assert second.outcome is None


def test_history_is_pruned_to_the_newest() -> None:
    state = replay(chosen("tensor 2", at_s=float(index)) for index in range(KEPT_SELECTIONS + 7))
    assert len(state.selections) == KEPT_SELECTIONS
    assert state.selections[0].at_s == 7


def test_contexts_fall_into_buckets_and_have_features() -> None:
    assert bucket_of(context()) == "short prompts, one at a time, deep model"
    long = context(prompt_tokens=4096, batch=16, num_layers=20)
    assert bucket_of(long) == "long prompts, many at once, shallow model"
    assert len(features_of(context(), 0.01)) == NUM_FEATURES
    assert [link_class(hosts) for hosts in (["a"], ["a", "a"], ["a", "b"])] == ["none", "host", "network"]


def test_arms_are_named_by_their_shape() -> None:
    assert [arm_of(sizes) for sizes in ([1], [1, 1, 1], [4], [1, 2])] == [
        "single device",
        "pipeline 3",
        "tensor 4",
        "hybrid 1,2",
    ]


TWIN = cluster(host("a", gpu(0, "NVIDIA A100", 80), gpu(1, "NVIDIA A100", 80)))


def arm_chosen(plan: Plan) -> str:
    return arm_of([stage.tensor_parallel_size for stage in plan.replicas[0].stages])


def test_without_lessons_the_estimate_decides_and_nothing_is_said_of_learning() -> None:
    plan = make_plan(request(model(), TWIN))
    assert not any("learnt" in line for line in plan.why)
    assert plan.learning is None
    assert "[learning]" not in plan_to_toml(plan)


def test_a_strategy_that_proved_slow_is_left_for_another_and_the_plan_says_why() -> None:
    by_estimate = make_plan(request(model(), TWIN))
    arm = arm_chosen(by_estimate)
    lessons = tuple(measured(arm, 0.060, model=by_estimate.model.name) for _ in range(6))
    plan = make_plan(request(model(), TWIN, lessons=lessons))
    assert arm_chosen(plan) != arm
    assert plan == make_plan(request(model(), TWIN, lessons=lessons))
    assert any(f"{arm} " in line and "(6 runs)" in line for line in plan.why), plan.why
    assert any(line.startswith(f"the estimate alone says {arm}") for line in plan.why), plan.why


def test_a_strategy_asked_for_by_name_is_not_argued_with() -> None:
    lessons = tuple(measured("tensor 2", 1.0, model="m") for _ in range(6))
    objective = Objective(strategy="tensor")
    plan = make_plan(request(model(), TWIN, objective=objective, lessons=lessons))
    assert arm_chosen(plan) == "tensor 2"
    assert not any("learnt" in line for line in plan.why)


def test_a_plan_keeps_what_learning_had_to_do_with_it() -> None:
    plan = make_plan(request(model(), TWIN, is_recorded=False))
    assert plan.learning == Learning(records=False)
    assert plan_from_toml(plan_to_toml(plan), file="plan.toml") == plan
