from __future__ import annotations

import msgspec
import pytest

from agent.errors import FleetError
from agent.simulation.calibrate import calibrate
from agent.simulation.step_times import Calibration
from agent.simulation.trace import TraceRequest
from tests.agent.simulation.deployments import plan_with, poisson, run

PLAN = plan_with(stages=2)


def measured(trace: list[TraceRequest], truth: Calibration) -> list[TraceRequest]:
    """A trace with the times of a deployment that differs from the cost model."""
    found = run(PLAN, trace, truth, seed=9).requests
    return [
        msgspec.structs.replace(asked, ttft_s=each.ttft_s, tpot_s=each.tpot_s)
        for asked, each in zip(trace, found, strict=True)
    ]


def test_a_fit_finds_what_differs_and_holds_for_another_trace() -> None:
    truth = Calibration(decode=1.6, prefill=0.5, row_s=1e-3, request_s=0.02, jitter=0.2)
    warm_up = measured(poisson(24, rate_per_s=0.5, prompt=60, output=12), truth)
    fit = calibrate(warm_up, lambda calibration: run(PLAN, warm_up, calibration))
    assert fit.num_measured == 24
    assert fit.error_before > 0.3
    assert fit.error_after < 0.1
    later = poisson(60, rate_per_s=0.4, prompt=90, output=16, seed=5)
    theirs, ours = run(PLAN, later, truth, seed=9), run(PLAN, later, fit.calibration)
    assert ours.elapsed_s == pytest.approx(theirs.elapsed_s, rel=0.05)
    middle = [sorted(each.ttft_s for each in found.requests)[30] for found in (ours, theirs)]
    assert middle[0] == pytest.approx(middle[1], rel=0.15)


def test_a_trace_without_measured_times_is_refused() -> None:
    trace = poisson(10, rate_per_s=1.0)
    with pytest.raises(FleetError, match="0 requests of the trace have a measured `ttft_s`") as refusal:
        calibrate(trace, lambda calibration: run(PLAN, trace, calibration))
    assert refusal.value.code == "E118"
