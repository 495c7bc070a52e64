from __future__ import annotations

import msgspec
import pytest

from agent.planner.measured import Measured, Spread, hold_figures, measured_verdicts
from agent.planner.plan import Plan, Predicted, Serving
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, plan_for

PREDICTED = Predicted(
    prompt_tokens=100,
    ttft_s=1.0,
    time_per_token_s=0.1,
    tokens_per_s=40.0,
    bottleneck="",
    ttft_bounds_s=(0.8, 1.2),
    time_per_token_bounds_s=(0.08, 0.12),
    tokens_per_s_bounds=(30.0, 50.0),
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    made = plan_for(LLAMA_1B, THREE_CPUS, serving=Serving(batch=4, context=1024))
    return msgspec.structs.replace(made, predicted=PREDICTED)


def measured(
    *, ttft_s: float = 1.1, time_per_token_s: float = 0.2, rate: float | None = 20.0, prompt_tokens: float = 104
) -> Measured:
    return Measured(
        prompt_tokens=prompt_tokens,
        concurrency=4,
        ttft_s=Spread(p50=ttft_s, p95=2 * ttft_s),
        time_per_token_s=Spread(p50=time_per_token_s, p95=2 * time_per_token_s),
        decode_throughput=Spread(p50=rate, p95=rate / 2) if rate is not None else None,
    )


def test_figures_are_inside_or_outside_their_interval(plan: Plan) -> None:
    ttft, latency, throughput = hold_figures(plan, measured())
    assert [figure.is_inside for figure in (ttft, latency, throughput)] == [True, False, False]
    assert [figure.ratio for figure in (ttft, latency, throughput)] == pytest.approx([1.1, 2.0, 0.5])
    assert not any(figure.remark for figure in (ttft, latency, throughput))


def test_another_load_than_the_predicted_one_is_said_and_not_judged(plan: Plan) -> None:
    ttft, latency, throughput = hold_figures(plan, measured(prompt_tokens=50))
    assert {ttft.is_inside, latency.is_inside, throughput.is_inside} == {None}
    assert ttft.remark == "predicted for prompts of 100 tokens"
    half = msgspec.structs.replace(measured(), concurrency=2)
    assert [figure.remark for figure in hold_figures(plan, half)] == ["", "", "predicted for 4 at a time"]


def test_what_was_not_measured_and_what_has_no_bounds_is_not_judged(plan: Plan) -> None:
    assert hold_figures(plan, measured(rate=None))[2].remark == "not measured"
    old = msgspec.structs.replace(plan, predicted=msgspec.structs.replace(PREDICTED, ttft_bounds_s=()))
    ttft = hold_figures(old, measured())[0]
    assert (ttft.is_inside, ttft.remark) == (None, "the plan has no bounds")
    assert ttft.ratio == pytest.approx(1.1)


def test_the_measured_verdict_stands_beside_the_predicted_one(plan: Plan) -> None:
    slower = msgspec.structs.replace(
        plan, predicted=msgspec.structs.replace(PREDICTED, time_per_token_s=0.12, tokens_per_s=30.0)
    )
    ttft, latency, throughput = measured_verdicts(
        [plan, slower], [measured(), measured(ttft_s=1.12, time_per_token_s=0.1, rate=10.0)]
    )
    assert (ttft.predicted_best, ttft.measured_best, ttft.agrees) == (None, None, True), "within a twentieth"
    assert (latency.predicted_best, latency.measured_best, latency.agrees) == (0, 1, False)
    assert latency.reason == "50% less time per token than the next"
    assert (throughput.predicted_best, throughput.measured_best, throughput.agrees) == (0, 0, True)
    assert throughput.reason == "100% more decode throughput than the next"


def test_no_verdict_without_all_plans(plan: Plan) -> None:
    verdicts = measured_verdicts([plan, plan], [measured(rate=None), None])
    assert {(verdict.measured_best, verdict.agrees) for verdict in verdicts} == {(None, None)}
    assert verdicts[2].reason == "decode throughput was measured of 0 of 2 plans"
