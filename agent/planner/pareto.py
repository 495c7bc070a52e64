"""Every layout that is best at something: latency, first token, throughput, context or energy. Pure."""

from __future__ import annotations

from typing import get_args

import msgspec

from agent.planner.adaptive import shape_of
from agent.planner.cost import Estimate
from agent.planner.layout import Layout
from agent.planner.plan import ObjectiveKind
from agent.planner.problem import PlanRequest, Problem, is_allowed, make_problem
from agent.planner.propose import propose_layouts

MAX_CHOICES = 12
"""Most layouts that are told; those best at an objective always are."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One replica that no other beats in everything, with its figures and the objectives that it is best at."""

    shape: str
    stages: tuple[str, ...]
    layers: tuple[int, ...]
    time_per_token_s: float
    ttft_s: float
    tokens_per_s: float
    context: int
    """Longest one that its memory holds, with the batch that is asked for."""
    joules_per_token: float
    best_at: tuple[ObjectiveKind, ...] = ()


def pareto_choices(request: PlanRequest) -> tuple[Choice, ...]:
    """The layouts of all objectives' proposals that no other one beats, by time per token.

    Raises what `make_problem` does; empty where nothing fits or no layout keeps the request's SLOs.
    """
    found: dict[Layout, Estimate] = {}
    problem = make_problem(request)
    for kind in get_args(ObjectiveKind):
        objective = msgspec.structs.replace(request.objective, kind=kind)
        varied = problem.varied(request=msgspec.structs.replace(request, objective=objective))
        for layout in propose_layouts(varied):
            estimate = found.get(layout) or problem.estimate(layout)
            if is_allowed(request, layout, estimate):
                found[layout] = estimate
    figures = {
        layout: (
            estimate.time_per_token_s,
            estimate.ttft_s,
            -estimate.tokens_per_s,
            -float(_longest_context(problem, layout)),
            estimate.joules_per_token,
        )
        for layout, estimate in found.items()
    }
    kept = [layout for layout, own in figures.items() if not any(_beats(other, own) for other in figures.values())]
    # One of those with equal figures: which devices of a kind it is, decides nothing.
    unique = {figures[layout]: layout for layout in reversed(kept)}
    best_at: dict[tuple[float, ...], list[ObjectiveKind]] = {}
    for index, kind in enumerate(("latency", "ttft", "throughput", "context", "energy")):
        if unique:
            best = min(unique, key=lambda own: (own[index], own))
            best_at.setdefault(best, []).append(kind)  # type: ignore[arg-type]
    ranked = sorted(unique, key=lambda own: (own not in best_at, own))[:MAX_CHOICES]
    return tuple(_choice(unique[own], own, tuple(best_at.get(own, ()))) for own in sorted(ranked))


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _longest_context(problem: Problem, layout: Layout) -> int:
    """At least the context asked for, with which the layout was proposed."""

    def fits(context: int) -> bool:
        return problem.varied(serving=msgspec.structs.replace(problem.serving, context=context)).fits(layout)

    low, high = problem.serving.context, problem.spec.max_context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _choice(layout: Layout, figures: tuple[float, ...], best_at: tuple[ObjectiveKind, ...]) -> Choice:
    time_per_token_s, ttft_s, minus_tokens, minus_context, joules = figures
    return Choice(
        shape=shape_of(layout),
        stages=tuple(stage.name for stage in layout.stages),
        layers=tuple(stage.num_layers for stage in layout.stages),
        time_per_token_s=time_per_token_s,
        ttft_s=ttft_s,
        tokens_per_s=-minus_tokens,
        context=int(-minus_context),
        joules_per_token=joules,
        best_at=best_at,
    )
