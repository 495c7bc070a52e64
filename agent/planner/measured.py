"""What plans were measured to do, held against what they predict. Pure.

A prediction is of lengths of prompts and answers, and of one request alone or of a full batch. Under another load a
figure is shown with its ratio, and whether it lies inside the predicted interval is not said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from agent.planner.compare import best_of
from agent.planner.interval import Interval
from agent.planner.plan import Plan, Predicted

Objective = Literal["latency", "ttft", "throughput"]
OBJECTIVES: tuple[tuple[Objective, str, int], ...] = (
    # objective, its figure, +1 when more of it is better
    ("ttft", "time to first token", -1),
    ("latency", "time per token", -1),
    ("throughput", "throughput", 1),
)
EQUAL_WITHIN = 0.05
"""Measured figures this close count as equal: a second run of the same plan differs by as much."""
SAME_LENGTH_WITHIN = 0.1
"""Prompts and answers whose lengths differ by no more than this are those that the prediction is for."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Of all answered requests: the middle one, and one that 19 in 20 are better than."""

    p50: float
    p95: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One plan under a load. Times are of requests one at a time, throughput of `concurrency` at a time.

    Throughput is of answers' tokens per second, by Little's law: what all clients together get while none pauses.
    None: nothing was answered.
    """

    prompt_tokens: float
    answer_tokens: float
    concurrency: int
    ttft_s: Spread | None
    time_per_token_s: Spread | None
    throughput: Spread | None


class HeldFigure(msgspec.Struct, frozen=True, kw_only=True):
    """A predicted figure beside what was measured of it. `unit` is `s` or `tokens/s`."""

    objective: Objective
    name: str
    unit: str
    predicted: Interval
    measured: float | None
    """The middle request's, or the mean where a gateway's counts are all that is known."""
    measured_p95: float | None
    ratio: float | None
    """Measured over the expected."""
    is_inside: bool | None
    """Whether the predicted interval has it; None where that says nothing, and `remark` why."""
    remark: str = ""


class MeasuredVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Indices of the plans that win; None: they are equal, or not all were measured."""

    objective: Objective
    predicted_best: int | None
    measured_best: int | None
    agrees: bool | None
    """None when not all were measured."""
    reason: str


def is_of_load(plan: Plan, *, prompt_tokens: float, answer_tokens: float, concurrency: int) -> bool:
    """Whether the plan's own prediction is of such a load."""
    predicted = plan.predicted
    return not (
        _length_remark("prompts", predicted.prompt_tokens, prompt_tokens)
        or _length_remark("answers", predicted.answer_tokens, answer_tokens)
        or concurrency != _full_batch(plan)
    )


def hold_figures(plan: Plan, measured: Measured, *, for_load: Predicted | None = None) -> tuple[HeldFigure, ...]:
    """Every predicted figure beside the measured one, in the order of `OBJECTIVES`.

    `for_load` is a prediction made for that load, where the plan's own is of another one.
    """
    predicted = for_load or plan.predicted
    full = measured.concurrency if for_load is not None else _full_batch(plan)
    of_prompt = _length_remark("prompts", predicted.prompt_tokens, measured.prompt_tokens)
    of_answer = _length_remark("answers", predicted.answer_tokens, measured.answer_tokens)
    of_batch = "" if measured.concurrency == full else f"predicted for {full} at a time"
    of_drafts = "" if plan.serving.speculation == "none" else "predicted without guessed tokens"
    remarks = {
        "ttft": of_prompt,
        "latency": "; ".join(filter(None, (of_prompt, of_drafts))),
        "throughput": "; ".join(filter(None, (of_prompt, of_answer, of_batch, of_drafts))),
    }
    intervals = {"ttft": predicted.ttft, "latency": predicted.time_per_token, "throughput": predicted.throughput}
    return tuple(
        hold_figure(
            objective,
            predicted=intervals[objective],
            measured=None if spread is None else spread.p50,
            measured_p95=None if spread is None else spread.p95,
            remark=remarks[objective],
        )
        for objective, _, _ in OBJECTIVES
        for spread in (_spread(measured, objective),)
    )


def hold_figure(
    objective: Objective,
    *,
    predicted: Interval,
    measured: float | None,
    measured_p95: float | None = None,
    remark: str = "",
) -> HeldFigure:
    """A `remark` says why the interval does not judge what was measured."""
    if measured is None:
        remark = "not measured"
    elif not remark and predicted.low >= predicted.high:
        remark = "the plan has no bounds"
    return HeldFigure(
        objective=objective,
        name=next(name for each, name, _ in OBJECTIVES if each == objective),
        unit="tokens/s" if objective == "throughput" else "s",
        predicted=predicted,
        measured=measured,
        measured_p95=measured_p95,
        ratio=measured / predicted.expected if measured is not None and predicted.expected > 0 else None,
        is_inside=predicted.low <= measured <= predicted.high if measured is not None and not remark else None,
        remark=remark,
    )


def measured_verdicts(
    predicted: Sequence[Predicted], found: Sequence[Measured | None]
) -> tuple[MeasuredVerdict, ...]:
    """Which plan was predicted to be the best for each objective, and which was measured to be."""
    verdicts = []
    for objective, name, direction in OBJECTIVES:
        predicted_best = best_of([_expected(each, objective) for each in predicted], direction)
        spreads = [_spread(each, objective) if each is not None else None for each in found]
        values = [spread.p50 for spread in spreads if spread is not None]
        if len(values) < len(predicted):
            verdicts.append(
                MeasuredVerdict(
                    objective=objective,
                    predicted_best=predicted_best,
                    measured_best=None,
                    agrees=None,
                    reason=f"{name} was measured of {len(values)} of {len(predicted)} plans",
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


def _spread(measured: Measured, objective: Objective) -> Spread | None:
    return {
        "ttft": measured.ttft_s,
        "latency": measured.time_per_token_s,
        "throughput": measured.throughput,
    }[objective]


def _expected(predicted: Predicted, objective: Objective) -> float:
    return {
        "latency": predicted.time_per_token_s,
        "ttft": predicted.ttft_s,
        "throughput": predicted.tokens_per_s,
    }[objective]


def _full_batch(plan: Plan) -> int:
    return plan.serving.batch * len(plan.replicas)


def _length_remark(what: str, predicted: float, measured: float) -> str:
    """Empty where both are of a length."""
    if not predicted:
        return f"predicted for {what} of any length"
    is_same = abs(measured / predicted - 1) <= SAME_LENGTH_WITHIN
    return "" if is_same else f"predicted for {what} of {predicted:.0f} tokens"


def _reason(values: Sequence[float], best: int | None, name: str, direction: int) -> str:
    if best is None:
        return f"equal {name} within {EQUAL_WITHIN:.0%}"
    others = [value for index, value in enumerate(values) if index != best]
    if direction > 0:
        return f"{values[best] / max(others) - 1:.0%} more {name} than the next"
    return f"{1 - values[best] / min(others):.0%} less {name} than the next"
