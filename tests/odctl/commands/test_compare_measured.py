"""Measured beside predicted, as lines and as JSON."""

from __future__ import annotations

from agent.planner.compare import compare_plans
from agent.planner.plan import Serving
from odctl.bench.load import Lengths, Load
from odctl.bench.measure import Distribution, Figures
from odctl.commands.compare_measured import measured_result
from odctl.measuring import TrialLoads, TrialOutcome
from tests.agent.planner.clusters import THREE_CPUS, model, plan_for

ONE, TWO = (plan_for(model(), THREE_CPUS, serving=Serving(batch=1, context=512), stages=count) for count in (1, 2))
LOAD = Load(
    arrivals="closed",
    concurrency=1,
    rate_per_s=0.0,
    num_requests=2,
    duration_s=None,
    prompt=Lengths(low=16, high=16),
    output=Lengths(low=8, high=8),
)


def spread(p50: float) -> Distribution:
    return Distribution(count=2, mean=p50, p50=p50, p95=2 * p50, p99=2 * p50, largest=2 * p50)


def test_a_median_stands_with_its_p95_in_the_line_and_in_the_json() -> None:
    figures = Figures(
        num_answered=2,
        num_unfinished=0,
        errors={},
        examples={},
        elapsed_s=1.0,
        requests_per_s=2.0,
        input_tokens_per_s=32.0,
        output_tokens_per_s=16.0,
        goodput_per_s=2.0,
        good_share=1.0,
        mean_prompt_tokens=16,
        mean_output_tokens=8,
        num_short=0,
        ttft_s=spread(0.25),
        tpot_s=None,
        gap_s=None,
        request_s=spread(0.5),
    )
    known = TrialOutcome(label="one", deployment="chat", plan_hash="a", applied_hash="a", alone=figures)
    unknown = TrialOutcome(label="two", deployment="chat", plan_hash="b", applied_hash="b")
    result = measured_result(
        compare_plans([ONE, TWO], ["A", "B"]),
        [ONE, TWO],
        [known, unknown],
        TrialLoads(alone=LOAD, full=LOAD),
        for_load=[None, None],
        before={},
        after={},
        prose=[],
    )
    ttft, latency, _ = result.data["measured"]["plans"][0]["held"]
    assert ttft["measured"] == {"p50": 0.25, "p95": 0.5}
    assert ttft["ratio"] == 0.25 / ONE.predicted.ttft_s
    assert (latency["measured"], latency["remark"]) == (None, "not measured")
    (line,) = [line for line in result.prose.splitlines() if line.strip().startswith("time to first token")][:1]
    assert line.index("250 ms") < line.index("500 ms")
