"""The event loop against queueing theory, the cost model's own predictions, and any trace at all."""

from __future__ import annotations

import statistics

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.planner.predict import predict_plan
from agent.simulation.result import SimulatedRequest
from agent.simulation.step_times import Calibration
from agent.simulation.trace import TraceRequest
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, drafting, plan_for
from tests.agent.simulation.deployments import plan_with, poisson, run

ONE_BY_ONE = plan_with(batch=1, queue=1_000_000)


def asks(count: int, *, prompt: int = 16, output: int = 1, every_s: float = 0.0) -> list[TraceRequest]:
    return [
        TraceRequest(arrival_s=index * every_s, prompt_tokens=prompt, output_tokens=output)
        for index in range(count)
    ]


def test_an_idle_deployment_takes_the_time_that_the_plan_predicts() -> None:
    plan = plan_with(stages=3)
    [found] = run(plan, asks(1, prompt=plan.predicted.prompt_tokens, output=8)).requests
    assert found.tpot_s == pytest.approx(plan.predicted.time_per_token_s, rel=0.01)
    assert found.ttft_s == pytest.approx(plan.predicted.ttft_s, rel=0.02)


def test_waiting_is_that_of_a_queue_with_fixed_service() -> None:
    """M/D/1: one slot, one step a request. Mean wait = load x service / 2 / (1 - load) (Pollaczek-Khinchine)."""
    [alone] = run(ONE_BY_ONE, asks(1)).requests
    service_s, load = alone.ttft_s, 0.6
    found = run(ONE_BY_ONE, poisson(8_000, rate_per_s=load / service_s))
    waits = [each.ttft_s - service_s for each in found.requests]
    assert min(waits) == pytest.approx(0.0, abs=1e-9)
    assert statistics.mean(waits) == pytest.approx(load * service_s / 2 / (1 - load), rel=0.07)
    assert found.mean_queued == pytest.approx(load**2 / 2 / (1 - load), rel=0.1)  # Little's law


def test_no_stage_rests_while_there_is_work_for_it() -> None:
    [alone] = run(ONE_BY_ONE, asks(1)).requests
    found = run(ONE_BY_ONE, asks(50))
    assert found.elapsed_s == pytest.approx(50 * alone.ttft_s)
    assert found.peak_queued == 49


def test_two_replicas_halve_the_load() -> None:
    trace = poisson(160, rate_per_s=20.0, output=6)
    one, two = run(plan_with(), trace), run(plan_with(replicas=2), trace)
    first, second = (each.stages[0].busy_s for each in two.replicas)
    assert first == pytest.approx(second, rel=0.1)
    assert first == pytest.approx(one.replicas[0].stages[0].busy_s / 2, rel=0.15)
    assert two.mean_queued < 0.6 * one.mean_queued


def test_a_free_replica_takes_over_what_waits_at_another() -> None:
    long, short = (TraceRequest(arrival_s=0.0, prompt_tokens=16, output_tokens=count) for count in (200, 1))
    found = run(plan_with(replicas=2, batch=1), [long, short, short, short, short])
    assert max(each.ttft_s for each in found.requests) < found.requests[0].token_s[-1] / 2


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize(("prompt", "answer"), [(64, 64), (512, 128), (128, 256), (128, 24)])
def test_a_full_deployment_reaches_the_throughput_that_the_plan_predicts(
    stages: int, batch: int, prompt: int, answer: int
) -> None:
    plan = plan_with(stages=stages, batch=batch, queue=1000)
    conditions = msgspec.structs.replace(plan.predicted, prompt_tokens=prompt, answer_tokens=answer)
    predicted = predict_plan(msgspec.structs.replace(plan, predicted=conditions), LLAMA_1B, THREE_CPUS)
    count = 6 * batch
    found = run(plan, asks(count, prompt=prompt, output=answer))
    assert count * answer / found.elapsed_s == pytest.approx(predicted.tokens_per_s, rel=0.05)


def test_several_micro_batches_are_in_flight() -> None:
    trace = asks(16, prompt=64, output=64)
    one, three = run(plan_with(batch=16), trace), run(plan_with(stages=3, batch=16), trace)
    assert three.elapsed_s < one.elapsed_s
    assert sum(stage.busy_s for stage in three.replicas[0].stages) > 1.5 * three.replicas[0].in_flight_s


def test_a_short_kv_cache_makes_requests_give_way_and_all_of_them_end() -> None:
    plan = plan_with(batch=4, kv_cache_tokens=320)
    found = run(plan, asks(8, prompt=60, output=100))
    [use] = found.replicas
    assert use.preemptions > 0
    assert use.blocks == 20
    assert 18 <= use.peak_blocks <= 20
    assert [len(each.token_s) for each in found.requests] == [100] * 8
    assert run(plan_with(batch=4), asks(8, prompt=60, output=100)).replicas[0].preemptions == 0


