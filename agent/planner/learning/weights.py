"""How much each objective counts, moved by how near its target a deployment is. Pure."""

from __future__ import annotations

import math

import msgspec

STEP = 0.2
LEAST, MOST = 0.05, 0.8
BISECTIONS = 60


class ObjectiveWeights(msgspec.Struct, frozen=True, kw_only=True):
    """Of latency, throughput, energy and cost; they sum to 1 and each stays within `LEAST` and `MOST`."""

    latency: float = 0.25
    throughput: float = 0.25
    energy: float = 0.25
    cost: float = 0.25


class Slack(msgspec.Struct, frozen=True, kw_only=True):
    """Of each objective, (target - actual) / target in its cost: negative where the target is missed.

    0 where there is no target or nothing was measured.
    """

    latency: float = 0.0
    throughput: float = 0.0
    energy: float = 0.0
    cost: float = 0.0


def adapt_weights(weights: ObjectiveWeights, slack: Slack) -> ObjectiveWeights:
    """One step of exponentiated gradient (Kivinen and Warmuth, 1997): what misses its target counts more."""
    names = weights.__struct_fields__
    # A single wild reading moves a weight by no more than a factor of e^STEP.
    raised = {
        name: getattr(weights, name) * math.exp(-STEP * max(-1.0, min(1.0, getattr(slack, name)))) for name in names
    }
    return ObjectiveWeights(**_clipped(raised))


def _clipped(values: dict[str, float]) -> dict[str, float]:
    """Scaled by the one factor that makes the values, each held within its bounds, sum to 1 (by bisection)."""
    low, high = 0.0, 1.0 / min(values.values())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        total = sum(_held(value * middle) for value in values.values())
        low, high = (middle, high) if total < 1 else (low, middle)
    return {name: _held(value * high) for name, value in values.items()}


def _held(value: float) -> float:
    return min(MOST, max(LEAST, value))
