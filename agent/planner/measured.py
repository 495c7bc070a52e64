"""What plans were measured to do, held against what they predict. Pure.

A prediction is of a prompt length, and of one request alone or of a full batch. Under another load a figure is
shown with its ratio, and whether it lies inside the predicted interval is not said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from agent.planner.compare import best_of
from agent.planner.interval import Interval
from agent.planner.plan import Plan

Objective = Literal["latency", "ttft", "throughput"]
OBJECTIVES: tuple[tuple[Objective, str, int], ...] = (
    # objective, its figure, +1 when more of it is better
    ("ttft", "time to first token", -1),
    ("latency", "time per token", -1),
    ("throughput", "decode throughput", 1),
)
EQUAL_WITHIN = 0.05
"""Measured figures this close count as equal: a second run of the same plan differs by as much."""
SAME_PROMPT_WITHIN = 0.1
"""Prompts whose lengths differ by no more than this are those that the prediction is for."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Of all answered requests: the middle one, and one that 19 in 20 are better than."""

    p50: float
    p95: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One plan under a load. Times are of requests one at a time, throughput of `concurrency` at a time.

    `decode_throughput` is tokens per second of all streams that decode together; None: nothing was answered.
    """

    prompt_tokens: float
    concurrency: int
    ttft_s: Spread | None
    time_per_token_s: Spread | None
    decode_throughput: Spread | None


class HeldFigure(msgspec.Struct, frozen=True, kw_only=True):
    """`unit` is `s` or `tokens/s`."""

    objective: Objective
    name: str
    unit: str
    predicted: Interval
    measured: Spread | None
    ratio: float | None
    """Measured median over the expected."""
    is_inside: bool | None
    """Whether the median lies in the predicted interval; None where that says nothing, and `remark` why."""
    remark: str = ""


class MeasuredVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Indices of the plans that win; None: they are equal, or not all were measured."""

    objective: Objective
    predicted_best: int | None
    measured_best: int | None
    agrees: bool | None
    """None when not all were measured."""
    reason: str


def hold_figures(plan: Plan, measured: Measured) -> tuple[HeldFigure, ...]:
    """Every predicted figure beside the measured one, in the order of `OBJECTIVES`."""
    predicted = plan.predicted
    full = plan.serving.batch * len(plan.replicas)
    is_same_prompt = abs(measured.prompt_tokens / predicted.prompt_tokens - 1) <= SAME_PROMPT_WITHIN
    of_prompt = "" if is_same_prompt else f"predicted for prompts of {predicted.prompt_tokens} tokens"
    of_batch = "" if measured.concurrency == full else f"predicted for {full} at a time"
    of_drafts = "" if plan.serving.speculation == "none" else "predicted without guessed tokens"
    remarks = {
        "ttft": of_prompt,
        "latency": "; ".join(filter(None, (of_prompt, of_drafts))),
        "throughput": "; ".join(filter(None, (of_prompt, of_batch, of_drafts))),
    }
    intervals = {"ttft": predicted.ttft, "latency": predicted.time_per_token, "throughput": predicted.throughput}
    return tuple(
        _held(
            objective,
            name,
            predicted=intervals[objective],
            measured=_spread(measured, objective),
            remark=remarks[objective],
        )
        for objective, name, _ in OBJECTIVES
    )


def measured_verdicts(plans: Sequence[Plan], found: Sequence[Measured | None]) -> tuple[MeasuredVerdict, ...]:
    """Who was predicted to be the best for each objective, and who was measured to be."""
    verdicts = []
    for objective, name, direction in OBJECTIVES:
        predicted_best = best_of([_expected(plan, objective) for plan in plans], direction)
        spreads = [_spread(each, objective) if each is not None else None for each in found]
        values = [spread.p50 for spread in spreads if spread is not None]
        if len(values) < len(plans):
            verdicts.append(
                MeasuredVerdict(
                    objective=objective,
                    predicted_best=predicted_best,
                    measured_best=None,
                    agrees=None,
                    reason=f"{name} was measured of {len(values)} of {len(plans)} plans",
                )
            )
            continue
        best = best_of(values, direction, equal_within=EQUAL_WITHIN)
        verdicts.append(
            MeasuredVerdict(
                objective=objective,
                predicted_best=predicted_best,
                measured_best=best,
                agrees=best == predicted_best,
                reason=_reason(values, best, name, direction),
            )
        )
    return tuple(verdicts)


def _held(
    objective: Objective, name: str, *, predicted: Interval, measured: Spread | None, remark: str
) -> HeldFigure:
    is_known = predicted.low < predicted.high
    if measured is None:
        remark = "not measured"
    elif not remark and not is_known:
        remark = "the plan has no bounds"
    return HeldFigure(
        objective=objective,
        name=name,
        unit="tokens/s" if objective == "throughput" else "s",
        predicted=predicted,
        measured=measured,
        ratio=measured.p50 / predicted.expected if measured is not None and predicted.expected > 0 else None,
        is_inside=predicted.low <= measured.p50 <= predicted.high if measured is not None and not remark else None,
        remark=remark,
    )


def _spread(measured: Measured, objective: Objective) -> Spread | None:
    return {
        "ttft": measured.ttft_s,
        "latency": measured.time_per_token_s,
        "throughput": measured.decode_throughput,
    }[objective]


def _expected(plan: Plan, objective: Objective) -> float:
    return {
        "ttft": plan.predicted.ttft_s,
        "latency": plan.predicted.time_per_token_s,
        "throughput": plan.predicted.tokens_per_s,
    }[objective]


def _reason(values: Sequence[float], best: int | None, name: str, direction: int) -> str:
    if best is None:
        return f"equal {name} within {EQUAL_WITHIN:.0%}"
    others = [value for index, value in enumerate(values) if index != best]
    if direction > 0:
        return f"{values[best] / max(others) - 1:.0%} more {name} than the next"
    return f"{1 - values[best] / min(others):.0%} less {name} than the next"
