"""Counts, rates and percentiles of what was served."""

from __future__ import annotations

import pytest

from agent.serving.metrics import ServingMetrics, percentile, time_per_token_s
from agent.serving.request import Request, RequestState
from agent.wire.rank import SampledToken, SamplingParams


def served(arrived_s: float, token_times: list[float], *, is_probe: bool = False) -> Request:
    request = Request(
        prompt=(1, 2, 3),
        params=SamplingParams(),
        max_tokens=100,
        arrived_s=arrived_s,
        is_probe=is_probe,
        on_event=lambda _event: None,
    )
    request.state = "running"
    for position, time_s in enumerate(token_times):
        request.generated.append(7)
        request.deliver(SampledToken(slot=0, position=position, token=7), None, time_s)
    return request


def record(
    metrics: ServingMetrics,
    token_times: list[float],
    state: RequestState,
    *,
    is_probe: bool = False,
    streams: int = 1,
) -> None:
    request = served(0.0, [], is_probe=is_probe)
    request.state = "running"
    for position, time_s in enumerate(token_times):
        request.generated.append(7)
        request.deliver(SampledToken(slot=0, position=position, token=7), None, time_s)
        metrics.count_token(request, time_s, streams=streams)
    request.state = state
    metrics.count_end(request)


def test_time_per_token_leaves_out_the_first() -> None:
    assert time_per_token_s(served(0.0, [5.0, 5.5, 6.5])) == pytest.approx(0.75)
    assert time_per_token_s(served(0.0, [5.0])) is None


def test_requests_and_tokens_are_counted_by_how_they_ended() -> None:
    metrics = ServingMetrics()
    record(metrics, [1.0, 2.0], "finished")
    record(metrics, [3.0], "cancelled", streams=4)
    record(metrics, [], "failed")
    record(metrics, [1.0, 2.0], "finished", is_probe=True)
    snapshot = metrics.snapshot(3.0)
    assert (snapshot.finished, snapshot.cancelled, snapshot.failed) == (1, 1, 1)
    assert (snapshot.prompt_tokens, snapshot.generated_tokens) == (6, 3)
    assert snapshot.tokens_by_streams == {1: 2, 4: 1}
    assert snapshot.ttft_s_p50 == 1.0
    assert snapshot.ttft_s_p95 == 3.0
    assert snapshot.time_per_token_s_p50 == 1.0


def test_the_rate_is_of_the_last_ten_seconds() -> None:
    metrics = ServingMetrics()
    record(metrics, [0.1 * index for index in range(1, 101)], "finished")
    assert metrics.snapshot(10.0).tokens_per_s == pytest.approx(10.0)
    assert metrics.snapshot(15.0).tokens_per_s == pytest.approx(5.0)
    assert metrics.snapshot(30.0).tokens_per_s == 0.0


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 95, 100)] == [50.0, 95.0, 100.0]
    assert percentile([], 50) == 0.0