def test_what_a_group_shares_is_computed_once() -> None:
    def trace(group: str) -> list[TraceRequest]:
        return [
            TraceRequest(
                arrival_s=index * 60.0,
                prompt_tokens=300,
                output_tokens=2,
                prefix_group=group,
                prefix_tokens=256 if group else 0,
            )
            for index in range(3)
        ]

    apart, together = run(plan_with(), trace("")), run(plan_with(), trace("system"))
    assert apart.replicas[0].prefix_hit_tokens == 0
    assert together.replicas[0].prefix_hit_tokens == 2 * 256
    assert together.requests[2].ttft_s < 0.5 * apart.requests[2].ttft_s


def test_guesses_pay_where_the_text_repeats_and_nowhere_else() -> None:
    plan = plan_with(speculation="prompt_lookup")
    novel, copied = (run(plan, asks(1, prompt=200, output=100), repetition=share) for share in (0.0, 0.95))
    assert novel.replicas[0].drafts_accepted == 0
    assert copied.replicas[0].drafts_accepted > 30
    assert copied.elapsed_s < 0.8 * novel.elapsed_s


def test_a_draft_model_pays_by_how_often_it_is_right() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, **drafting(context=512))
    without = run(plan_with(context=512), asks(1, prompt=60, output=100))
    right, wrong = (run(plan, asks(1, prompt=60, output=100), acceptance=share) for share in (0.95, 0.0))
    assert right.replicas[0].drafts_accepted > 50
    assert right.elapsed_s < 0.8 * without.elapsed_s
    assert wrong.replicas[0].drafts_accepted == 0
    assert without.elapsed_s < wrong.elapsed_s < 1.3 * without.elapsed_s
    for found in (right, wrong):
        assert [len(each.token_s) for each in found.requests] == [100]


def test_what_cannot_be_served_is_refused_by_reason() -> None:
    plan = plan_with(batch=1, queue=1, context=64)
    found = run(plan, [*asks(4, output=4), TraceRequest(arrival_s=100.0, prompt_tokens=64, output_tokens=1)])
    assert [each.refusal for each in found.requests] == ["", "", "queue full", "queue full", "too long"]


def test_the_same_seed_gives_the_same_bytes_and_noise_another_result() -> None:
    trace, noisy = poisson(40, rate_per_s=1.0, output=10), Calibration(jitter=0.3)
    plan = plan_with(stages=2)
    first, second, other = (msgspec.json.encode(run(plan, trace, noisy, seed=seed)) for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_noise_leaves_the_mean_and_spreads_the_rest() -> None:
    trace = asks(400, every_s=100.0)
    calm, noisy = run(ONE_BY_ONE, trace), run(ONE_BY_ONE, trace, Calibration(jitter=0.4))
    calm_s, noisy_s = ([each.ttft_s for each in found.requests] for found in (calm, noisy))
    assert statistics.mean(noisy_s) == pytest.approx(statistics.mean(calm_s), rel=0.08)
    assert statistics.stdev(noisy_s) > 0.3 * statistics.mean(noisy_s)


requests = st.builds(
    TraceRequest,
    arrival_s=st.floats(0, 30),
    prompt_tokens=st.integers(40, 400),
    output_tokens=st.integers(1, 60),
    prefix_group=st.sampled_from(["", "a", "b"]),
    client=st.sampled_from(["", "x", "y"]),
).map(
    lambda each: msgspec.structs.replace(each, prefix_tokens=each.prompt_tokens // 2) if each.prefix_group else each
)


@settings(deadline=None, max_examples=60)
@given(
    trace=st.lists(requests, min_size=1, max_size=24),
    stages=st.integers(1, 3),
    batch=st.integers(1, 6),
    blocks=st.integers(12, 80),
    queue=st.integers(0, 30),
    speculation=st.sampled_from(["none", "prompt_lookup"]),
    repetition=st.sampled_from([0.0, 0.8]),
)
def test_every_request_of_any_trace_ends_and_no_block_is_leaked(
    trace: list[TraceRequest],
    stages: int,
    batch: int,
    blocks: int,
    queue: int,
    speculation: str,
    repetition: float,
) -> None:
    """The simulator itself holds each scheduler to `is_idle` and `check_integrity` at the end."""
    trace.sort(key=lambda each: each.arrival_s)
    plan = plan_with(
        stages=stages, batch=batch, context=512, kv_cache_tokens=blocks * 16, queue=queue, speculation=speculation
    )
    found = run(plan, trace, repetition=repetition)
    longest = min(512, blocks * 16)
    for asked, each in zip(trace, found.requests, strict=True):
        check_end(asked, each, longest)
    assert found.replicas[0].peak_blocks <= blocks
    for stage in found.replicas[0].stages:
        assert stage.busy_s <= found.replicas[0].in_flight_s + 1e-9


def check_end(asked: TraceRequest, found: SimulatedRequest, longest: int) -> None:
    assert (found.refusal == "too long") == (asked.prompt_tokens >= longest)
    if found.refusal:
        assert not found.token_s
        return
    assert len(found.token_s) == min(asked.output_tokens, longest - asked.prompt_tokens)
    assert list(found.token_s) == sorted(found.token_s)
    assert found.ttft_s > 0
