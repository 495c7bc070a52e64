"""The learning state as rows for people: strategies beside each other on the same kind of workload. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgspec

from agent.planner.learning.state import LearningState, Performance
from agent.planner.learning.weights import ObjectiveWeights


class StrategyRow(msgspec.Struct, frozen=True, kw_only=True):
    """Averages; None where nothing was measured. Shares are 0 to 1."""

    arm: str
    bucket: str
    executions: int
    measurements: int
    success: float | None
    time_per_token_s: float | None
    deviation_s: float | None
    """Of `time_per_token_s`, the standard deviation."""
    ttft_s: float | None
    tokens_per_s: float | None
    utilisation: float | None
    predicted_s: float | None
    error: float | None
    """(measured - predicted) / predicted, of the time per token."""
    weight: float
    """Share of the trust among the strategies of its bucket, by latency and throughput as they are weighted."""
    regret: float | None
    """How much longer a token takes than with the best strategy of the bucket."""


def summarise(state: LearningState) -> tuple[StrategyRow, ...]:
    """A row for each strategy and bucket, by bucket."""
    return tuple(
        row
        for _, group in groupby(state.performances, key=lambda each: each.bucket)
        for row in _bucket_rows(list(group), state.weights)
    )


def regret_so_far(rows: Sequence[StrategyRow]) -> float | None:
    """How much longer a token took than with the best strategy measured for its workload: the mean over requests.

    None before anything was measured.
    """
    known = [(row.regret, row.executions) for row in rows if row.regret is not None and row.executions]
    requests = sum(count for _, count in known)
    return sum(regret * count for regret, count in known) / requests if requests else None


def _bucket_rows(performances: list[Performance], weights: ObjectiveWeights) -> list[StrategyRow]:
    times = [each.time_per_token_s.mean for each in performances]
    rates = [each.tokens_per_s.mean for each in performances]
    fastest = min((seconds for seconds in times if seconds), default=None)
    most = max((rate for rate in rates if rate), default=None)
    scores = [
        (weights.latency * fastest / seconds if fastest and seconds else 0.0)
        + (weights.throughput * rate / most if most and rate else 0.0)
        for seconds, rate in zip(times, rates, strict=True)
    ]
    total = sum(scores)
    return [
        StrategyRow(
            arm=each.arm,
            bucket=each.bucket,
            executions=each.executions,
            measurements=each.measurements,
            success=each.success.mean,
            time_per_token_s=seconds,
            deviation_s=each.time_per_token_s.deviation,
            ttft_s=each.ttft_s.mean,
            tokens_per_s=rate,
            utilisation=each.utilisation.mean,
            predicted_s=each.predicted_s.mean,
            error=seconds / predicted - 1 if seconds and (predicted := each.predicted_s.mean) else None,
            weight=score / total if total else 1 / len(performances),
            regret=seconds / fastest - 1 if seconds and fastest else None,
        )
        for each, seconds, rate, score in zip(performances, times, rates, scores, strict=True)
    ]
