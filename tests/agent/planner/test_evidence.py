from __future__ import annotations

import msgspec
import pytest

from agent.facts.cluster import ClusterFacts
from agent.facts.run import MeasuredRun
from agent.planner.calibration import PRIOR
from agent.planner.evidence import MAX_RUNS, calibrate, streams_of
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import Plan
from agent.planner.predict import predict_plan
from agent.planner.rates import REQUEST_S, WARM_REQUEST_S
from tests.agent.planner.clusters import LLAMA_1B, LLAMA_70B, MIXED_GPUS, THREE_CPUS, plan_for
from tests.agent.planner.test_rehearsal import facts, rehearsed


def run_of(
    plan: Plan, *, factor: float, prompt_tokens: int | None = None, streams: int = 1, ttft_factor: float = 0.0
) -> MeasuredRun:
    """A run of a plan that took `factor` times what was predicted."""
    return MeasuredRun(
        deployment=plan.name,
        plan_hash=plan_hash(plan),
        plan_toml=plan_to_toml(plan),
        spec=LLAMA_1B,
        prompt_tokens=prompt_tokens or plan.predicted.prompt_tokens,
        streams=streams,
        time_per_token_s=plan.predicted.time_per_token_s * factor,
        ttft_s=plan.predicted.ttft_s * ttft_factor,
    )


def with_runs(facts: ClusterFacts, *runs: MeasuredRun) -> ClusterFacts:
    return msgspec.structs.replace(facts, runs=runs)


def test_without_runs_the_constants_are_the_published_ones() -> None:
    assert calibrate(THREE_CPUS) == PRIOR


def test_the_next_plan_expects_what_the_last_one_did_and_is_surer_of_it() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    facts = with_runs(THREE_CPUS, *[run_of(plan, factor=0.7, ttft_factor=0.7)] * 3)
    again = predict_plan(plan, LLAMA_1B, facts)
    assert again.time_per_token_s == pytest.approx(plan.predicted.time_per_token_s * 0.7, rel=0.05)
    assert again.ttft_s == pytest.approx(plan.predicted.ttft_s * 0.7, rel=0.05)
    assert again.time_per_token.log_width < plan.predicted.time_per_token.log_width / 2
    assert again.throughput.log_width < plan.predicted.throughput.log_width
    assert (plan.predicted.num_measured_runs, again.num_measured_runs) == (0, 6)


def test_equal_facts_with_runs_give_equal_files() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    facts = with_runs(THREE_CPUS, run_of(plan, factor=1.3), run_of(plan, factor=1.2, prompt_tokens=64))
    first, second = (plan_to_toml(plan_for(LLAMA_1B, facts)) for _ in range(2))
    assert first == second
    assert first != plan_to_toml(plan)


def test_a_run_at_another_prompt_is_held_against_what_was_predicted_for_it() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    short = predict_plan(
        msgspec.structs.replace(plan, predicted=msgspec.structs.replace(plan.predicted, prompt_tokens=16)),
        LLAMA_1B,
        THREE_CPUS,
    )
    run = msgspec.structs.replace(
        run_of(plan, factor=1.0, prompt_tokens=16),
        ttft_s=short.ttft_s - REQUEST_S,
        time_per_token_s=short.time_per_token_s,
    )
    again = predict_plan(plan, LLAMA_1B, with_runs(THREE_CPUS, run))
    assert again.ttft_s == pytest.approx(plan.predicted.ttft_s, rel=1e-3), "no gateway sees the client's way to it"


def test_a_check_finds_ranks_that_have_not_rested() -> None:
    known = facts(rehearsed())
    plan = plan_for(LLAMA_1B, known, max_hosts=1)
    at_once_s = predict_plan(plan, LLAMA_1B, facts(rehearsed(rests=False))).ttft_s - REQUEST_S
    check = msgspec.structs.replace(run_of(plan, factor=1.0), source="check", ttft_s=at_once_s)
    again = predict_plan(plan, LLAMA_1B, with_runs(known, check))
    assert again.ttft_s == pytest.approx(plan.predicted.ttft_s, rel=1e-3)
    assert plan.predicted.ttft_s > at_once_s + WARM_REQUEST_S, "a request does find them rested"


def test_a_run_on_devices_that_are_gone_is_left_out() -> None:
    elsewhere = plan_for(LLAMA_70B, MIXED_GPUS)
    run = msgspec.structs.replace(run_of(elsewhere, factor=2.0), spec=LLAMA_70B)
    assert calibrate(with_runs(THREE_CPUS, run)).num_runs == 0


def test_the_newest_runs_count() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    old, new = run_of(plan, factor=3.0), run_of(plan, factor=0.8)
    facts = with_runs(THREE_CPUS, *[old] * 20, *[new] * MAX_RUNS)
    assert predict_plan(plan, LLAMA_1B, facts).time_per_token_s == pytest.approx(
        0.8 * plan.predicted.time_per_token_s, rel=0.02
    )


def test_runs_of_many_streams_tell_about_the_throughput() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    run = msgspec.structs.replace(
        run_of(plan, factor=1.0, streams=plan.serving.batch),
        answer_tokens=plan.predicted.answer_tokens,
        tokens_per_s=plan.predicted.tokens_per_s / 1.5,
    )
    again = predict_plan(plan, LLAMA_1B, with_runs(THREE_CPUS, *[run] * 4))
    assert again.tokens_per_s == pytest.approx(plan.predicted.tokens_per_s / 1.5, rel=0.05)


def test_a_load_of_one_request_now_and_of_many_then_is_held_against_both() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)

    def rate(streams: int) -> float:
        serving = msgspec.structs.replace(plan.serving, batch=streams)
        return predict_plan(msgspec.structs.replace(plan, serving=serving), LLAMA_1B, THREE_CPUS).tokens_per_s

    seconds = 300 / rate(1) + 700 / rate(8)
    run = msgspec.structs.replace(
        run_of(plan, factor=1.0, streams=4),
        answer_tokens=plan.predicted.answer_tokens,
        tokens_per_s=1000 / seconds,
        tokens_by_streams={1: 300, 8: 700},
    )
    assert run.tokens_per_s < 0.8 * rate(4), "one load of four streams would have given more"
    again = predict_plan(plan, LLAMA_1B, with_runs(THREE_CPUS, *[run] * 4))
    assert again.tokens_per_s == pytest.approx(plan.predicted.tokens_per_s, rel=1e-3)


def test_numbers_of_streams_within_a_factor_of_two_are_one() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    run = msgspec.structs.replace(run_of(plan, factor=1.0), tokens_by_streams={1: 10, 4: 10, 5: 20, 7: 10, 9: 50})
    assert streams_of(run) == [(1, 0.1), (5, 0.4), (9, 0.5)]
    assert streams_of(run_of(plan, factor=1.0)) == []


def test_runs_of_earlier_releases_tell_about_decoding_alone() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    decoding = msgspec.structs.replace(plan, predicted=msgspec.structs.replace(plan.predicted, answer_tokens=0))
    before = predict_plan(decoding, LLAMA_1B, THREE_CPUS)
    cycle = plan.serving.batch / before.tokens_per_s
    run = msgspec.structs.replace(
        run_of(plan, factor=1.0, streams=plan.serving.batch), time_per_token_s=1.5 * cycle
    )
    again = predict_plan(decoding, LLAMA_1B, with_runs(THREE_CPUS, *[run] * 4))
    assert again.tokens_per_s == pytest.approx(before.tokens_per_s / 1.5, rel=0.05)
