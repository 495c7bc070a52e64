"""Joules per token as an interval: how sure the seconds are, and how sure the watts. Pure.

A device draws its idle power throughout a cycle of decoding and the rest of its full power while it computes, as
DynamoLLM (Stojkovic et al., 2025) models a GPU at a fixed frequency. Hosts' own power, and that of prompts, is left
out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.planner.calibration import Calibration, Parts, predict_interval, scale_parts, sum_parts
from agent.planner.cost import Estimate, StageCost
from agent.planner.interval import Interval

WATTS_DEVIATION = {"cuda": 0.35, "cpu": 0.5}
"""Deviation of the logarithm of a device's watts, which no probe and no run tells.

A GPU that decodes is bound by memory and draws 0.5 to 0.8 of the data sheet's watts, one in prefill all of them. Of
a CPU the cores' share is a guess from their number."""


def predict_energy(estimate: Estimate, calibration: Calibration, *, model: str = "") -> Interval:
    """Joules per token at the full batch, decoding; devices of one kind err together in their watts."""
    by_kind = _joule_parts(estimate)
    joules = {kind: sum(parts.values()) for kind, parts in by_kind.items()}
    total = sum(joules.values())
    variance = sum((own / total * WATTS_DEVIATION[kind]) ** 2 for kind, own in joules.items())
    return predict_interval(sum_parts(*by_kind.values()), calibration, model=model, other_variance=variance)


def mean_energy(joules: Sequence[Interval], tokens_per_s: Sequence[float]) -> Interval:
    """Joules per token of replicas together, each by the tokens that it gives; they err together."""
    total = sum(tokens_per_s)
    low, expected, high = (
        math.fsum(getattr(each, end) * rate for each, rate in zip(joules, tokens_per_s, strict=True)) / total
        for end in ("low", "expected", "high")
    )
    return Interval(low=low, expected=min(max(expected, low), high), high=high)


def _joule_parts(estimate: Estimate) -> dict[str, Parts]:
    """By kind of device, what each part of a step's seconds takes of a token's joules, before any correction."""
    work = estimate.work
    cycle = work.cycle_parts
    found: dict[str, list[Parts]] = {}
    for stage, cost in enumerate(work.decode.costs):
        dynamic_watts = cost.busy_watts - cost.idle_watts
        busy = scale_parts(work.decode.stage_parts(stage), dynamic_watts * work.micro_batches / work.sequences)
        found.setdefault(_kind_of(cost), []).append(busy)
    for kind, stages in found.items():
        costs = [cost for cost in work.decode.costs if _kind_of(cost) == kind]
        stages.append(scale_parts(cycle, sum(cost.idle_watts for cost in costs) / work.sequences))
    return {kind: sum_parts(*stages) for kind, stages in found.items()}


def _kind_of(cost: StageCost) -> str:
    """Whatever else its constants are called by."""
    return "cuda" if cost.device.endswith("cuda") else "cpu"
