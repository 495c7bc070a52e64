"""What happened, in the past tense: a plan came to serve, and what it was measured to do. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agent.planner.layout import shape_of_sizes
from agent.planner.learning.workload import Context
from agent.planner.plan import ObjectiveKind, StrategyName


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted or measured; None is unknown."""

    time_per_token_s: float | None = None
    """Seconds per token after the first (vLLM's TPOT)."""
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    """Generated tokens per second in which a request was there; predicted: decoding the full batch."""


class PlanChosen(msgspec.Struct, frozen=True, kw_only=True, tag="chosen"):
    """A plan came to serve. `arm` says what it is (`pipeline 2`), `asked` which strategy was asked for."""

    model: str
    arm: str
    asked: StrategyName
    objective: ObjectiveKind
    propensity: float
    predicted: Figures


class PlanMeasured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """Requests that a plan served since it was measured last, and how. `context` holds their means."""

    model: str
    arm: str
    context: Context
    predicted: Figures
    measured: Figures
    slots: int
    """Sequences that can run at once."""
    finished: int
    failed: int
    busy_s: float
    observed_s: float
    """Since the last measurement: `busy_s` of it a request was there."""


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """One of both, with where and when it was journalled."""

    at_s: float
    deployment: str
    generation: int
    plan_hash: str
    what: PlanChosen | PlanMeasured


class Lessons(msgspec.Struct, frozen=True, kw_only=True):
    """Oldest first."""

    lessons: tuple[Lesson, ...]


KINDS: dict[str, type[PlanChosen] | type[PlanMeasured]] = {"PlanChosen": PlanChosen, "PlanMeasured": PlanMeasured}
"""Names of the journal's events."""


def arm_of(sizes: Sequence[int]) -> str:
    """What is compared: `single device`, `pipeline 2` (stages), `tensor 2` (ranks), `hybrid 1,2` (each stage's)."""
    shape = shape_of_sizes(sizes)
    match shape:
        case "pipeline":
            return f"pipeline {len(sizes)}"
        case "tensor":
            return f"tensor {sizes[0]}"
        case "hybrid":
            return "hybrid " + ",".join(str(size) for size in sizes)
        case _:
            return shape


def in_order(lessons: Sequence[Lesson]) -> tuple[Lesson, ...]:
    """Of several journals: by time, each journal's own order kept."""
    return tuple(sorted(lessons, key=lambda lesson: lesson.at_s))
